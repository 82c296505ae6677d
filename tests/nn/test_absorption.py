"""The arithmetic of a normalisation that goes into the layer beside it, and mutants of it that are seen."""

import pytest
import torch
from torch import nn

from gainstage.nn import absorption
from gainstage.nn.absorption import absorb_behind, absorb_in_front, scale_and_shift
from gainstage.nn.edits import Edits
from tests.networks import settle
from tests.tools import normal, quiet

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), ()),
    "linear without bias": (lambda: nn.Linear(6, 4, bias=False), ()),
    "convolution, 1 place": (lambda: nn.Conv1d(6, 4, 3), (9,)),
    "convolution, groups": (lambda: nn.Conv2d(6, 4, 3, stride=2, groups=2), (7, 8)),
    "depthwise convolution": (lambda: nn.Conv2d(6, 12, 3, groups=6, bias=False), (7, 8)),
    "convolution, 3 places": (lambda: nn.Conv3d(6, 4, 2, dilation=2), (5, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 3, stride=2), (4, 3)),
    "transposed, groups": (lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, groups=2), (4, 3)),
    "transposed, 1 place, groups": (lambda: nn.ConvTranspose1d(6, 9, 3, groups=3, bias=False), (5,)),
}
layers = pytest.mark.parametrize(("build", "places"), LAYERS.values(), ids=LAYERS)


def affine(x, scale, shift):
    return x * scale.view(-1, *[1] * (x.ndim - 2)) + shift.view(-1, *[1] * (x.ndim - 2))


def behind(build, places):
    """What the layer puts out with s y + t absorbed, and what it should."""
    layer, x = quiet(build).double(), normal(5, 6, *places).double()
    expected = layer(x)
    scale, shift = (2 + normal(expected.shape[1]), normal(expected.shape[1], seed=1))
    expected = affine(expected, scale, shift)
    absorb_behind(Edits(), layer, scale.double(), shift.double())
    return layer(x), expected


def in_front(build, places):
    """The same for s x + t taken in; t = 0 for transposed convolutions, which have a border."""
    layer, x = quiet(build).double(), normal(5, 6, *places).double()
    borders = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    scale, shift = 2 + normal(6), torch.zeros(6) if borders else normal(6, seed=1)
    expected = layer(affine(x, scale, shift))
    absorb_in_front(Edits(), layer, scale.double(), shift.double())
    return layer(x), expected


@layers
@pytest.mark.parametrize("side", [behind, in_front])
def test_a_layer_with_what_it_absorbed_is_the_layer_beside_it(side, build, places):
    output, expected = side(build, places)
    assert torch.allclose(output, expected, rtol=1e-12, atol=1e-12)


def transposed_axis(values, weight, dim):
    return original(values, weight, 3 - dim)


def groups_ignored(values, weight, dim):
    shape = [1] * weight.ndim
    shape[dim] = -1
    return values[: weight.shape[dim]].view(shape)


original = absorption._along


@pytest.mark.parametrize("mutant", [transposed_axis, groups_ignored])
@pytest.mark.parametrize("side", [behind, in_front])
@pytest.mark.parametrize("build", [lambda: nn.Conv1d(6, 6, 3, groups=2), lambda: nn.ConvTranspose1d(6, 6, 3, groups=2)])
def test_a_wrong_axis_and_ignored_groups_are_seen(mutant, side, build, monkeypatch):
    monkeypatch.setattr(absorption, "_along", mutant)
    output, expected = side(build, (5,))
    assert not torch.allclose(output, expected, rtol=1e-2)


@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"eps": 0.5}], ids=str)
def test_scale_and_shift_are_what_the_normalisation_does_in_evaluation_mode(settings):
    norm, x = settle(nn.BatchNorm1d(4, **settings), 3 + 0.5 * normal(64, 4)).double(), normal(8, 4).double()
    scale, shift = scale_and_shift(norm)
    assert torch.allclose(x * scale + shift, norm(x), rtol=1e-12)
    without_eps = x * norm.running_var.rsqrt() + shift
    assert not torch.allclose(without_eps, norm(x), rtol=1e-6), "a forgotten eps is seen"


def test_half_precision_and_frozen_layers_stay_what_they_are():
    layer = quiet(lambda: nn.Linear(6, 4, bias=False)).to(torch.bfloat16).requires_grad_(False)
    absorb_behind(Edits(), layer, torch.full((4,), 2.0).double(), torch.ones(4).double())
    assert (layer.weight.dtype, layer.bias.dtype) == (torch.bfloat16, torch.bfloat16)
    assert not layer.bias.requires_grad
    assert torch.equal(layer.bias, torch.ones(4, dtype=torch.bfloat16))


def test_zeros_at_the_border_are_known_whatever_padding_is_called():
    cases = {0: False, 1: True, (0, 1): True, "valid": False, "same": True}
    found = {
        padding: absorption._is_zero_padded(quiet(lambda p=padding: nn.Conv2d(1, 1, 3, padding=p))) for padding in cases
    }
    assert found == cases
    assert not absorption._is_zero_padded(quiet(lambda: nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")))
    assert not absorption._is_zero_padded(quiet(lambda: nn.Linear(2, 2)))


def test_the_shift_that_does_not_reach_the_border_would_be_seen():
    layer, x, shift = quiet(lambda: nn.Conv1d(2, 3, 3, padding=1)), normal(4, 2, 8), torch.ones(2).double()
    expected = layer(x + 1)
    absorb_in_front(Edits(), layer, torch.ones(2).double(), shift)
    assert torch.allclose(layer(x)[..., 1:-1], expected[..., 1:-1], atol=1e-6)
    assert not torch.allclose(layer(x), expected, atol=1e-2)
