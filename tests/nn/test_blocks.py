"""Each matrix of a layer with its own fans, though several share one tensor."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from gainstage.nn.blocks import assign, blocks_of, fans_of, value_of
from tests.tools import normal, quiet


def blocks(build):
    return [(b.role, tuple(b.weight.shape), tuple(b.fans)) for b in blocks_of(quiet(build))]


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: nn.Linear(5, 7), [("weight", (7, 5), (5, 7))]),
        (lambda: nn.Bilinear(2, 3, 4), [("weight", (4, 2, 3), (6, 12))]),
        (lambda: nn.Embedding(10, 4), [("weight", (10, 4), (1, 4))]),
        (lambda: nn.Conv2d(8, 16, 3, groups=2, dilation=2), [("weight", (16, 4, 3, 3), (36, 72))]),
        (lambda: nn.Conv1d(8, 16, 4, stride=2), [("weight", (16, 8, 4), (32, 32))]),
        (lambda: nn.ConvTranspose2d(8, 16, 2, stride=2), [("weight", (8, 16, 2, 2), (8, 64))]),
        (lambda: nn.ReLU(), []),
        (lambda: nn.BatchNorm1d(3), []),
    ],
)
def test_single_matrices(build, expected):
    assert blocks(build) == expected


def test_packed_attention_is_three_matrices_not_one():
    roles = [("query", (8, 8), (8, 8)), ("key", (8, 8), (8, 8)), ("value", (8, 8), (8, 8))]
    assert blocks(lambda: nn.MultiheadAttention(8, 2)) == roles
    assert [shape for _, shape, _ in blocks(lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=5))] == [
        (8, 8),
        (8, 4),
        (8, 5),
    ]


@pytest.mark.parametrize(
    ("build", "gates"),
    [
        (lambda: nn.LSTM(5, 7), 4),
        (lambda: nn.GRU(5, 7), 3),
        (lambda: nn.RNN(5, 7, nonlinearity="relu"), 1),
        (lambda: nn.LSTMCell(5, 7), 4),
        (lambda: nn.GRUCell(5, 7), 3),
    ],
)
def test_recurrent_layers_have_one_matrix_a_gate(build, gates):
    found = blocks(build)
    assert [shape for _, shape, _ in found] == [(7, 5)] * gates + [(7, 7)] * gates
    assert all(fans == (shape[1], shape[0]) for _, shape, fans in found)


def test_directions_layers_and_projections_of_an_lstm():
    found = blocks(lambda: nn.LSTM(5, 7, num_layers=2, bidirectional=True, proj_size=3))
    assert sum(role == "projection" for role, _, _ in found) == 4
    assert ("forget gate", (7, 6), (6, 7)) in found


def test_a_block_is_a_view_that_fills_the_layers_own_weight():
    layer = quiet(lambda: nn.GRU(5, 7))
    with torch.no_grad():
        for number, block in enumerate(blocks_of(layer)[:3]):
            block.weight.fill_(number)
    assert layer.weight_ih_l0.detach()[:, 0].tolist() == [0.0] * 7 + [1.0] * 7 + [2.0] * 7


def test_of_a_recurrent_layer_under_weight_norm_the_computed_matrices_count_not_lengths_and_directions():
    for norm in (old(nn.utils.weight_norm), nn.utils.parametrizations.weight_norm):
        layer = quiet(lambda norm=norm: norm(nn.LSTM(5, 7), "weight_hh_l0"))
        found = [(block.parameter, tuple(block.weight.shape)) for block in blocks_of(layer)]
        assert found == [("weight_ih_l0", (7, 5))] * 4 + [("weight_hh_l0", (7, 7))] * 4


def old(wrap):
    """A wrapper that torch has replaced by a parametrisation, without its warning."""

    def wrapped(*arguments, **settings):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return wrap(*arguments, **settings)

    return wrapped


@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.orthogonal,
        old(nn.utils.weight_norm),
        lambda m: old(nn.utils.weight_norm)(m, dim=1),
        lambda m: old(nn.utils.weight_norm)(m, dim=None),
        lambda m: m,
    ],
)
def test_computed_weights_are_set_through_what_computes_them(wrap):
    layer = quiet(lambda: wrap(nn.Linear(4, 4)))
    values, x = torch.linalg.qr(normal(4, 4))[0], normal(3, 4, seed=1)
    with torch.random.fork_rng(devices=[]):
        assert assign(layer, "weight", values)
    assert torch.allclose(layer.weight, values, atol=1e-5)
    assert torch.allclose(value_of(layer, "weight"), values, atol=1e-5)
    assert torch.allclose(layer(x), x @ values.T + layer.bias, atol=1e-5)


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, old(nn.utils.weight_norm)])
@pytest.mark.parametrize("build", [lambda: nn.Conv2d(3, 5, 2), lambda: nn.ConvTranspose1d(3, 5, 2)])
def test_weight_norm_of_convolutions(wrap, build):
    layer = quiet(lambda: wrap(build()))
    values = normal(*layer.weight.shape)
    assert assign(layer, "weight", values)
    assert torch.allclose(layer.weight, values, atol=1e-5)


class Symmetric(nn.Module):
    """A parametrisation without an inverse."""

    def forward(self, weight):
        return weight + weight.T


def symmetric(layer):
    nn.utils.parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


def pruned(layer):
    return prune.random_unstructured(layer, "weight", 0.5)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.parametrizations.spectral_norm,
        old(nn.utils.spectral_norm),
        nn.utils.parametrizations.orthogonal,
        symmetric,
        pruned,
    ],
)
def test_where_the_values_cannot_come_out_the_layer_stays_as_it_was(wrap):
    layer = quiet(lambda: wrap(nn.Linear(4, 4)))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        assert not assign(layer, "weight", normal(4, 4))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_spectral_norm_does_not_iterate_when_it_is_only_looked_at():
    layer = quiet(lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    blocks_of(layer)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert layer.training
    _ = layer.weight
    assert not all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_a_layer_without_this_weight_has_no_value():
    assert value_of(nn.Tanh(), "weight") is None


def test_fans_of_a_module_without_one_weight_matrix_are_unknown():
    assert fans_of(nn.Tanh()) is None
