"""Every figure of the ledger against a slow twin in plain autograd."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gainstage as gs
from gainstage.signal import measure
from gainstage.theory import decibels
from tests.networks import Convolutional, Function, Tokens, deep, drawn, normal_weights
from tests.tools import blobs, generator, normal, quiet

LOSS = F.cross_entropy


def twin(model, x, y):
    """Outputs of the hidden activations and the output layer, with their gradients, by hand."""
    values, h = [], x
    for name, module in model.named_children():
        h = module(h)
        if name.startswith("activation") or name == "output":
            h.retain_grad()
            values.append(h)
    LOSS(h, y).backward()
    return values


def rms(t):
    return float(t.detach().double().square().mean().sqrt())


def signal_of(t):
    return float(t.detach().double().flatten(1).var(0).mean().sqrt())


@pytest.mark.parametrize("activation", ["tanh", "relu", "selu", "gelu"])
def test_a_ledger_equals_plain_autograd(activation):
    model, (x, y) = deep(4, activation), blobs()
    _, ledger = measure(model, LOSS, (x, y))
    outputs = twin(model, x, y)
    layers = [m for m in model if isinstance(m, nn.Linear)]
    for number, (row, out, layer) in enumerate(zip(ledger.rows, outputs, layers, strict=True)):
        before = x if number == 0 else outputs[number - 1]
        assert row.signal == pytest.approx(signal_of(out), rel=1e-4)
        assert row.gain == pytest.approx(signal_of(out) / signal_of(before), rel=1e-4)
        assert row.gradient == pytest.approx(rms(out.grad), rel=1e-4)
        assert row.weight == pytest.approx(rms(layer.weight), rel=1e-4)
        assert row.weight_gradient == pytest.approx(rms(layer.weight.grad), rel=1e-4)
        if number:
            assert row.backward_gain == pytest.approx(rms(before.grad) / rms(out.grad), rel=1e-4)
    assert ledger.rows[0].backward_gain is None  # the input has no gradient: not observed, and not zero
    assert ledger.loss == pytest.approx(LOSS(outputs[-1], y).item(), rel=1e-5)


def test_gains_add_up_along_the_depth():
    _, ledger = measure(deep(8, "tanh"), LOSS, blobs())
    total = sum(decibels(row.gain) for row in ledger.rows)
    assert total == pytest.approx(decibels(ledger.rows[-1].signal) - decibels(ledger.source.signal), abs=1e-3)


def test_in_place_activations_are_measured_before_they_overwrite_their_input():
    def network(inplace):
        return quiet(lambda: nn.Sequential(nn.Linear(20, 64), nn.Hardtanh(inplace=inplace), nn.Linear(64, 3)))

    with torch.no_grad():
        models = [network(False), network(True)]
        for model in models:
            model[0].weight.mul_(10)
    (_, plain), (_, inplace) = (measure(model, LOSS, blobs()) for model in models)
    assert plain.rows == inplace.rows or [r.saturated for r in plain.rows] == [r.saturated for r in inplace.rows]
    assert plain.rows[0].saturated > 0.5
    assert plain.rows[0].gradient == inplace.rows[0].gradient


def test_dead_and_saturated_shares_of_known_networks():
    relu = quiet(lambda: nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 3)))
    with torch.no_grad():
        relu[0].bias[:4] = -1e6
        relu[0].bias[4:] = 1e6
    assert measure(relu, LOSS, blobs())[1].rows[0].dead == pytest.approx(0.4)
    tanh = deep(1, "tanh", normal_weights(100.0))
    assert measure(tanh, LOSS, blobs())[1].rows[0].saturated > 0.95


def test_what_does_not_apply_is_not_observed_rather_than_zero():
    _, ledger = measure(deep(1, "tanh"), LOSS, blobs())
    assert ledger.rows[0].dead is None
    assert ledger.rows[1].saturated is None


def test_frozen_weights_have_no_gradient_and_the_rest_is_measured():
    model = deep(2, "tanh")
    model.hidden1.requires_grad_(False)
    _, ledger = measure(model, LOSS, blobs())
    assert ledger.rows[0].weight_gradient is None
    assert ledger.rows[0].gradient is None
    assert ledger.rows[1].weight_gradient > 0


def test_integer_inputs_through_an_embedding_are_measured_behind_it():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(11, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.embedding(x).mean(1))

    x = torch.arange(60).reshape(20, 3) % 11
    _, ledger = measure(quiet(Tokens), LOSS, (x, torch.arange(20) % 3))
    assert ledger.source is None or ledger.source.signal is None or ledger.source.signal >= 0
    assert ledger.rows[-1].signal > 0


NORMALISED = {
    "batch norm in front of ReLU": lambda w: [nn.BatchNorm1d(w), nn.ReLU()],
    "batch norm behind ReLU": lambda w: [nn.ReLU(), nn.BatchNorm1d(w)],
    "batch norm and tanh": lambda w: [nn.BatchNorm1d(w), nn.Tanh()],
    "batch norm alone": lambda w: [nn.BatchNorm1d(w)],
    "layer norm in front of ReLU": lambda w: [nn.LayerNorm(w), nn.ReLU()],
    "dropout": lambda w: [nn.ReLU(), nn.Dropout(0.3)],
    "alpha dropout": lambda w: [nn.SELU(), nn.AlphaDropout(0.3)],
}


@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize("name", NORMALISED)
def test_an_initialised_network_with_normalisation_agrees_with_theory(name, scale):
    """Also with weights that gs.initialize drew on the data, and with normalisations that have learnt."""
    width, depth = 256, 5

    def network():
        blocks = [[nn.Linear(width, width), *NORMALISED[name](width)] for _ in range(depth)]
        return nn.Sequential(*[part for block in blocks for part in block], nn.Linear(width, 3))

    model = quiet(network)
    x = normal(512, width, seed=7)  # not the numbers that the weights are drawn from
    gs.initialize(model, x, generator=generator())
    for module in model:
        if isinstance(module, (nn.BatchNorm1d, nn.LayerNorm)):
            nn.init.constant_(module.weight, scale)
    rows = measure(model, LOSS, (x, torch.arange(512) % 3))[1].rows
    assert all(abs(row.gain_sigmas) < 3 for row in rows)
    assert all(abs(row.backward_gain_sigmas) < 3 for row in rows[1:])
    assert all(abs(decibels(row.gain) - decibels(row.expected_gain)) < 1 for row in rows[:depth])


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38, 1e-38, 0.0])
@pytest.mark.parametrize("activation", ["relu", "gelu", "logistic", "selu"])
def test_weights_of_no_use_raise_nothing_and_warn_of_nothing(activation, value):
    model = deep(3, activation, width=16)
    nn.init.constant_(model.hidden2.weight, value)
    _, ledger = measure(model, LOSS, blobs())
    assert len(ledger) == 4
    assert ledger.rows[0].gain > 0
    assert ledger.to_json()
    assert str(ledger)


FUNCTIONS = {
    "log": torch.log,
    "root": lambda z: z**0.5,
    "reciprocal": lambda z: 1 / z,
    "0/0": lambda z: z / (z - z),
    "exp of exp": lambda z: torch.exp(torch.exp(3 * z)),
    "constant": lambda z: z * 0 + 1,
    "steps": torch.round,
    "arc cosine": torch.acos,
    "complex": lambda z: torch.view_as_real(torch.fft.fft(z)).flatten(1)[:, :32],
    "sorted": lambda z: z.sort(1).values,
    "matrix": lambda z: z @ torch.eye(32),
    "read out": lambda z: z * z.detach().abs().max().item(),
    "standardised by hand": lambda z: (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True),
}


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_all_kinds_raise_nothing_and_warn_of_nothing(name, mode):
    model = drawn(
        lambda: nn.Sequential(nn.Linear(20, 32), Function(FUNCTIONS[name]), nn.Dropout(0.1), nn.Linear(32, 3))
    )
    _, ledger = measure(model.train(mode), LOSS, blobs(32))
    assert ledger.rows[0].backward_gain is None
    assert all(row.gain_sigmas is None or not abs(row.gain_sigmas) > 20 for row in ledger.rows)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(kind):
    model, (x, y) = drawn(lambda: nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3))), blobs()
    expected = measure(model, LOSS, (x, y))[1]
    found = measure(model.to(kind), LOSS, (x.to(kind), y))[1]
    for row, other in zip(found.rows, expected.rows, strict=True):
        assert (row.signal, row.gain) == pytest.approx((other.signal, other.gain), rel=0.02)


@pytest.mark.parametrize("layer", ["1d", "pixels of size one", "tokens of one number", "one pooled position"])
def test_shapes_at_the_edge(layer):
    build, x = {
        "1d": (
            lambda: nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 3)),
            normal(16),
        ),
        "pixels of size one": (
            lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.MaxPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
            normal(16, 3, 1, 1),
        ),
        "tokens of one number": (
            lambda: nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Flatten(), nn.Linear(40, 3)),
            normal(16, 5, 1),
        ),
        "one pooled position": (
            lambda: nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.MaxPool1d(20), nn.Flatten(), nn.Linear(8, 3)),
            normal(16, 2, 22),
        ),
    }[layer]
    _, ledger = measure(drawn(build), LOSS, (x, torch.arange(16) % 3))
    assert all(row.signal > 0 for row in ledger.rows)


def test_two_samples_and_evaluation():
    x, y = normal(2, 1, 8, 8), torch.tensor([0, 1])
    for model in (quiet(Convolutional), quiet(Convolutional).eval()):
        _, ledger = measure(model, LOSS, (x, y))
        assert ledger.samples == 2
        assert all(row.signal > 0 for row in ledger.rows)


def test_in_evaluation_batch_normalisation_is_not_predicted_and_dropout_is_nothing():
    x, y = normal(16, 1, 8, 8), torch.arange(16) % 3
    train, evaluation = (measure(quiet(Convolutional).train(mode), LOSS, (x, y))[1] for mode in (True, False))
    assert train.row("conv").expected_gain is not None
    assert evaluation.row("conv").expected_gain is None
    assert evaluation.row("up").expected_gain < train.row("up").expected_gain


def test_tokens_and_their_padding():
    x = torch.arange(60).reshape(20, 3) % 11
    graph, ledger = measure(quiet(Tokens), LOSS, (x, torch.arange(20) % 3))
    assert "ne" not in [op.name for op in graph.operations], "numbers of tokens are no signal, nor is what is compared"
    assert ledger.source is None, "numbers of tokens have no level"
    assert [row.name for row in ledger.rows] == ["embedding", "hidden", "head"]
    assert (ledger.rows[0].gain, ledger.rows[0].expected_gain) == (None, None)
    assert ledger.rows[0].backward_gain is None
    assert ledger.rows[1].gain == pytest.approx(ledger.rows[1].signal / ledger.rows[0].signal)
    assert ledger.unknown == ()


def test_a_nested_input_and_one_that_is_not_used():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(20, 3)

        def forward(self, parts):
            return self.layer(parts["x"][0]) + 0 * parts["mask"].sum()

    x, y = blobs()
    unused = torch.full((256,), 1e6)
    _, ledger = measure(quiet(Nested), LOSS, (({"x": [x, unused], "mask": unused > 0},), y))
    assert ledger.rows[0].gain == pytest.approx(signal_of(quiet(Nested).layer(x)) / signal_of(x), rel=1e-4)


def test_a_vanished_gradient_is_zero_and_counts_as_minus_infinity():
    model = deep(2, "relu")
    nn.init.zeros_(model.output.weight)
    _, ledger = measure(model, LOSS, blobs())
    assert ledger.rows[0].gradient == 0
    assert ledger.rows[0].gradient_norm_db == -math.inf
