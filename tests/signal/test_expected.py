"""predict(): what theory expects from the input alone, against what is then measured."""

import math

import pytest
import torch
from torch import nn

from gainstage.errors import BadInput
from gainstage.signal import expected, measure, predict, prediction
from tests.networks import (
    Convolutional,
    Encoder,
    Function,
    Joined,
    ResidualDeep,
    SqueezeExcitation,
    Tokens,
    TwoInputs,
    convolutions,
    deep,
    drawn,
    keeping,
    wide,
)
from tests.signal.calibration import FUNCTIONS, forecast, heavier, images
from tests.tools import normal, quiet


def encoder(seed):
    """With logits far from a single token that wins."""
    model = drawn(Encoder, seed)
    with torch.no_grad():
        for block in model.blocks:
            block["qkv"].weight.mul_(0.7)
    return model, normal(64, 16, 64, seed=seed + 70)


def convolutional(name, activation):
    def make(seed):
        return drawn(convolutions(activation)[name], seed, keeping(activation())), images(seed + 500)

    return make


NETWORKS = {
    **{name: lambda seed, f=f: (wide(f, seed), normal(128, 512, seed=seed + 500)) for name, f in FUNCTIONS.items()},
    **{f"{name}, relu": convolutional(name, nn.ReLU) for name in convolutions() if name != "global pooling"},
    **{f"{name}, tanh": convolutional(name, nn.Tanh) for name in convolutions()},
    **{
        f"residual {kind}": lambda seed, kind=kind: (
            drawn(lambda: ResidualDeep(kind), seed),
            normal(128, 128, seed=seed + 40),
        )
        for kind in ("plain", "norm", "pre", "pre norm", "scale", "gate")
    },
    "encoder": encoder,
    "concatenation": lambda seed: (drawn(Joined, seed), normal(128, 128, seed=seed + 60)),
    "squeeze and excitation": lambda seed: (
        drawn(lambda: SqueezeExcitation(256, 64, 10), seed),
        normal(128, 20, seed=seed + 7),
    ),
}


def furthest(name, seeds):
    """By quantity, of signals, gradients and similarities: how many of the prediction's errors it is off at most."""
    found = [forecast(*NETWORKS[name](seed)) for seed in seeds]
    return {quantity: max(abs(z) for one in found for z in one[quantity]) for quantity in found[0]}


@pytest.mark.parametrize("name", NETWORKS)
def test_from_the_input_alone_all_is_predicted_within_three_of_its_own_errors(name):
    """Signals, gradients and similarities of every stage of several networks each: errors are upper bounds."""
    found = furthest(name, range(20, 23))
    assert {quantity: round(most, 1) for quantity, most in found.items() if most > 3} == {}


# the mutant's theory is 20 % off in the power of every layer
@pytest.mark.parametrize("name", ["relu", "tanh", "residual plain", "residual pre"])
def test_a_theory_that_is_off_at_every_layer_would_be_noticed(monkeypatch, name):
    monkeypatch.setattr(prediction, "_layer", heavier(1.2))
    found = furthest(name, range(20, 23))
    assert max(found["signal"], found["gradient"]) > 3


def test_a_similarity_that_stayed_where_it_was_would_be_noticed(monkeypatch):
    monkeypatch.setattr(expected.Theory, "level", lambda self, operation: self.forward.predicted[1])
    assert furthest("relu", range(20, 23))["similarity"] > 3


def test_errors_shrink_with_the_width():
    narrow, broad = (predict(wide(torch.relu, width=w, depth=4), normal(64, w))[1] for w in (64, 256))
    for one, other in zip(narrow.rows[:-1], broad.rows[:-1], strict=True):
        assert one.signal_error == pytest.approx(2 * other.signal_error, rel=0.05)
    assert narrow.rows[0].gradient_error == pytest.approx(2 * broad.rows[0].gradient_error, rel=0.05)


def test_the_first_layers_of_a_relu_network_by_hand():
    """Two He layers on independent inputs of power 1 without biases: level 1, and E max(z, 0)^2 = 1/2 a unit behind."""
    model = drawn(lambda: nn.Sequential(nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 400)), gain=2**0.5, bias=0.0)
    rows = predict(model, normal(128, 400, seed=3))[1].rows
    first, second = rows
    assert first.signal**2 + first.offset**2 == pytest.approx(1, rel=0.02)
    assert first.offset**2 == pytest.approx(1 / math.pi, rel=0.02)  # (E max(z, 0))^2 with z of variance 2
    assert first.similarity == pytest.approx(1 / math.pi, abs=0.01)
    assert second.gradient == 1
    assert first.gradient == pytest.approx(2**0.5, rel=0.02), "400 times weights of 2/400"


def test_it_names_stages_and_their_coverage_and_becomes_data():
    graph, found = predict(deep(2, "tanh"), normal(8, 20))
    assert [row.name for row in found.rows] == [stage.name for stage in graph.stages]
    assert found.row("output").description == "linear"
    assert found.to_dict()["coverage"] == found.coverage == "5 of 5 operations understood"
    assert found.to_dict()["stages"][0]["signal"] == found.rows[0].signal
    with pytest.raises(KeyError, match="hidden1, hidden2, output"):
        found.row("hidden3")


def test_nothing_is_predicted_behind_what_is_not_understood():
    unknown = Function(lambda z: z.cumsum(1))
    model = quiet(lambda: nn.Sequential(nn.Linear(20, 8), nn.Linear(8, 8), unknown, nn.ReLU(), nn.Linear(8, 3)))
    rows = predict(model, normal(8, 20))[1].rows
    assert [row.signal is None for row in rows] == [row.similarity is None for row in rows] == [False, True, True]
    assert [row.gradient is None for row in rows] == [True, False, False], "it lies on the way back to the first"


def test_what_takes_no_part_in_the_output_has_no_gradient():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.aside, self.last = nn.Linear(20, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            h = torch.relu(self.first(x))
            self.aside(h)
            return self.last(h)

    assert predict(quiet(Aside), normal(8, 20))[1].row("aside").gradient is None


INPUTS = {
    "integers": (Tokens, torch.arange(60).reshape(20, 3) % 11),
    "two": (TwoInputs, (normal(16, 20), normal(16, 12, seed=1))),
    "two by name": (TwoInputs, {"right": normal(16, 12, seed=1), "left": normal(16, 20)}),
    "one number a sample": (
        lambda: nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 4), nn.Linear(4, 3)),
        normal(16),
    ),
    "one sample": (lambda: nn.Linear(20, 3), normal(1, 20)),
    "two samples": (Convolutional, normal(2, 1, 8, 8)),
    "evaluation": (lambda: Convolutional().eval(), normal(16, 1, 8, 8)),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_of_all_kinds(name):
    build, x = INPUTS[name]
    graph, found = predict(quiet(build), x)
    assert len(found.rows) == len(graph.stages) > 0
    known = {"two", "two by name", "one number a sample", "two samples"}
    assert (found.rows[0].signal is not None) == (name in known), (
        "else there is nothing to start from, or no batch to go by"
    )
    assert found.rows[-1].gradient == 1, "relative to itself"


@pytest.mark.parametrize("build", [lambda: deep(2, "relu"), Convolutional], ids=["dense", "convolutional"])
def test_on_the_meta_device_there_are_no_numbers_but_there_is_a_graph(build):
    model = quiet(build).to("meta")
    x = torch.empty(4, *((20,) if isinstance(model, nn.Sequential) else (1, 8, 8)), device="meta")
    graph, found = predict(model, x)
    assert not graph.unknown
    assert {row.signal for row in found.rows} == {None}


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38, 0.0])
def test_weights_of_no_use_get_no_numbers_rather_than_an_error_or_a_warning(value):
    model = deep(3, "gelu")
    nn.init.constant_(model.hidden2.weight, value)
    rows = predict(model, normal(16, 20))[1].rows
    assert rows[0].signal > 0
    for row in rows[1:]:
        assert row.signal is None or row.signal == 0 or value == 1e38


def test_it_draws_no_conclusions_from_a_model_that_fails():
    with pytest.raises(BadInput, match="forward failed"):
        predict(deep(1, "relu"), normal(4, 21))


def test_a_linear_network_is_predicted_to_the_last_digit_of_its_weights_sizes():
    """Nothing but products of mean squares: by hand."""
    model = drawn(lambda: nn.Sequential(nn.Linear(30, 50), nn.Linear(50, 7)), bias=0.3)
    x = 2 * normal(64, 30, seed=8)
    sizes = [float(p.detach().double().square().mean()) for p in (model[0].weight, model[0].bias, model[1].weight)]
    rows = predict(model, x)[1].rows
    signal = float(x.double().var(0).mean()) * 30 * sizes[0]
    offset = max(float(x.double().square().mean()) - float(x.double().var(0).mean()), 0.0) * 30 * sizes[0] + sizes[1]
    assert rows[0].signal == pytest.approx(math.sqrt(signal), rel=1e-5)
    assert rows[0].offset == pytest.approx(math.sqrt(offset), rel=1e-4)
    assert rows[1].signal == pytest.approx(math.sqrt(signal * 50 * sizes[2]), rel=1e-5)
    assert rows[0].gradient == pytest.approx(math.sqrt(7 * sizes[2]), rel=1e-5)
    assert rows[0].signal_error == pytest.approx(math.sqrt(2 / 50) / 2)
    assert rows[1].signal_error == pytest.approx(math.sqrt(2 / 50 + 2 / 7) / 2)
    assert rows[0].gradient_error == pytest.approx(math.sqrt(2 / 50) / 2)


def test_it_agrees_with_the_ledgers_theory_where_nothing_deviates():
    model = drawn(lambda: nn.Sequential(nn.Linear(20, 64), nn.Tanh()))
    x = normal(64, 20, seed=3)
    row = measure(model, lambda output, y: output.square().mean(), (x, torch.arange(64)))[1].rows[0]
    size = float(x.var(0).mean().sqrt())
    assert predict(model, x)[1].rows[0].signal == pytest.approx(row.expected_gain * size, rel=1e-5)
