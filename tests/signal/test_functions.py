"""Which function a stage computes, however it is written."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gainstage.signal import measure, prediction, trace
from gainstage.signal.functions import activation_in, constants_in, has_mixed_function
from gainstage.theory import lookup, moments, operators
from tests.networks import Function, ResidualDeep, SqueezeExcitation, drawn
from tests.signal.calibration import backward, complaints, forward, ledger_of
from tests.tools import normal, quiet


def sine_in_place(z):
    return z.sin_()


def relu_by_index(z):
    z = z.clone()
    z[z < 0] = 0
    return z


WRITTEN = {
    "gelu": (lambda z: 0.5 * z * (1 + torch.erf(z / math.sqrt(2))), F.gelu),
    "gelu by tanh": (
        lambda z: 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
        lambda z: F.gelu(z, approximate="tanh"),
    ),
    "silu": (lambda z: z * torch.sigmoid(z), F.silu),
    "silu by exp": (lambda z: z / (1 + torch.exp(-z)), F.silu),
    "mish": (lambda z: z * torch.tanh(F.softplus(z)), F.mish),
    "hardswish": (lambda z: z * F.relu6(z + 3) / 6, F.hardswish),
    "leaky relu by where": (lambda z: torch.where(z > 0, z, 0.1 * z), lambda z: F.leaky_relu(z, 0.1)),
    "leaky relu by maximum": (lambda z: torch.maximum(z, 0.2 * z), lambda z: F.leaky_relu(z, 0.2)),
    "relu by a mask": (lambda z: z * (z > 0), torch.relu),
    "relu by filling": (lambda z: z.masked_fill(z < 0, 0.0), torch.relu),
    "relu by clamp": (lambda z: z.clamp(min=0), torch.relu),
    "sine in place": (sine_in_place, torch.sin),
    "squared relu": (lambda z: torch.relu(z) ** 2, lambda z: torch.relu(z) ** 2),
    "log of the logistic function": (F.logsigmoid, F.logsigmoid),
    "one less the logistic function": (lambda z: 1 - torch.sigmoid(z), lambda z: torch.sigmoid(-z)),
    "with a constant of a tensor": (lambda z: torch.relu(z) * torch.tensor(2.0), lambda z: 2 * torch.relu(z)),
    "reshaped in between": (lambda z: (z.view(-1, 4, 8) * torch.sigmoid(z).view(-1, 4, 8)).flatten(1), F.silu),
}


def stage_of(function, width=32):
    model = nn.Sequential(quiet(lambda: nn.Linear(20, width)), Function(function))
    return trace(model, normal(16, 20)).stages[0]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_function_written_by_hand_is_found_whole(name):
    written, same = WRITTEN[name]
    found = stage_of(written).activation
    z = torch.linspace(-4, 4, 41, dtype=torch.float64)
    assert torch.allclose(found.function(z.clone()), same(z), atol=1e-7)


def test_the_numbers_it_is_tested_on_tell_functions_apart():
    z = torch.linspace(-4, 4, 41, dtype=torch.float64)
    assert not torch.allclose(stage_of(WRITTEN["silu"][0]).activation.function(z), F.gelu(z), atol=1e-7)


def test_equal_functions_are_equal_so_that_theory_works_them_out_once():
    one, other = (stage_of(WRITTEN["gelu"][0], width).activation for width in (8, 32))
    assert one == other
    assert moments(one) is moments(other)
    assert one != stage_of(WRITTEN["silu"][0]).activation


def agreement(name):
    """Standard errors of layers with a function written by hand, for samples of one length."""
    found = [], []
    for seed in range(3):
        parts = [part for _ in range(4) for part in (quiet(lambda: nn.Linear(256, 256)), Function(WRITTEN[name][0]))]
        model = drawn(lambda: nn.Sequential(*parts, nn.Linear(256, 10)), seed, 1.2)  # noqa: B023
        x = normal(128, 256, seed=seed + 30)
        ledger = ledger_of(model, x / x.norm(dim=1, keepdim=True) * 16)
        found[0].extend(forward(ledger))
        found[1].extend(backward(ledger))
    return found


@pytest.mark.parametrize("name", ["gelu", "silu", "mish", "leaky relu by where", "sine in place", "relu by a mask"])
def test_layers_with_a_function_written_by_hand_agree_with_theory(name):
    ahead, back = agreement(name)
    assert complaints(ahead, 0.75, (0.0, 1.5)) == []
    assert complaints(back, 0.25) == []


def test_a_function_taken_for_its_last_step_but_one_would_be_noticed(monkeypatch):
    """x * sigmoid(x) for sigmoid(x)."""

    class Last(operators.View):
        def forward(self, fields):
            return fields[-1]

        def backward(self, fields):
            return [math.nan, 1.0]

    monkeypatch.setitem(prediction._TRANSLATIONS, "multiply", lambda op, readings: Last())
    assert complaints(agreement("silu")[0], 0.75, (0.0, 1.5)) != []


def test_a_silu_written_by_hand_is_no_saturated_logistic_unit():
    model = drawn(lambda: nn.Sequential(nn.Linear(20, 64), Function(WRITTEN["silu"][0]), nn.Linear(64, 3)), gain=20.0)
    row = measure(model, F.cross_entropy, (normal(64, 20, seed=5), torch.arange(64) % 3))[1].rows[0]
    assert row.saturated is None
    logistic = drawn(lambda: nn.Sequential(nn.Linear(20, 64), nn.Sigmoid(), nn.Linear(64, 3)), gain=20.0)
    row = measure(logistic, F.cross_entropy, (normal(64, 20, seed=5), torch.arange(64) % 3))[1].rows[0]
    assert row.saturated > 0.5


def test_a_known_activation_is_the_known_one_unless_something_affine_stands_in_front_or_behind():
    assert stage_of(torch.tanh).activation is lookup("tanh")
    assert stage_of(nn.LeakyReLU(0.3)).activation.family == "relu"
    for function in (lambda z: torch.relu(z + 1), lambda z: 1 + 2 * torch.relu(z)):
        found = stage_of(function).activation
        assert found.name != "relu"
        assert float(found.function(torch.tensor(3.0))) == float(function(torch.tensor(3.0)))


class Snake(nn.Module):
    """A periodic activation with one frequency a channel, all alike before training (Ziyin 2020)."""

    def __init__(self, channels):
        super().__init__()
        self.frequency = nn.Parameter(torch.ones(channels))

    def forward(self, z):
        return z + torch.sin(self.frequency * z) ** 2 / self.frequency


def test_parameters_inside_a_function_count_with_the_value_they_have():
    found = stage_of(Snake(32)).activation
    z = normal(100).double()
    assert torch.allclose(found.function(z), z + z.sin() ** 2)
    swish = stage_of(lambda z: torch.tensor(1.5) * z * torch.sigmoid(torch.full((1,), 2.0) * z)).activation
    assert torch.allclose(swish.function(z), 1.5 * z * torch.sigmoid(2 * z))


class WithParameters(nn.Module):
    """A function with parameters of its own."""

    def __init__(self, function, *parameters):
        super().__init__()
        self.function, self.parameters_inside = function, nn.ParameterList(map(nn.Parameter, parameters))

    def forward(self, z):
        return self.function(z, *self.parameters_inside)


def stage_with(function, *parameters):
    model = nn.Sequential(quiet(lambda: nn.Linear(20, 32)), WithParameters(function, *parameters))
    return trace(model, normal(16, 20)).stages[0]


EACH = torch.linspace(0.5, 2.0, 32)  # one number a unit
MIXED = {
    "snake": lambda z, a: z + torch.sin(a * z) ** 2 / a,
    "swish": lambda z, a: z * torch.sigmoid(a * z),
    "leaky relu by maximum": lambda z, a: torch.maximum(z, a / 4 * z),
    "leaky relu by where": lambda z, a: torch.where(z > 0, z, a / 4 * z),
    "jump": lambda z, a: z * (z > a),
    "power": lambda z, a: z.abs() ** a,
    "bound": lambda z, a: z.clamp(max=a),
    "bent sum": lambda z, a: z + a * torch.relu(z),
}


@pytest.mark.parametrize("function", MIXED.values(), ids=MIXED)
def test_parameters_inside_that_differ_leave_no_function_of_one_number(function):
    stage = stage_with(function, EACH)
    assert has_mixed_function(stage.operations)
    assert stage.activation is None
    alike = stage_with(function, torch.full((32,), 1.5))
    assert not has_mixed_function(alike.operations)
    assert torch.allclose(alike.activation.function(EACH.double()), function(EACH.double(), 1.5))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda z, a: torch.relu(a * z + a), "relu"),
        (lambda z, a: a * torch.relu(z) + a, "relu"),
        (lambda z, a: a * torch.tanh(a * z) + a, "tanh"),
        (lambda z, a: a * z + z - a, None),
        (lambda z, a: torch.relu(z) * (a * F.layer_norm(z, (32,))), "relu"),
        (lambda z, a: MIXED["snake"](F.layer_norm(torch.relu(z), (32,)), a), "relu"),
        (lambda z, a: (z > a, torch.relu(z))[1], "relu"),
    ],
    ids=["in front", "behind", "both", "affine", "of another tensor", "of a later function", "compared with"],
)
def test_parameters_around_a_function_are_not_inside(function, name):
    stage = stage_with(function, EACH)
    assert not has_mixed_function(stage.operations)
    assert (stage.activation and stage.activation.name) == name


def test_numbers_that_differ_and_cannot_be_learnt_are_no_parameters():
    stage = stage_of(lambda z: torch.relu(z) * torch.arange(32.0) + z)
    assert not has_mixed_function(stage.operations)
    assert stage.activation is lookup("relu")


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_closed_gate_hides_no_activation(value):
    """One more branch of ReZero and LayerScale: x + a f(x), where a is zero before training."""
    for gate in (torch.full((1,), value), torch.full((32,), value)):
        stage = stage_with(lambda z, a: a * F.gelu(z), gate)
        assert stage.activation.family in ("relu", "other")
        assert moments(stage.activation).second > 0
        assert not constants_in(stage.operations)


def test_a_mask_of_zeros_is_a_gate_too():
    stage = stage_of(lambda z: F.gelu(z) * torch.zeros(16, 1))
    assert stage.activation is lookup("gelu")
    assert not constants_in(stage.operations)


CONSTANT = {
    "zero": lambda z: z * 0,
    "behind an activation": lambda z: torch.relu(z) * 0 + 1,
    "a difference": lambda z: torch.tanh(z) - torch.tanh(z),
    "bounds": lambda z: z.clamp(1, 1),
}


@pytest.mark.parametrize("function", CONSTANT.values(), ids=CONSTANT)
def test_a_constant_is_told_from_no_activation(function):
    stage = stage_of(function)
    assert stage.activation is None
    assert stage.operations[-1].index in constants_in(stage.operations)


@pytest.mark.parametrize("function", [lambda z: z, torch.relu, lambda z: torch.relu(z - 100), torch.sign])
def test_what_hardly_depends_on_its_input_is_no_constant(function):
    assert not constants_in(stage_of(function).operations)


def test_prelu_has_the_slope_it_learnt():
    prelu = nn.PReLU()
    nn.init.constant_(prelu.weight, 0.4)
    found = stage_of(prelu).activation
    assert (found.name, found.family) == ("prelu", "relu")
    assert float(found.function(torch.tensor(-2.0))) == pytest.approx(-0.8)


@pytest.mark.parametrize(
    "function",
    [
        lambda z: z,
        lambda z: 2 * z - 1,
        lambda z: torch.softmax(z, 1),
        lambda z: z.cumsum(1),
        lambda z: z > 0,
        relu_by_index,  # changes z behind the trace's back
        lambda z: z * torch.arange(32.0),
    ],
)
def test_what_is_no_function_of_one_number_or_an_affine_one_is_none(function):
    stage = stage_of(function)
    assert stage.activation is None
    assert activation_in(stage.operations) is None


def test_what_is_written_into_a_tensor_is_not_overlooked():
    """z[z < 0] = 0 puts out nothing, and was taken for nothing: 40 standard errors off."""
    model = drawn(lambda: nn.Sequential(nn.Linear(20, 64), Function(relu_by_index), nn.Linear(64, 3)))
    graph, ledger = measure(model, F.cross_entropy, (normal(64, 20, seed=5), torch.arange(64) % 3))
    assert [op.name for op in graph.operations if op.kind == "scatter"] == ["setitem"]
    assert ledger.rows[0].expected_gain is None
    relu = nn.Sequential(model[0], nn.ReLU(), model[2])
    expected = measure(relu, F.cross_entropy, (normal(64, 20, seed=5), torch.arange(64) % 3))[1]
    assert [row.gain for row in ledger.rows] == pytest.approx([row.gain for row in expected.rows])


def test_relu_behind_a_residual_sum_is_the_stages_function():
    graph = trace(quiet(lambda: ResidualDeep("post", blocks=2, width=16)), normal(4, 128))
    second = graph.stages[2]
    assert second.description == "linear + add + relu"
    assert second.activation is lookup("relu")


HALVES = [
    lambda z: z.chunk(2, 1),
    lambda z: z.split(z.shape[1] // 2, 1),
    lambda z: (z[:, : z.shape[1] // 2], z[:, z.shape[1] // 2 :]),
    lambda z: (z[:, ::2], z[:, 1::2]),
]


@pytest.mark.parametrize("share", HALVES)
def test_a_gate_out_of_one_half_is_a_function_of_that_half_alone(share):
    def gated(z):
        values, gates = share(z)
        return values * torch.sigmoid(gates)

    assert stage_of(gated).activation == lookup("logistic")
    ahead = []
    for seed in range(4):
        parts = lambda: [p for _ in range(3) for p in (nn.Linear(128, 256), Function(gated))]  # noqa: E731
        model = drawn(lambda: nn.Sequential(*parts(), nn.Linear(128, 10)), seed, 2.0)  # noqa: B023
        ahead.extend(forward(ledger_of(model, normal(128, 128, seed=seed + 30))))
    assert complaints(ahead, 0.5) == []


@pytest.mark.parametrize("moved", [lambda z: z.flip(1), lambda z: z.roll(1, 1), lambda z: z[:, :1]])
def test_numbers_that_changed_places_are_others(moved):
    assert stage_of(lambda z: moved(z) * torch.sigmoid(z)).activation == lookup("logistic")


def test_a_gate_on_another_layers_output_is_not_part_of_the_function():
    graph = trace(quiet(SqueezeExcitation), normal(16, 20))
    assert [stage.activation and stage.activation.name for stage in graph.stages] == ["relu", "relu", "logistic", None]
