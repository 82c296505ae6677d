"""What is read off tensors while a pass runs."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gainstage.signal import NETWORK_INPUT, statistics
from gainstage.signal.probes import Probes, WeightProbes, thinned
from gainstage.signal.statistics import Stack
from gainstage.signal.trace import Tracer
from gainstage.signal.values import Stacks
from tests.networks import Convolutional, Function, SqueezeExcitation, deep
from tests.tools import normal, quiet


def probed(model, x, kind=Probes, loss=None):
    """The probes of a pass, with a backward pass where there is a loss."""
    probes = kind()
    tracer = Tracer(model, probes)
    with tracer.of(model, x):
        output = model(x)
    graph = tracer.finish(output)
    if loss is not None:
        loss(output).backward()
    probes.read_weights()
    if isinstance(probes, Probes):
        probes.detach()
    return graph, probes, probes.read()


def power(tensor):
    return float(tensor.detach().double().square().mean())


def test_sizes_of_weights_biases_and_normalisations():
    model = quiet(lambda: nn.Sequential(nn.Linear(20, 8), nn.LayerNorm(8), nn.Linear(8, 3, bias=False)))
    nn.init.uniform_(model[1].weight, 0, 2, generator=torch.Generator().manual_seed(1))
    nn.init.constant_(model[1].bias, -0.5)
    values = probed(model, normal(4, 20), WeightProbes)[2]
    assert values["weight", 0] == pytest.approx(power(model[0].weight), rel=1e-5)
    assert values["bias", 0] == pytest.approx(power(model[0].bias), rel=1e-5)
    assert values["bias_mean", 0] == pytest.approx(float(model[0].bias.detach().mean()), rel=1e-4)
    assert values["scale", 1] == pytest.approx(power(model[1].weight), rel=1e-5)
    assert (values["shift", 1], values["shift_mean", 1]) == pytest.approx((0.25, -0.5))
    assert ("bias", 1) not in values
    assert ("signal", 0) not in values, "these probes read no tensors that differ between samples"


@pytest.mark.parametrize(
    ("function", "powers"),
    [
        (lambda z, c: z * c, (14 / 3, 2.0)),
        (lambda z, c: z / c, ((1 + 1 / 4 + 1 / 9) / 3, (1 + 1 / 2 + 1 / 3) / 3)),
        (lambda z, c: z + c, (14 / 3, 2.0)),
        (lambda z, c: z - c, (14 / 3, -2.0)),
    ],
)
def test_constants_that_meet_the_signal(function, powers):
    constant = torch.tensor([1.0, 2.0, 3.0])
    model = quiet(lambda: nn.Sequential(nn.Linear(20, 3), Function(lambda z: function(z, constant))))
    _, _, values = probed(model, normal(4, 20))
    assert (values["constant", 1], values["constant_mean", 1]) == pytest.approx(powers)
    assert values["constant_by_position", 1] == 0


@pytest.mark.parametrize(("shape", "by_position"), [((1, 5, 8), 1.0), ((8,), 0.0), ((1, 1, 8), 0.0)])
def test_constants_of_tokens_may_differ_between_positions(shape, by_position):
    model = quiet(
        lambda: nn.Sequential(
            nn.Linear(20, 8), Function(lambda z: z + torch.arange(float(math.prod(shape))).reshape(shape))
        )
    )
    assert probed(model, normal(4, 5, 20))[2]["constant_by_position", 1] == by_position


def test_every_tensor_that_leaves_a_stage_is_measured_and_each_once(monkeypatch):
    measured = []
    original = Stacks.add
    monkeypatch.setattr(
        Stacks, "add", lambda self, *given: measured.append(tuple(given[1].shape)) or original(self, *given)
    )
    graph, probes, values = probed(quiet(SqueezeExcitation), normal(16, 20))
    relu, squeezed, gated, output = (stage.operations[-1].index for stage in graph.stages)
    assert {op for quantity, op in values if quantity == "signal"} == {NETWORK_INPUT, relu, squeezed, gated, output}
    assert measured == [(16, 20), (16, 64), (16, 16), (16, 64), (16, 3)], "the second one leaves its stage twice"
    assert probes.units == {NETWORK_INPUT: 20, relu: 64, squeezed: 16, gated: 64, output: 3}


def test_in_place_changes_behind_a_stage_do_not_reach_its_reading():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(20, 8), nn.Linear(8, 8)

        def forward(self, x):
            h = torch.tanh(self.first(x))
            return self.second(h.detach()) + h.mul_(100)

    model, x = quiet(InPlace), normal(64, 20)
    graph, _, values = probed(model, x)
    h = torch.tanh(model.first(x)).detach()
    assert values["signal", graph.stages[1].layer.inputs[0]] == pytest.approx(float(h.var(0).mean()), rel=1e-4)


def test_gradients_are_those_of_the_tensors_that_leave():
    model, x = deep(2, "tanh"), normal(16, 20)
    graph, _, values = probed(model, x, loss=lambda output: output.square().sum())
    one = model.activation1(model.hidden1(x))
    output = model.output(model.activation2(model.hidden2(one)))
    (expected,) = torch.autograd.grad(output.square().sum(), one)
    assert values["gradient", graph.leaving(0)] == pytest.approx(power(expected), rel=1e-4)
    assert values["gradient", graph.outputs[0]] == pytest.approx(4 * power(output), rel=1e-4)


def spread_of(model, x):
    graph, _, values = probed(model, x)
    return values.get(("spread", graph.outputs[0]))


def by_hand(units):
    """Relative variance of the mean of channels' powers; shape (samples, channels, ...)."""
    powers = units.detach().double().var(0).flatten(1).mean(1) if units.ndim > 2 else units.detach().double().var(0)
    return float(powers.var() / len(powers) / powers.mean() ** 2)


CHANNELS = {
    "units": (lambda: nn.Linear(20, 8), lambda z: z, (64, 20), lambda z: z),
    "tokens": (lambda: nn.Linear(20, 8), lambda z: z, (64, 5, 20), lambda z: z.transpose(1, 2)),
    "pixels": (lambda: nn.Conv2d(3, 8, 3), lambda z: z, (64, 3, 7, 7), lambda z: z),
    "pixels in one row": (
        lambda: nn.Conv2d(3, 8, 3),
        lambda z: z.flatten(1),
        (64, 3, 7, 7),
        lambda z: z.unflatten(1, (8, -1)),
    ),
    "tokens in one row": (
        lambda: nn.Linear(20, 8),
        lambda z: z.flatten(1),
        (64, 5, 20),
        lambda z: z.unflatten(1, (-1, 8)).transpose(1, 2),
    ),
    "patches as tokens": (
        lambda: nn.Conv2d(3, 8, 3, 3),
        lambda z: z.flatten(2).transpose(1, 2),
        (64, 3, 9, 9),
        lambda z: z.transpose(1, 2),
    ),
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 8, 2, 2, groups=2),
        lambda z: z.flatten(1),
        (64, 4, 3, 3),
        lambda z: z.unflatten(1, (8, -1)),
    ),
    "half of the units": (lambda: nn.Linear(20, 8), lambda z: z.chunk(2, 1)[0], (64, 20), lambda z: z),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_are_the_independent_draws_wherever_they_stand(name):
    """Positions of one channel are no draws of their own: counted as such, errors came out far too small."""
    layer, behind, shape, channels = CHANNELS[name]
    model = nn.Sequential(quiet(layer), Function(behind))
    x = normal(*shape)
    assert spread_of(model, x) == pytest.approx(by_hand(channels(model(x))), rel=1e-3)
    if channels(model(x)).ndim > 2:
        assert spread_of(model, x) != pytest.approx(by_hand(model(x).flatten(1)), rel=0.1)


@pytest.mark.parametrize(("layer", "shape"), [(nn.Linear(20, 1), (16, 20)), (nn.Conv2d(3, 1, 1), (16, 3, 1, 1))])
def test_a_single_channel_has_no_spread(layer, shape):
    assert math.isnan(spread_of(layer, normal(*shape)))


def test_gaps_of_positions_far_apart_are_read_with_the_channels_where_the_layer_put_them():
    for layer, shape, channels in (
        (lambda: nn.Conv1d(3, 8, 3), (64, 3, 9), lambda z: z),
        (lambda: nn.Linear(3, 8), (64, 9, 3), lambda z: z.movedim(-1, 1)),
    ):
        model, x = quiet(layer), normal(*shape).cumsum(1)
        graph, _, values = probed(model, x)
        gaps = statistics.position_gaps(channels(model(x)), 2)[:, -1]
        read = [values[quantity, graph.outputs[0]] for quantity in ("far", "far_across")]
        assert read == pytest.approx(gaps.tolist(), rel=1e-4)
        wrong = statistics.position_gaps(channels(model(x)).transpose(1, 2), 2)[:, -1]
        assert read != pytest.approx(wrong.tolist(), rel=1e-2)
    assert not any(quantity == "far" for quantity, _ in probed(deep(1, "relu"), normal(8, 20))[2])


def test_what_has_no_samples_or_no_fractions_is_not_measured():
    probes = Probes()
    for number, tensor in enumerate(
        (torch.tensor(1.0), torch.arange(4), normal(1, 5), torch.ones(4, dtype=torch.bool))
    ):
        probes.stage_output(number, 0, tensor)
    assert probes.read() == {}
    probes.stage_output(NETWORK_INPUT, NETWORK_INPUT, normal(8))
    assert probes.read()["signal", NETWORK_INPUT] == pytest.approx(float(normal(8).var()), rel=1e-5)
    assert probes.units[NETWORK_INPUT] == 1


def test_dead_units_and_saturated_inputs_belong_to_the_stage():
    model = quiet(lambda: nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh()))
    with torch.no_grad():
        model[0].bias[:2] = -1e6
        model[2].bias[:4] = 100.0
    _, _, values = probed(model, normal(64, 20))
    assert values["dead", 0] == 0.25
    assert values["saturated", 1] == 0.5
    assert ("saturated", 0) not in values
    assert ("dead", 1) not in values


def test_weight_gradients_are_taken_in_by_the_weights_identity():
    model = deep(1, "relu")
    probes = Probes()
    tracer = Tracer(model, probes)
    x = normal(16, 20)
    with tracer.of(model, x):
        output = model(x)
    gradient = torch.full_like(model.output.weight, 3.0)
    probes.weight_gradients({id(model.output.weight): gradient})
    values = probes.read()
    assert values["weight_gradient", 1] == pytest.approx(9)
    assert ("weight_gradient", 0) not in values
    assert output.requires_grad


def test_detached_probes_hold_nothing_and_hear_nothing():
    model, x = deep(1, "relu"), normal(16, 20)
    probes = Probes()
    tracer = Tracer(model, probes)
    with tracer.of(model, x):
        output = model(x)
    tracer.finish(output)
    assert probes.handles
    probes.detach()
    F.cross_entropy(output, torch.arange(16) % 3).backward()
    assert not probes.handles
    assert not probes.weights
    assert not any(quantity == "gradient" for quantity, _ in probes.read())


def test_a_device_without_values_gives_none():
    model = quiet(Convolutional).to("meta")
    assert probed(model, torch.empty(4, 1, 8, 8, device="meta"))[2] == {}
    assert Probes().read() == {}


@pytest.mark.parametrize("shape", [(64, 8, 16, 16), (64, 40, 8)])
def test_of_large_tensors_evenly_spread_positions_are_read(shape):
    """All samples and channels; the error is that of as many draws of positions."""
    x, first = normal(*shape), len(shape) == 4
    channel_dim, channels = (0, 8) if first else (-1, 8)
    some = thinned(x, channel_dim, 2**13)
    assert some.shape[0] == 64
    assert some.shape[1 if first else 2] == channels
    assert 2**12 < some.numel() <= 2**13
    assert thinned(x, channel_dim, x.numel()) is x
    assert thinned(x, channel_dim, None) is x
    exact, estimated = (Stack(t[None], channels, channel_dim) for t in (x, some))
    # a mean over 8192 / 64 = 128 units of variances that 64 samples know to sqrt(2 / 63)
    assert float(estimated.signal) == pytest.approx(float(exact.signal), rel=4 * (2 / 63 / 128) ** 0.5)


@pytest.mark.parametrize(("shape", "read"), [((128, 100), 64), ((128, 1000), 32), ((40, 1000), 40), ((128, 40), 128)])
def test_of_many_samples_without_positions_some_are_read(shape, read):
    some = thinned(normal(*shape), -1, 6400)
    assert len(some) == read
    assert torch.equal(some, normal(*shape)[:: 128 // read if shape[0] == 128 else 1])


def test_positions_are_not_all_of_one_column():
    x = torch.zeros(2, 4, 16, 16)
    x[:, :, :, ::2] = 1.0
    share = float(thinned(x, 0, 2**9).mean())
    assert share == pytest.approx(0.5, abs=0.1)


def test_of_large_weights_evenly_spread_rows_are_read():
    layer = quiet(lambda: nn.Linear(64, 256))
    probes = WeightProbes(most=2**12)
    rows = probes.rows(layer.weight)
    assert rows.shape == (64, 64)
    assert torch.equal(rows, layer.weight.detach()[::4])
    assert WeightProbes().rows(layer.weight).shape == (256, 64)


def test_the_effective_rank_is_read_by_thorough_probes_alone():
    model, x = quiet(lambda: nn.Linear(20, 8)), normal(64, 20)
    values = probed(model, x)[2]
    assert {quantity for quantity, place in values if place == 0} >= {"still", "zero", "kurtosis", "outliers"}
    z = (model(x) - model(x).mean(0)).detach().double()
    assert values["effective_rank", 0] == pytest.approx(
        float((z.T @ z).trace() ** 2 / (z.T @ z).square().sum()), rel=1e-4
    )
    quick = probed(model, x, lambda: Probes(thorough=False))[2]
    assert ("effective_rank", 0) not in quick
    assert quick["kurtosis", 0] == values["kurtosis", 0]
    assert ("kurtosis", NETWORK_INPUT) not in values, "what has no layer has no channels"


def test_gradients_are_split_by_thorough_probes_alone():
    """What differs between samples, and what all of them want alike."""
    model, x, goal = deep(2, "tanh"), normal(64, 20), torch.tensor([5.0, 0.0, -5.0])

    def loss(output):
        return (output - goal).square().mean()

    graph, _, values = probed(model, x, loss=loss)
    one = model.activation1(model.hidden1(x))
    (expected,) = torch.autograd.grad(loss(model.output(model.activation2(model.hidden2(one)))), one)
    g, place = expected.double(), graph.leaving(0)
    signal = float(g.var(0).mean())
    assert values["gradient_signal", place] == pytest.approx(signal, rel=1e-3)
    assert values["gradient_offset", place] == pytest.approx(float(g.mean(0).square().mean()) - signal / 64, rel=1e-3)
    cosines = torch.cosine_similarity(g[:, None], g[None], dim=2)
    alike = float((cosines.sum() - 64) / 64 / 63)
    assert values["gradient_similarity", place] == pytest.approx(alike, rel=1e-3)
    assert alike > 0.5
    quick = probed(model, x, lambda: Probes(thorough=False), loss)[2]
    assert quick["gradient", place] == pytest.approx(values["gradient", place], rel=1e-4)
    assert not any(quantity.startswith("gradient_") for quantity, _ in quick)


@pytest.mark.parametrize("thorough", [True, False])
def test_gradients_too_small_for_their_type_are_counted(thorough):
    """In float16 half of the units get a gradient below its normal numbers, one a gradient beyond them."""
    model, x = quiet(lambda: nn.Sequential(nn.Linear(20, 8), nn.Linear(8, 1, bias=False))).half(), normal(16, 20).half()
    weight = torch.tensor([[1e-6, 1e-6, 1e-6, 1e-6, 1.0, 1.0, 1.0, 6e4]]).half()
    model[1].weight.data.copy_(weight)
    graph, _, values = probed(model, x, lambda: Probes(thorough=thorough), lambda output: 4 * output.sum())
    place = graph.leaving(0)
    assert values["gradient_underflow", place] == pytest.approx(4 / 8)
    assert values["gradient_overflow", place] == pytest.approx(1 / 8)
    assert values["underflow", place] == 0
    assert ("underflow", place) not in probed(model.float(), x.float())[2]
