"""Normalisation layers made to fit a given layer."""

import pytest
import torch
from torch import nn

from gainstage.errors import BadInput
from gainstage.nn import batch_norm_after
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
