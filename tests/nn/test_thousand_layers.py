"""A thousand layers: what the chapter prints for SELU, and a leaky ReLU tailored to that depth."""

import pytest
import torch
from torch.nn import functional as F

from gainstage.nn.orthogonal import orthogonal_matrix
from gainstage.theory import tailored_slope
from tests.tools import generator, normal

DEPTH, UNITS = 1000, 100


def run(function, weight):
    """Mean and standard deviation behind each layer, for 500 standardised inputs, and the last outputs."""
    x, readings = normal(500, UNITS), []
    for layer in range(DEPTH):
        x = function(x @ weight(layer).T)
        readings.append((float(x.mean()), float(x.std())))
    return readings, x


def lecun(layer):
    return torch.randn(UNITS, UNITS, generator=generator(layer)) * UNITS**-0.5


def test_selu_with_lecun_weights_keeps_mean_and_standard_deviation():
    readings, _ = run(F.selu, lecun)
    assert all(abs(mean) < 0.25 and 0.75 < std < 1.3 for mean, std in readings)
    mean, std = readings[900]
    assert mean == pytest.approx(0.02, abs=0.1)
    assert std == pytest.approx(1.0, abs=0.15)


def test_with_weights_of_he_it_would_not():
    readings, _ = run(F.selu, lambda layer: lecun(layer) * 2**0.5)
    assert not all(abs(mean) < 0.25 and 0.75 < std < 1.3 for mean, std in readings)


def similarity(x):
    rows = F.normalize(x, dim=1)
    return float((rows.sum(0).square().sum() - len(x)) / (len(x) * (len(x) - 1)))


@pytest.mark.parametrize(("slope", "alive"), [(tailored_slope(DEPTH), True), (0.3, False)])
def test_a_leaky_relu_tailored_to_the_depth_keeps_level_and_differences(slope, alive):
    gain = (2 / (1 + slope**2)) ** 0.5
    readings, last = run(
        lambda z: F.leaky_relu(z, slope), lambda layer: gain * orthogonal_matrix((UNITS, UNITS), generator(layer))
    )
    level = (readings[-1][0] ** 2 + readings[-1][1] ** 2) ** 0.5
    assert (0.2 < level < 5 and similarity(last) < 0.97) is alive
