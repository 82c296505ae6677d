"""The gradient noise scale against the gradients of single samples."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gainstage as gs
from gainstage.signal.noise import gradient_noise_scale, noise_scale
from tests.networks import Convolutional, TwoInputs, deep
from tests.tools import blobs, normal, quiet

LOSS = F.cross_entropy


def slow(model, loss, x, y):
    """tr(S) / |G|^2 from the gradient of each sample, without bias, in float64."""
    rows = []
    for i in range(len(x)):
        found = torch.autograd.grad(loss(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in found]).double())
    g = torch.stack(rows)
    noise = float((g - g.mean(0)).square().sum() / (len(g) - 1))
    return noise / (float(g.mean(0).square().sum()) - noise / len(g))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_scale_is_that_of_the_gradients_of_single_samples(reduction):
    model, (x, y) = deep(2, "tanh"), blobs(1024)
    found = gradient_noise_scale(model, nn.CrossEntropyLoss(reduction=reduction), (x, y))
    x, y = x[y.argsort()], y.sort().values  # in the order of the classes, which the parts must not follow
    # the spread of eight parts is known to sqrt(2 / 7 / effective directions of the noise), here of dozens
    assert found == pytest.approx(slow(model, LOSS, x, y), rel=0.3)


def test_the_estimate_is_unbiased_in_noise_and_gradient():
    """G = (1, 0), S = 9 in each of 100 directions for one sample, batches of 4: means over 2000 estimates of eight batches."""
    gradients = torch.zeros(2000, 8, 100) + (torch.arange(100) == 0) + 3 / 2 * normal(2000, 8, 100)
    scales = [noise_scale(([g] for g in eight), 4) for eight in gradients]
    pooled = noise_scale(([g] for g in gradients.flatten(0, 1)), 4)
    # |G|^2 of 16,000 batches is known to 2 * 1.5 / sqrt(16000) = 2.4 %
    assert pooled == pytest.approx(900, rel=0.1)
    assert sum(scale is None for scale in scales) > 100, "|G|^2 hidden by the noise is told as such"
    assert all(scale is None or scale > 0 for scale in scales)


def test_two_batches_by_hand():
    """Of 4 samples each: tr(S) = 4 (1 + 1) / (2 - 1) = 8, |G|^2 = 9 - 8 / 8."""
    assert noise_scale(([torch.tensor([3.0, sign])] for sign in (1.0, -1.0)), 4) == pytest.approx(1)


def test_without_noise_the_scale_is_zero():
    model, (x, y) = deep(1, "tanh"), blobs(8)
    assert gradient_noise_scale(model, LOSS, (x[:1].expand(64, -1), y[:1].expand(64))) == pytest.approx(0, abs=1e-3)


def test_what_cannot_be_told_is_not_observed():
    model, (x, y) = deep(1, "tanh"), blobs(15)
    assert gradient_noise_scale(model, LOSS, (x, y)) is None, "eight parts of one sample"
    model.output.weight.data.fill_(math.nan)
    assert gradient_noise_scale(model, LOSS, blobs(64)) is None


def test_nested_inputs_and_leaving_no_trace():
    x = normal(64, 20), normal(64, 12, seed=1)
    assert gradient_noise_scale(quiet(TwoInputs), LOSS, (x, (x[0][:, 0] > 0).long())) > 0
    model = quiet(Convolutional)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradient_noise_scale(model, LOSS, (normal(64, 1, 8, 8), torch.arange(64) % 3))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_only_a_check_at_level_trial_measures_it():
    model, data = deep(1, "tanh"), blobs(256)
    assert gs.check(model, LOSS, data).ledger.noise_scale is None
    checkup = gs.check(model, LOSS, data, level="trial")
    assert checkup.ledger.noise_scale > 0
    assert checkup.to_dict()["ledger"]["noise_scale"] == checkup.ledger.noise_scale
    assert "gradient noise scale" in str(checkup)
