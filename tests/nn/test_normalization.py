"""Batch normalisation made to fit a layer, and its momentum in both conventions."""

import math

import pytest
import torch
from torch import nn

from gainstage.errors import BadInput
from gainstage.nn import batch_norm_after, keras_momentum
from tests.tools import normal, quiet

LAYERS = [
    (lambda: nn.Linear(3, 5), (), nn.BatchNorm1d),
    (lambda: nn.Conv1d(3, 5, 1), (7,), nn.BatchNorm1d),
    (lambda: nn.ConvTranspose1d(3, 5, 1), (7,), nn.BatchNorm1d),
    (lambda: nn.Conv2d(3, 5, 1), (7, 6), nn.BatchNorm2d),
    (lambda: nn.ConvTranspose2d(3, 5, 1), (7, 6), nn.BatchNorm2d),
    (lambda: nn.Conv3d(3, 5, 1), (4, 3, 2), nn.BatchNorm3d),
    (lambda: nn.ConvTranspose3d(3, 5, 1), (4, 3, 2), nn.BatchNorm3d),
]


@pytest.mark.parametrize(("build", "places", "kind"), LAYERS)
def test_the_output_of_the_layer_is_normalised_unit_by_unit(build, places, kind):
    layer = quiet(build)
    norm = batch_norm_after(layer)
    assert type(norm) is kind
    output = norm(layer(3 + 2 * normal(64, 3, *places))).detach().transpose(0, 1).flatten(1)
    assert torch.allclose(output.mean(1), torch.zeros(5), atol=1e-5)
    assert torch.allclose(output.std(1, unbiased=False), torch.ones(5), atol=1e-3)


@pytest.mark.parametrize("settings", [{"dtype": torch.float64}, {"device": "meta"}], ids=str)
def test_dtype_and_device_are_the_layers(settings):
    layer = quiet(lambda: nn.Linear(3, 5, **settings))
    norm = batch_norm_after(layer)
    assert (norm.weight.dtype, norm.weight.device) == (layer.weight.dtype, layer.weight.device)
    assert norm.running_mean.device == layer.weight.device


@pytest.mark.parametrize("build", [nn.ReLU, lambda: nn.LSTM(3, 4), lambda: nn.Embedding(3, 4)])
def test_a_layer_without_channels_is_refused(build):
    layer = quiet(build)
    with pytest.raises(BadInput, match=f"batch normalisation does not fit behind a {type(layer).__name__}"):
        batch_norm_after(layer)


# momentum


def test_keras_gives_the_weight_of_the_old_average_and_pytorch_that_of_the_new_batch():
    assert keras_momentum(0.99) == pytest.approx(0.01)
    assert keras_momentum(keras_momentum(0.7)) == pytest.approx(0.7)


def layer_of_five():
    return quiet(lambda: nn.Linear(3, 5))


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({}, 0.1),
        ({"convention": "keras"}, 0.1),
        ({"momentum": 0.3}, 0.3),
        ({"momentum": 0.9, "convention": "keras"}, 0.1),
        ({"momentum": 0.99, "convention": "keras"}, 0.01),
    ],
    ids=str,
)
def test_the_first_batch_enters_the_moving_mean_with_the_share_that_the_convention_says(settings, share):
    norm = batch_norm_after(layer_of_five(), **settings)
    x = 4 + normal(64, 5)
    norm(x)
    assert norm.momentum == pytest.approx(share)
    assert torch.allclose(norm.running_mean, share * x.mean(0), rtol=1e-5)


@pytest.mark.parametrize("convention", ["torch", "keras"])
@pytest.mark.parametrize("momentum", [0, 1, -0.1, 1.5, 99, math.nan, "0.9", True])
def test_a_momentum_outside_0_and_1_is_refused_in_either_convention(momentum, convention):
    with pytest.raises(BadInput, match="in PyTorch it is the weight of the new batch"):
        batch_norm_after(layer_of_five(), momentum, convention)
    with pytest.raises(BadInput, match="must lie between 0 and 1"):
        keras_momentum(momentum)


@pytest.mark.parametrize("momentum", [None, 0.1])
def test_an_unknown_convention_is_refused_also_where_it_would_not_matter(momentum):
    with pytest.raises(BadInput, match="no momentum convention is called 'tensorflow'; known are: torch, keras"):
        batch_norm_after(layer_of_five(), momentum, "tensorflow")
