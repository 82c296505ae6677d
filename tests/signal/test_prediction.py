"""Operations of a trace as operators of the theory, one by one."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gainstage.nn.activations import MODULES
from gainstage.signal import measure, prediction, trace
from gainstage.signal.prediction import columns_of, nodes_of, source_fields
from gainstage.theory import operators
from tests.networks import (
    Function,
    SharedBlocks,
    TwoInputs,
    drawn,
)
from tests.signal.calibration import backward, complaints, forward, images, ledger_of
from tests.tools import normal, quiet

STAGES = {
    "alpha dropout": [nn.SELU(), nn.AlphaDropout(0.3)],
    "dropout in evaluation": [nn.ReLU(), nn.Dropout(0.5).eval()],
    "rms norm": [nn.RMSNorm(256), nn.SiLU()],
    "group norm": [nn.GroupNorm(8, 256), nn.ReLU()],
    "batch norm": [nn.BatchNorm1d(256), nn.ReLU()],
    "batch norm behind": [nn.ReLU(), nn.BatchNorm1d(256)],
    "a constant": [Function(lambda z: 1.5 * torch.relu(z) - 0.2)],
}


@pytest.mark.parametrize("name", STAGES)
def test_other_operations_behind_a_layer(name):
    def build():
        blocks = [part for _ in range(4) for part in (nn.Linear(256, 256), *STAGES[name])]
        return nn.Sequential(*blocks, nn.Linear(256, 10))

    ahead, back = [], []
    for seed in range(3):
        model = drawn(build, seed, 1.2)
        ledger = ledger_of(model, normal(128, 256, seed=seed + 80))
        ahead.extend(forward(ledger))
        back.extend(backward(ledger))
    assert complaints(ahead, 0.5) == []
    assert complaints(back, 0.25) == []


@pytest.mark.parametrize("samples", [4, 8, 32])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Identity])
def test_batch_normalisation_divides_by_the_biased_variance_of_few_samples(samples, activation):
    """The signal, which is not biased, is larger by samples / (samples - 1): 1.2 dB for four."""

    def build():
        parts = [part for _ in range(4) for part in (nn.Linear(256, 256), nn.BatchNorm1d(256), activation())]
        return nn.Sequential(*parts, nn.Linear(256, 10))

    ahead = [
        z for seed in range(3) for z in forward(ledger_of(drawn(build, seed), normal(samples, 256, seed=seed + 80)))
    ]
    assert complaints(ahead, 0.2) == []


def test_batch_normalisation_of_endlessly_many_samples_would_be_noticed(monkeypatch):
    normalization = prediction._normalization

    def endless(op, readings):
        return replace(normalization(op, readings), samples=math.inf)

    monkeypatch.setitem(prediction._TRANSLATIONS, "normalization", endless)
    with pytest.raises(AssertionError):
        test_batch_normalisation_divides_by_the_biased_variance_of_few_samples(4, nn.ReLU)


def test_two_inputs_are_two_fields_each_of_its_own_size():
    """With one field for both, the second layer's gain was off by the ratio of their sizes."""
    x = normal(128, 20), 100 * normal(128, 12, seed=1)
    model = drawn(lambda: TwoInputs(512), 3, 2**0.5)
    ledger = measure(model, F.cross_entropy, (x, torch.arange(128) % 3))[1]
    sizes = [float(part.var(0).mean().sqrt()) for part in x]
    weights = [float(layer.weight.detach().square().sum(1).mean().sqrt()) for layer in (model.left, model.right)]
    assert ledger.row("left").signal == pytest.approx(sizes[0] * weights[0], rel=0.1)
    assert ledger.row("left").gain == pytest.approx(ledger.row("left").signal / sizes[0], rel=1e-4)
    assert ledger.row("right").gain == pytest.approx(ledger.row("right").signal / sizes[1], rel=1e-4)
    assert all(abs(row.gain_sigmas) < 3 for row in ledger.rows)
    keywords = {"right": x[1], "left": x[0]}
    other = measure(model, F.cross_entropy, (keywords, torch.arange(128) % 3))[1]
    assert other.row("right").gain == ledger.row("right").gain
    assert [abs(row.gain_sigmas) < 3 for row in other.rows] == [True] * 4


def test_no_prediction_where_shared_weights_meet_themselves():
    """What they add is not independent of what they added before: 30 standard errors off, if taken as such."""
    ledger = ledger_of(drawn(SharedBlocks), normal(128, 64, seed=70))
    seconds = [row for row in ledger.rows if row.name.startswith("second")]
    assert [row.expected_gain is None for row in seconds] == [False] + [True] * 5
    assert all(row.expected_backward_gain is None for row in ledger.rows[1:-1])
    others = [row for row in ledger.rows if not row.name.startswith("second")]
    assert all(abs(row.gain_sigmas) < 4 for row in others)


def test_shared_weights_in_a_row_are_predicted(monkeypatch):
    layer = quiet(lambda: nn.Linear(256, 256))
    model = drawn(lambda: nn.Sequential(nn.Linear(64, 256), *[layer, nn.Tanh()] * 8, nn.Linear(256, 10)), 1, 1.3)
    ledger = ledger_of(model, normal(128, 64, seed=70))
    assert complaints(forward(ledger) + backward(ledger), 0.4) == []


def test_what_is_sent_to_all_positions_comes_back_unpredicted():
    """Gradients at different positions are alike, more or less: of a gate's sum over them theory knows nothing."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.gate, self.head = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 1), nn.Linear(32, 10)

        def forward(self, x):
            h = torch.relu(self.stem(x))
            return self.head((h * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(h, 1)))).mean((2, 3)))

    ledger = ledger_of(drawn(Gated), images(9))
    assert ledger.row("gate").backward_gain > 0
    assert ledger.row("gate").expected_backward_gain is None
    assert abs(ledger.row("gate").gain_sigmas) < 3


# ---------------------------------------------------------------- from the graph to the theory


def nodes(model, x, readings=None):
    graph = trace(model, x)
    known = {("weight", stage.index): 1.0 for stage in graph.stages}
    return graph, nodes_of(graph, {**known, **(readings or {})}, columns_of(graph))


def operator_of(*modules, x=None, readings=None):
    """The operator of the operation behind a layer."""
    x = normal(4, 3, 8, 8) if x is None else x
    first = quiet(lambda: nn.Conv2d(3, 8, 3, padding=1) if x.ndim == 4 else nn.Linear(x.shape[-1], 8))
    return nodes(nn.Sequential(first, *modules), x, readings)[1][1].operator


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"identity", "softmax", "tailored_leaky_relu"}))
def test_every_module_for_an_activation_is_a_pointwise_function(name):
    assert isinstance(operator_of(MODULES[name](), x=normal(4, 8)), operators.Pointwise)


@pytest.mark.parametrize(
    ("module", "operator"),
    [
        (nn.MaxPool2d(3, 2, 1), operators.Pool((3, 3), 2, 1 / 4, True)),
        (nn.AvgPool2d(2), operators.Pool((2, 2), 2, 1 / 4)),
        (nn.AdaptiveAvgPool2d(1), operators.Pool((8, 8), 8, 1 / 64, False, True)),
        (nn.AdaptiveMaxPool2d(2), operators.Pool((4, 4), 4, 1 / 16, True)),
        (Function(lambda x: x.mean((2, 3))), operators.Pool((8, 8), 1, 1 / 64, False, True)),
        (Function(lambda x: x.mean(1)), operators.Unknown()),
        (nn.LPPool2d(2, 2), operators.Unknown()),
        (nn.Flatten(), operators.View()),
        (Function(lambda x: x[:, :2]), operators.View(1 / 4)),
        (nn.ZeroPad2d(2), operators.Padding(64 / 144)),
        (nn.ReflectionPad2d(2), operators.View(144 / 64)),
        (nn.Dropout2d(0.3), operators.Dropout(0.3, False, True)),
        (nn.Dropout(0.3).eval(), operators.View()),
        (nn.GroupNorm(2, 8), operators.GroupNorm(4.0, True)),
        (nn.InstanceNorm2d(8), operators.GroupNorm(1.0, True)),
        (nn.BatchNorm2d(8), operators.BatchNorm(samples=4)),
        (nn.BatchNorm2d(8).eval(), operators.Unknown()),
        (nn.LocalResponseNorm(2), operators.Unknown()),
        (nn.Softmax(1), operators.Unknown()),
        (Function(lambda x: torch.fft.fft(x).real), operators.Unknown()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_operations_and_their_operators(module, operator):
    assert operator_of(module) == operator


def test_constants_add_and_multiply_with_the_sizes_that_were_read():
    scale = operator_of(Function(lambda x: x * torch.arange(8.0)), x=normal(4, 8), readings={("constant", 1): 0.25})
    assert scale == operators.Scale(0.25)
    readings = {("constant", 1): 0.25, ("constant_mean", 1): 0.1, ("constant_by_position", 1): 1.0}
    shift = operator_of(Function(lambda x: x + torch.arange(40.0).reshape(5, 8)), x=normal(4, 5, 8), readings=readings)
    assert shift == operators.Shift(0.25, 0.1, True)
    assert operator_of(Function(lambda x: x + torch.arange(8.0)), x=normal(4, 8)) == operators.Unknown(), "not read"


def test_layers_have_the_fans_and_the_padding_that_their_shapes_say():
    convolution = nodes(quiet(lambda: nn.Conv2d(3, 8, 3, 2, 1)), normal(4, 3, 8, 8))[1][0].operator
    share = (1 - 1 / 12) ** 2  # of a row's 4 x 3 taps one falls on the padding
    assert (convolution.fan_in, convolution.stride) == (27, 2)
    assert convolution.coverage[0] == pytest.approx(share)
    assert convolution.fan_out == pytest.approx(27 * share * (8 * 16) / (3 * 64))
    transposed = nodes(quiet(lambda: nn.ConvTranspose2d(3, 8, 4, 2, 1)), normal(4, 3, 8, 8))[1][0].operator
    kept = (30 / 32) ** 2  # of a row's 8 x 4 taps two fall outside
    assert transposed.fan_out == pytest.approx(8 * 16 * kept)
    assert transposed.fan_in == pytest.approx(3 * 16 / 4 * kept)


def test_a_layer_without_a_reading_of_its_weights_is_unknown():
    graph = trace(quiet(lambda: nn.Linear(8, 8)), normal(4, 8))
    assert isinstance(nodes_of(graph, {}, 2)[0].operator, operators.Unknown)


def test_distances_are_kept_only_where_a_window_needs_them():
    plain = quiet(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten()))
    pooled = quiet(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2)))
    assert columns_of(trace(plain, normal(4, 3, 16, 16))) == 2
    assert columns_of(trace(pooled, normal(4, 3, 16, 16))) == 6


def test_inputs_become_fields_with_their_positions_where_these_are_known():
    x = normal(256, 3, 16).cumsum(-1)
    graph = trace(quiet(lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.MaxPool1d(2))), x)
    readings = {("signal", -1): float(x.var(0).mean()), ("offset", -1): 0.0}
    (field,) = source_fields(graph, readings, x).values()
    assert field.signal == pytest.approx(readings["signal", -1])
    assert field.gaps[0, :4].tolist() == pytest.approx([0, 0.5, 1, 2], rel=0.15), (
        "of a random walk: half the steps between"
    )
    (blind,) = source_fields(graph, readings).values()
    assert math.isnan(blind.gaps[0, 1])
    flat = trace(quiet(lambda: nn.Linear(8, 8)), normal(4, 8))
    (field,) = source_fields(flat, {("signal", -1): 1.0, ("offset", -1): 0.5}, normal(4, 8)).values()
    assert (field.level, field.gaps.tolist()) == (1.5, [[0, 0], [1, 1]])


def test_tokens_have_their_positions_in_the_middle_where_a_linear_layer_takes_them_in():
    x = normal(256, 16, 3).cumsum(1)
    graph = trace(quiet(lambda: nn.Linear(3, 8)), x)
    (field,) = source_fields(graph, {("signal", -1): float(x.var(0).mean()), ("offset", -1): 0.0}, x).values()
    between = 0.5 * 17 / 3  # half the steps between two of 16 positions of a random walk
    assert field.gaps[0, -1] == pytest.approx(between, rel=0.15)


@pytest.mark.parametrize(
    "pick",
    [
        lambda z: z[z.sum(1) > -1e9],
        lambda z: z.view_as(z * 2),
        lambda z: F.layer_norm(z, (32,), weight=z.mean(0).exp()),
    ],
    ids=["rows by what is in them", "the shape of another", "a scale that is a signal"],
)
def test_what_theory_knows_of_one_tensor_alone_is_not_predicted_of_two(pick):
    model = drawn(lambda: nn.Sequential(nn.Linear(20, 32), Function(pick), nn.Linear(32, 3)))
    graph, ledger = measure(model, F.cross_entropy, (normal(64, 20), torch.arange(64) % 3))
    assert any(len(op.sources) == 2 for op in graph.operations)
    assert ledger.rows[0].signal is not None
    assert ledger.rows[0].expected_gain is None
