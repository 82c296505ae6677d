"""Theory of real networks, stage by stage: measured gains lie as far from it as its own standard errors say, and no further."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gainstage.signal import measure, prediction, rows
from gainstage.theory import network, operators
from tests.networks import (
    Encoder,
    Joined,
    ResidualDeep,
    convolutions,
    drawn,
    keeping,
    wide,
)
from tests.signal.calibration import FUNCTIONS, backward, complaints, forward, heavier, images, ledger_of
from tests.tools import normal

# Theory takes all samples to be alike. In layers of 512 units their levels differ by some percent, which shifts the mean of
# a curved function's gain by about half a standard error (most, 0.7, for |x|), and that of all functions by much less.
SHIFT, SHIFT_OF_ONE = 0.2, 0.75


def dense(name, seeds):
    """Standard errors forward and backward of 20 layers of 512 units with one function, over several seeds."""
    found = [], []
    for seed in seeds:
        ledger = ledger_of(wide(FUNCTIONS[name], seed), normal(128, 512, seed=seed + 500))
        found[0].extend(forward(ledger))
        found[1].extend(backward(ledger))
    return found


def test_twenty_layers_of_every_function_agree_with_theory_within_its_own_errors():
    """Of other weights and inputs for each function; by function, and all together: there the mean must be nearer to zero,
    and the errors neither too small nor too large."""
    ahead, back = [], []
    for number, name in enumerate(FUNCTIONS):
        one = dense(name, (100 * number, 100 * number + 1))
        for sigmas, together in zip(one, (ahead, back), strict=True):
            assert complaints(sigmas, SHIFT_OF_ONE) == [], name
            together.extend(sigmas)
    assert len(ahead) > 30 * len(FUNCTIONS)
    assert complaints(ahead, SHIFT, (0.5, 1.3)) == []
    assert complaints(back, SHIFT) == []


def test_a_theory_ten_percent_off_in_power_would_be_noticed(monkeypatch):
    monkeypatch.setattr(prediction, "_layer", heavier(1.1))
    ahead, back = dense("relu", range(3))
    assert complaints(ahead, SHIFT_OF_ONE) != []
    assert complaints(back, 0.1) != []


@pytest.mark.parametrize("factor", [0.4, 2.5])
def test_errors_that_are_far_too_small_or_too_large_would_be_noticed(monkeypatch, factor):
    error = rows._error
    monkeypatch.setattr(rows, "_error", lambda gain, variance: factor * error(gain, variance))
    ahead, _ = dense("relu", range(3))
    assert complaints(ahead, SHIFT_OF_ONE, (0.5, 1.3)) != []


def convolutional(name, seeds=range(2), activations=(nn.ReLU, nn.Tanh, nn.GELU)):
    """Standard errors forward and backward of convolutional networks, over activations and seeds."""
    found = [], []
    for number, activation in enumerate(activations):
        for seed in seeds:
            gain = keeping(activation())
            model = drawn(convolutions(activation)[name], seed + 10 * number, gain)
            ledger = ledger_of(model, images(seed + 10 * number + 500))
            found[0].extend(forward(ledger))
            found[1].extend(backward(ledger))
    return found


@pytest.mark.parametrize("name", convolutions())
def test_convolutions_padding_strides_normalisation_and_pooling(name):
    ahead, back = convolutional(name)
    assert complaints(ahead, 0.5) == []
    assert complaints(back, 0.25) == []


CONVOLUTION_MUTANTS = {
    "batch normalisation does nothing": ("batch norm", "_normalization", lambda op, readings: operators.View()),
    "the largest of four is their mean": ("max pooling", "_pool", lambda op, r: operators.Pool((2, 2), 2, 1 / 4)),
    "the mean of four is one of them": ("average pooling", "_pool", lambda op, r: operators.View(1 / 4)),
    "positions are independent": (
        "global pooling",
        "_pool",
        lambda op, r: operators.Scale(1 / math.prod(op.given[2:])),
    ),
}


@pytest.mark.parametrize("mutant", CONVOLUTION_MUTANTS)
def test_a_wrong_theory_of_convolutions_would_be_noticed(monkeypatch, mutant):
    name, function, replacement = CONVOLUTION_MUTANTS[mutant]
    monkeypatch.setattr(prediction, function, replacement)
    monkeypatch.setitem(prediction._TRANSLATIONS, "normalization", prediction._normalization)
    monkeypatch.setitem(prediction._TRANSLATIONS, "pool", prediction._pool)
    ahead, _ = convolutional(name)
    assert complaints(ahead, 0.5) != []


BORDERED = {
    "padding": lambda: nn.Conv2d(3, 512, 3, padding=1),
    "padding and stride": lambda: nn.Conv2d(3, 512, 5, 2, 2),
    "dilation": lambda: nn.Conv2d(3, 512, 3, padding=2, dilation=2),
    "transposed": lambda: nn.ConvTranspose2d(3, 512, 4, 2, 1),
    "transposed, with padding of the output": lambda: nn.ConvTranspose2d(3, 512, 3, 2, 1, 1),
}


def deviation(name):
    """Relative, of a small image's signal behind one layer, all of whose taps are as good as independent."""
    ledger = ledger_of(drawn(lambda: nn.Sequential(BORDERED[name](), nn.Flatten()), 2), images(5, side=6))
    return ledger.rows[0].gain / ledger.rows[0].expected_gain - 1


@pytest.mark.parametrize("name", BORDERED)
def test_the_share_of_taps_that_fall_on_the_border(monkeypatch, name):
    """Over 64 images of 36 positions in 3 channels a signal is known to sqrt(2 / (64 * 108)) / 2 = 0.9 %."""
    assert abs(deviation(name)) < 3 * 0.009
    layer = prediction._layer

    def by_the_book(op, readings, columns):
        return replace(layer(op, readings, columns), coverage=(), fan_in=op.fans.fan_in)

    monkeypatch.setattr(prediction, "_layer", by_the_book)
    assert abs(deviation(name)) > 0.05


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d])
def test_convolutions_of_other_dimensions(kind):
    def build():
        first = nn.Conv3d(2, 48, 3, padding=1) if kind is nn.Conv3d else nn.Conv1d(2, 48, 3, padding=1)
        return nn.Sequential(first, nn.ReLU(), kind(48, 48, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))

    def network(seed):
        def filled():
            model = build()
            model(torch.zeros(2, *shape))
            return model

        return drawn(filled, seed, 2**0.5)

    shape = (2, 6, 6, 6) if kind is nn.Conv3d else (2, 24)
    sigmas = [z for seed in range(4) for z in forward(ledger_of(network(seed), normal(64, *shape, seed=seed + 90)))]
    assert complaints(sigmas, 0.5) == []


RESIDUAL = ("plain", "norm", "pre", "pre norm", "scale", "gate")


@pytest.mark.parametrize("kind", RESIDUAL)
def test_residual_networks(kind):
    ahead, back = [], []
    for seed, activation in enumerate((torch.relu, torch.tanh, F.gelu)):
        ledger = ledger_of(drawn(lambda: ResidualDeep(kind, activation), seed), normal(128, 128, seed=seed + 40))  # noqa: B023
        ahead.extend(forward(ledger))
        back.extend(backward(ledger))
    assert complaints(ahead, 0.25) == []
    assert kind == "gate" or complaints(back, 0.1) == []
    assert len(ahead) == 3 * 18


def test_with_gates_of_zero_the_branches_give_and_get_nothing():
    ledger = ledger_of(drawn(lambda: ResidualDeep("gate")), normal(128, 128, seed=40))
    for first, second in zip(ledger.rows[1:-1:2], ledger.rows[2::2], strict=True):
        assert second.gain == pytest.approx(second.expected_gain)
        assert first.gradient == second.backward_gain == second.expected_backward_gain == 0
        assert first.backward_gain is None, "a ratio to nothing"


def one_way(model, x):
    """Standard errors of the backward gains where the loss is the mean of one output: all samples send back the same, and
    the errors, else upper bounds, are as large as they say."""
    return backward(measure(model, lambda output, y: output[:, 0].mean(), (x, torch.arange(len(x))))[1])


def joining(seeds=range(4)):
    found = []
    for seed in seeds:
        for activation in (torch.relu, torch.tanh):
            model = drawn(lambda: ResidualDeep("scale", activation, width=64), seed)  # noqa: B023
            found.extend(one_way(model, normal(128, 128, seed=seed + 40)))
    return found


def test_backward_errors_are_as_large_as_they_say_where_all_samples_send_back_the_same():
    sigmas = []
    for name in ("relu", "gelu"):
        for seed in range(3):
            sigmas.extend(one_way(wide(FUNCTIONS[name], seed), normal(128, 512, seed=seed + 40)))
    assert complaints(sigmas, 0.1, (0.5, 1.3)) == []
    assert complaints(joining(), 0.1, (0.5, 1.3)) == []


def test_gradients_that_join_mix(monkeypatch):
    """Of a small branch's gradient what counts is its product with the large one of the skip connection."""

    def alone(self, behind, edge):
        share = behind.power * edge.factor
        variance = self.variance + (behind.relative + edge.variance) * share**2
        return type(self)(self.power + share, variance)

    monkeypatch.setattr(network._Arrival, "joined", alone)
    assert complaints(joining(), 0.1, (0.5, 1.3)) != []


def test_a_branch_that_were_left_out_would_be_noticed(monkeypatch):
    class First(operators.View):
        def backward(self, fields):
            return [1.0, math.nan]

    monkeypatch.setitem(prediction._TRANSLATIONS, "add", lambda op, readings: First())
    ledger = ledger_of(drawn(lambda: ResidualDeep("plain")), normal(128, 128, seed=40))
    assert complaints(forward(ledger), 0.25) != []


def test_what_activations_behind_the_sum_make_of_it_is_known_to_a_decibel():
    """There the sum's parts are no longer Gaussian, as theory takes them to be: it expects up to 1.5 dB less than there is."""
    for activation in (torch.relu, torch.tanh, F.gelu):
        ledger = ledger_of(drawn(lambda: ResidualDeep("post", activation)), normal(128, 128, seed=40))  # noqa: B023
        for row in ledger.rows:
            assert abs(20 * math.log10(row.gain / row.expected_gain)) < 1.6


@pytest.mark.parametrize("build", [Encoder, lambda: Encoder(causal=True, dropout=0.0)], ids=["all see all", "causal"])
def test_attention_layer_normalisation_dropout_and_positions(build):
    ahead, back = [], []
    for seed in range(3):
        model = drawn(build, seed)
        with torch.no_grad():
            model.positions.mul_(20)  # half as large as the tokens
            for block in model.blocks:
                block["qkv"].weight.mul_(0.7)  # far from a single token that wins
        ledger = ledger_of(model, normal(64, 16, 64, seed=seed + 70))
        ahead.extend(forward(ledger))
        back.extend(backward(ledger))
    assert len(ahead) == 3 * 10
    assert complaints(ahead, 0.4) == []
    assert complaints(back, 0.1) == []


def test_attention_that_picked_single_tokens_would_be_noticed(monkeypatch):
    values = operators.View()
    monkeypatch.setattr(values.__class__, "forward", lambda self, fields: fields[-1])
    monkeypatch.setattr(values.__class__, "backward", lambda self, fields: [math.nan] * len(fields))
    monkeypatch.setitem(prediction._TRANSLATIONS, "attention", lambda op, readings: values)
    ahead = forward(ledger_of(drawn(Encoder), normal(64, 16, 64, seed=70)))
    assert max(map(abs, ahead)) > 10


def test_no_prediction_where_single_tokens_win_and_none_is_missed_behind():
    model = drawn(Encoder)
    with torch.no_grad():
        for block in model.blocks:
            block["qkv"].weight.mul_(2)
    ledger = ledger_of(model, normal(64, 16, 64, seed=70))
    expected = [row.expected_gain for row in ledger.rows]
    assert [row.name for row in ledger.rows if row.expected_gain is None] == ["blocks.0.qkv", "blocks.1.qkv"], expected
    out = ledger.row("blocks.0.out")
    assert out.backward_gain_error / out.backward_gain > 0.02, "its units are as few as they were"


def test_concatenation_with_dropout():
    ahead, back = [], []
    for seed in range(3):
        ledger = ledger_of(drawn(Joined, seed), normal(128, 128, seed=seed + 60))
        ahead.extend(forward(ledger))
        back.extend(backward(ledger))
    assert complaints(ahead, 0.1) == []
    assert complaints(back, 0.1) == []


def test_dropout_that_were_overlooked_would_be_noticed(monkeypatch):
    monkeypatch.setitem(prediction._TRANSLATIONS, "dropout", lambda op, readings: operators.View())
    sigmas = [z for seed in range(3) for z in forward(ledger_of(drawn(Joined, seed), normal(128, 128, seed=seed + 60)))]
    assert complaints(sigmas, 0.1) != []
