"""Every figure of the ledger against a slow twin in plain autograd."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gainstage as gs
from gainstage.signal import measure
from gainstage.theory import decibels
from tests.networks import Convolutional, deep, normal_weights, residual
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


def deviations(model, x, y, layers):
    """Measured less predicted gain in dB for the hidden stages, forward and backward."""
    _, ledger = measure(model, LOSS, (x, y))
    rows = ledger.rows[:layers]
    forward = [decibels(r.gain) - decibels(r.expected_gain) for r in rows]
    backward = [decibels(r.backward_gain) - decibels(r.expected_backward_gain) for r in rows[1:]]
    return forward, backward


def tolerance(width, depth, kurtosis=2.5):
    """Three standard errors, in dB, of the mean over `depth` stages of a random stage's gain of `width` units.

    A unit's power is a sum of squares of products: its relative variance is at most about `kurtosis`, and averages over
    the units; a gain is half a power in dB (10 log10)."""
    return 3 * 10 / math.log(10) * math.sqrt(kurtosis / width / depth)


@pytest.mark.parametrize("activation", ["tanh", "relu", "selu", "elu", "gelu", "leaky_relu", "identity"])
def test_measured_gains_agree_with_theory(activation):
    width, depth = 256, 8
    forward, backward = deviations(deep(depth, activation, width=width), *blobs(512), depth)
    assert abs(sum(forward[1:]) / (depth - 1)) < tolerance(width, depth - 1)
    assert abs(sum(backward) / len(backward)) < tolerance(width, depth - 1)


def test_a_prediction_for_the_wrong_activation_would_be_noticed():
    width, depth = 256, 8
    model, (x, y) = deep(depth, "tanh", width=width), blobs(512)
    _, ledger = measure(model, LOSS, (x, y))
    linear = [decibels(row.gain) - 0.0 for row in ledger.rows[1:depth]]  # Glorot keeps a linear network's signal
    assert abs(sum(linear) / len(linear)) > tolerance(width, depth - 1)


NORMALISED = {
    "batch norm in front of ReLU": lambda w: [nn.BatchNorm1d(w), nn.ReLU()],
    "batch norm behind ReLU": lambda w: [nn.ReLU(), nn.BatchNorm1d(w)],
    "batch norm and tanh": lambda w: [nn.BatchNorm1d(w), nn.Tanh()],
    "batch norm alone": lambda w: [nn.BatchNorm1d(w)],
    "layer norm in front of ReLU": lambda w: [nn.LayerNorm(w), nn.ReLU()],
    "dropout": lambda w: [nn.ReLU(), nn.Dropout(0.3)],
}


@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize("name", NORMALISED)
def test_theory_covers_normalisation_forward_and_backward(name, scale):
    width, depth = 256, 5

    def network():
        blocks = [[nn.Linear(width, width), *NORMALISED[name](width)] for _ in range(depth)]
        return nn.Sequential(*[part for block in blocks for part in block], nn.Linear(width, 3))

    model = quiet(network)
    x = normal(1024, width)  # of full rank: with few independent features the units' variances differ too much
    gs.initialize(model, x, generator=generator())
    for module in model:
        if isinstance(module, (nn.BatchNorm1d, nn.LayerNorm)):
            nn.init.constant_(module.weight, scale)
    forward, backward = deviations(model, x, torch.arange(1024) % 3, depth)
    assert abs(sum(forward) / depth) < tolerance(width, depth)
    assert abs(sum(backward) / (depth - 1)) < tolerance(width, depth - 1)


def test_nothing_is_expected_behind_alpha_dropout():
    model = quiet(lambda: nn.Sequential(nn.Linear(20, 64), nn.SELU(), nn.AlphaDropout(0.3), nn.Linear(64, 3)))
    assert measure(model, LOSS, blobs())[1].rows[0].expected_gain is None


def test_no_prediction_past_what_theory_does_not_cover():
    _, ledger = measure(quiet(Convolutional), LOSS, (normal(16, 1, 8, 8), torch.arange(16) % 3))
    assert ledger.rows[0].expected_gain is None  # pooling
    assert ledger.rows[0].gain is not None


def test_no_backward_prediction_where_another_stage_feeds_on_the_same_input():
    _, ledger = measure(residual(), LOSS, blobs())
    assert all(row.expected_backward_gain is None for row in ledger.rows[2:-1:2])


def test_a_vanished_gradient_is_zero_and_counts_as_minus_infinity():
    model = deep(2, "relu")
    nn.init.zeros_(model.output.weight)
    _, ledger = measure(model, LOSS, blobs())
    assert ledger.rows[0].gradient == 0
    assert ledger.rows[0].gradient_norm_db == -math.inf
