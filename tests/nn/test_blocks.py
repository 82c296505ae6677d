"""Each matrix of a layer with its own fans, though several share one tensor."""

import pytest
import torch
from torch import nn

from gainstage.nn.blocks import assign, blocks_of, fans_of
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


@pytest.mark.parametrize(
    "wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.orthogonal, lambda m: m]
)
def test_parametrised_weights_are_set_through_their_parametrisation(wrap):
    layer = quiet(lambda: wrap(nn.Linear(4, 4)))
    values = torch.linalg.qr(normal(4, 4))[0]
    with torch.random.fork_rng(devices=[]):
        assign(layer, "weight", values)
    assert torch.allclose(layer.weight, values, atol=1e-5)


def test_fans_of_a_module_without_one_weight_matrix_are_unknown():
    assert fans_of(nn.Tanh()) is None
