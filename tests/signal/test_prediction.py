"""Theory of real networks, stage by stage: measured gains lie as far from it as its own standard errors say, and no further."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gainstage.nn.activations import MODULES
from gainstage.signal import measure, prediction, rows, trace
from gainstage.signal.prediction import columns_of, nodes_of, source_fields
from gainstage.theory import network, operators
from tests.networks import (
    Encoder,
    Function,
    Joined,
    ResidualDeep,
    SharedBlocks,
    TwoInputs,
    convolutions,
    drawn,
    keeping,
    wide,
)
from tests.signal.calibration import backward, complaints, forward, ledger_of
from tests.tools import normal, quiet

FUNCTIONS = {
    "relu": torch.relu,
    "leaky relu": lambda z: F.leaky_relu(z, 0.2),
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "tanh": torch.tanh,
    "logistic": torch.sigmoid,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "hardswish": F.hardswish,
    "x sin x": lambda z: z * torch.sin(z),
    "sin": torch.sin,
    "x^2 - 1": lambda z: z * z - 1,
    "|x|": torch.abs,
    "x + sin^2 3x": lambda z: z + torch.sin(3 * z) ** 2 / 3,
    "relu by where": lambda z: torch.where(z > 0, z, 0.1 * z),
}
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


def heavier(factor):
    """The theory of layers whose weights are larger by a factor (of the power) than they are."""
    layer = prediction._layer

    def mutant(op, readings, columns):
        node = layer(op, readings, columns)
        return replace(node, weight_power=factor * node.weight_power)

    return mutant


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


def images(seed, side=16):
    return normal(64, 3, side, side, seed=seed)


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
    scale = operator_of(Function(lambda x: x * torch.ones(8)), x=normal(4, 8), readings={("constant", 1): 0.25})
    assert scale == operators.Scale(0.25)
    readings = {("constant", 1): 0.25, ("constant_mean", 1): 0.1, ("constant_by_position", 1): 1.0}
    shift = operator_of(Function(lambda x: x + torch.ones(5, 8)), x=normal(4, 5, 8), readings=readings)
    assert shift == operators.Shift(0.25, 0.1, True)
    assert operator_of(Function(lambda x: x + torch.ones(8)), x=normal(4, 8)) == operators.Unknown(), "not read"


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
