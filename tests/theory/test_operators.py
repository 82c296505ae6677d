"""Operations as a network strings them together: fields forward, and the factor on the gradient's power against autograd."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from gainstage.theory import Slot, field, pointwise
from gainstage.theory.composition import Step
from gainstage.theory.field import unknown
from gainstage.theory.operators import (
    Attention,
    BatchNorm,
    Concatenation,
    Dropout,
    Edge,
    GroupNorm,
    Layer,
    Padding,
    Pointwise,
    Pool,
    Scale,
    Shift,
    Unknown,
    View,
    way_back,
)
from gainstage.theory.propagation import ALPHA_PRIME, composed, slopes, through_function
from gainstage.theory.spatial import Axis, coverage
from tests.theory.fields import PIXELS, SWAPPABLE, agree, drawn, images, step
from tests.tools import normal, quiet

UNITS = 4000
IMAGE = replace(PIXELS, mean=0.7, node=3, units=50, origins=frozenset({(3,)}))
FLAT = replace(field(1.5, 2.5), mean=0.7, node=5, units=50, origins=frozenset({(5,)}))
OTHER = replace(PIXELS, level=2.2, mean=-0.3, node=4, origins=frozenset({(4,)}))
ALIKE = replace(SWAPPABLE, mean=0.7, node=3)
ADD, MULTIPLY = step(torch.add, Slot(0), Slot(1)), step(torch.mul, Slot(0), Slot(1))


def real(function, *tensors):
    """What a function puts out, and by input the gradient's power in every unit over that of the white noise sent back."""
    tensors = [tensor.clone().requires_grad_(True) for tensor in tensors]
    after = quiet(lambda: function(*tensors))
    noise = normal(*after.shape, seed=50).double()
    gradients = torch.autograd.grad((after * noise).sum(), tensors)
    return after.detach(), [g.square().movedim(1, 0).flatten(1).mean(1) / noise.square().mean() for g in gradients]


def right(factor, powers, slack=0.0):
    """A factor within 4 standard errors over the units."""
    return abs(float(powers.mean()) - factor) < 4 * float(powers.std()) / len(powers) ** 0.5 + slack * factor + 1e-12


def image(given=IMAGE, samples=4, side=8, seed=0):
    return drawn(given, samples, (side,) if side else (), UNITS, seed)


def weights():
    return 1 + 0.5 * normal(UNITS, seed=5).double(), 0.3 + 0.7 * normal(UNITS, seed=6).double()


AFFINE = {"scale": 1.25, "shift": 0.58, "mean": 0.3, "eps": 0.4}
EPS = {"eps": 0.4}
CASES = {
    "scale": (Scale(1.69), IMAGE, lambda x: 1.3 * x, 1.3),
    "shift": (Shift(0.49, 0.7), IMAGE, lambda x: x + 0.7, 0.49),
    "group norm": (
        GroupNorm(1000, True, **AFFINE),
        IMAGE,
        lambda x: F.group_norm(x, 4, *weights(), **EPS),
        1 / (IMAGE.level - 0.49 + 0.4),
    ),
    "rms norm": (
        GroupNorm(math.inf, centred=False, eps=0.4),
        FLAT,
        lambda x: F.rms_norm(x, (UNITS,), eps=0.4),
        1 / (FLAT.level - 0.49 + 0.4),
    ),
    "layer norm": (
        GroupNorm(**AFFINE),
        FLAT,
        lambda x: F.layer_norm(x, (UNITS,), *weights(), eps=0.4),
        1.25 / (FLAT.signal + 0.4),
    ),
    "dropout": (Dropout(0.3), IMAGE, lambda x: F.dropout(x, 0.3), 1 / 0.3),
    "channels dropped": (Dropout(0.3, whole_channels=True), IMAGE, lambda x: F.dropout1d(x, 0.3), 1.0),
    "alpha dropout": (Dropout(0.3, True), IMAGE, lambda x: F.alpha_dropout(x, 0.3, True), 1 / 0.7),
    "channels set": (Dropout(0.3, True, True), IMAGE, lambda x: F.feature_alpha_dropout(x, 0.3, True), 1 / 0.7),
    "average": (Pool((2,), 2, 0.5), IMAGE, lambda x: F.avg_pool1d(x, 2), 0.5),
    "averages overlap": (Pool((3,), 1, 6 / 8), IMAGE, lambda x: F.avg_pool1d(x, 3, 1), 1 / 3),
    "all averaged": (Pool((8,), 1, 1 / 8, everywhere=True), ALIKE, lambda x: x.mean(2), 1 / 8),
    "half": (View(0.5), ALIKE, lambda x: x[:, :, :4], 1.0),
    "copied": (View(2.0), IMAGE, lambda x: x.repeat(1, 2, 1), 1.0),
    "affine": (Pointwise(step(torch.sub, 1.0, Slot(0), alpha=3)), IMAGE, lambda x: 1 - 3 * x, 3.0),
}


@pytest.mark.parametrize("name", CASES)
def test_an_operator_does_forward_and_backward_what_torch_does(name):
    operator, given, function, wrong = CASES[name]
    after, (powers,) = real(function, image(given, side=8 if len(given.gaps[0]) > 2 else 0))
    found, (edge,) = operator.through([given])
    assert agree(after, found, far=False)
    assert edge.node == given.node
    assert right(edge.factor, powers)
    assert not right(wrong, powers)


def test_batch_normalisation_divides_the_gradient_by_the_signal_and_eps():
    after, (powers,) = real(
        lambda x: F.batch_norm(x, None, None, *weights(), training=True, eps=0.4), image(FLAT, 256, side=0)
    )
    found, (edge,) = BatchNorm(**AFFINE).through([FLAT])
    assert agree(after, found, slack=0.005)
    assert right(edge.factor, powers, slack=2 / 256)
    for wrong in (1.25 / 1.5, 1 / 1.9, 1.25 / (FLAT.level + 0.4)):
        assert not right(wrong, powers, slack=2 / 256)


@pytest.mark.parametrize("samples", [3, 8])
def test_batch_normalisation_of_few_samples_divides_by_their_biased_variance(samples):
    after = F.batch_norm(image(FLAT, samples, side=0), None, None, training=True, eps=1e-12)
    assert agree(after, BatchNorm(eps=0.0, samples=samples).forward([FLAT]), slack=1e-6)
    assert not agree(after, BatchNorm(eps=0.0).forward([FLAT]), slack=1e-6), "as if of many"
    assert BatchNorm(samples=samples).forward([IMAGE]).signal == BatchNorm().forward([IMAGE]).signal, "with positions"


def test_instance_normalisation_divides_the_gradient_by_the_variance_within_the_image():
    """Not by what it leaves of the signal: the brightness of a whole image is taken away from the values alone."""
    bright = images(3.0, [0, 0.5, 0.5], [2.5, 2.9, 2.9], node=3)
    _, (powers,) = real(lambda x: F.instance_norm(x, eps=0.1), drawn(bright, 4, (64,), 1000))
    (edge,) = GroupNorm(1.0, True, eps=0.1).through([bright])[1]
    assert right(edge.factor, powers, slack=0.05)
    assert not right(GroupNorm(1.0, True, eps=0.1).forward([bright]).signal / bright.signal, powers, slack=0.05)


@pytest.mark.parametrize("kind", ["linear", "convolution", "strided", "transposed"])
def test_a_layer_sends_back_its_fan_out(kind):
    """The units of these layers are their inputs: every column of weights is drawn by itself."""
    inputs = torch.zeros(2, UNITS, *((12,) if kind != "linear" else ()), dtype=torch.float64)
    taps = 4 if kind == "transposed" else 3
    weight = 0.1 * normal(64, UNITS, taps, seed=2).double()
    convolve = {
        "linear": lambda x: F.linear(x, weight[..., 0]),
        "convolution": lambda x: F.conv1d(x, weight, padding=1),
        "strided": lambda x: F.conv1d(x, weight, padding=1, stride=2),
        "transposed": lambda x: F.conv_transpose1d(x, weight.transpose(0, 1), stride=2),
    }[kind]
    after, (powers,) = real(convolve, inputs)
    seen, positions = (), after.shape[-1]
    if kind in ("convolution", "strided"):
        seen = coverage((Axis(12, positions, 3, 12 // positions, 1, 1),), 5)
    # readers of an input: 64 outputs times the taps, of which those at the border and between strides are missing
    fan_out = {"linear": 64, "transposed": 64 * 4}.get(kind) or 64 * 3 * seen[0] * positions / 12
    given = replace(field(1.0) if kind == "linear" else PIXELS, units=UNITS, node=1)
    found, (edge,) = Layer(UNITS * taps, fan_out, 0.01, coverage=seen).through([given])
    assert right(edge.factor, powers)
    assert edge == Edge(1, edge.factor, 2 / UNITS)
    assert not right(0.1 * fan_out, powers), "std for variance"
    assert kind == "linear" or not right(64 * 0.01, powers), "taps forgotten"
    assert not right(64 * taps * 0.01, powers) or kind in ("linear", "transposed"), "border or stride forgotten"
    assert found.gaussian


JOINS = {
    "sum": ADD,
    "difference": step(torch.sub, Slot(0), Slot(1)),
    "turned": step(torch.sub, Slot(1), Slot(0)),
    "weighted": step(torch.add, Slot(0), Slot(1), alpha=0.5),
    "product": MULTIPLY,
}


@pytest.mark.parametrize("name", JOINS)
def test_a_join_of_independent_tensors(name):
    combine = "product" if name == "product" else "sum"
    after, powers = real(lambda *tensors: JOINS[name](tensors), image(), image(OTHER, seed=1))
    found, edges = Pointwise(JOINS[name], combine).through([IMAGE, OTHER])
    assert agree(after, found, far=False)
    assert [edge.node for edge in edges] == [3, 4]
    assert all(right(edge.factor, power) for edge, power in zip(edges, powers, strict=True))
    if name == "product":
        assert not any(right(edge.factor, power) for edge, power in zip(edges[::-1], powers, strict=True)), "swapped"


def test_what_is_broadcast_gets_the_gradients_of_all_its_copies():
    gate = replace(OTHER.flat, mean=-0.3)
    for call, combine in ((ADD, "sum"), (MULTIPLY, "product")):
        after, powers = real(call.function, image(), image(gate, side=0, seed=1)[..., None])
        found, edges = Pointwise(call, combine, (1.0, 8.0)).through([IMAGE, gate])
        assert agree(after, found, far=False)
        assert all(right(edge.factor, power) for edge, power in zip(edges, powers, strict=True))
        assert not right(edges[1].factor / 8, powers[1])


def test_concatenation_hands_every_part_its_own_gradient():
    parts = image()[:, :3000], image(OTHER, seed=1)[:, :1000]
    after, powers = real(lambda *tensors: torch.cat(tensors, 1), *parts)
    found, edges = Concatenation((3000, 1000)).through([IMAGE, OTHER])
    assert agree(after, found, far=False)
    assert all(right(edge.factor, power) for edge, power in zip(edges, powers, strict=True))
    assert not right(0.75, powers[0])


def test_padding_sends_back_what_came_from_the_inside():
    after, (powers,) = real(lambda x: F.pad(x, (2, 2)), image(ALIKE))
    found, (edge,) = Padding(8 / 12).through([ALIKE])
    assert right(edge.factor, powers)
    assert not right(8 / 12, powers)
    assert found.level == pytest.approx(float(after.square().mean()), rel=0.02)


GAUSSIAN = replace(IMAGE, gaussian=True)


@pytest.mark.parametrize("function", [F.relu, torch.tanh, F.gelu])
@pytest.mark.parametrize("window", [2, 4])
def test_max_pooling_sends_back_through_the_function_in_front_of_it(function, window):
    _, (powers,) = real(lambda x: F.max_pool1d(function(x), window), image())
    bare = composed(step(function), [GAUSSIAN])
    for before in (bare, replace(through_function(GAUSSIAN, pointwise(function)), node=9)):
        edge = Pool((window,), window, 1 / window, maximum=True).through([before])[1][0]
        assert edge.node == GAUSSIAN.node
        assert edge.variance == 2 / GAUSSIAN.units
        assert right(edge.factor, powers, slack=0.02)
    assert not right(slopes(GAUSSIAN, pointwise(function)).slope / window, powers, slack=0.02), "the slope elsewhere"


def test_max_pooling_of_anything_hands_the_gradient_to_the_largest():
    _, (powers,) = real(lambda x: F.max_pool1d(x, 2), image())
    found, (edge,) = Pool((2,), 2, 0.5, maximum=True).through([IMAGE])
    assert right(edge.factor, powers)
    assert not found.known


@pytest.mark.parametrize("function", [F.relu, F.gelu, F.selu])
def test_a_function_sends_back_its_mean_square_slope_to_the_gaussian_field(function):
    after, (powers,) = real(function, image())
    found, (edge,) = Pointwise(step(function)).through([GAUSSIAN])
    assert agree(after, found, far=False)
    assert edge.node == GAUSSIAN.node
    assert right(edge.factor, powers)
    assert not right(slopes(replace(GAUSSIAN, mean=0.0), pointwise(function)).slope, powers), "mean ignored"


def test_several_tensors_of_one_gaussian_field_send_back_along_one_way():
    half = through_function(GAUSSIAN, pointwise(torch.sigmoid))
    _, (powers,) = real(F.silu, image())
    found, edges = Pointwise(MULTIPLY, "product").through([GAUSSIAN, half])
    assert found.level == pytest.approx(through_function(GAUSSIAN, pointwise(F.silu)).level)
    assert len(edges) == 1
    assert right(edges[0].factor, powers)
    apart = replace(half, pre=None, origins=frozenset({(8,)}))
    assert len(Pointwise(MULTIPLY, "product").through([GAUSSIAN, apart])[1]) == 2


def test_the_way_back_leads_to_what_made_a_field_or_to_the_gaussian_field_of_a_step():
    assert way_back(IMAGE, 0.3, 0.1) == Edge(3, 0.3, 0.1)
    worked_out = replace(through_function(GAUSSIAN, pointwise(F.relu)), node=9)
    assert way_back(worked_out, 0.3).node == 9
    bare = way_back(composed(step(F.relu), [replace(GAUSSIAN, mean=0.0)]), 0.3, 0.1)
    assert bare == pytest.approx((3, 0.15, 0.1 + 3 / 50)), (
        "of ReLU's slopes a half is 1: 3 (E f'^4 / (E f'^2)^2 - 1) = 3"
    )


NOTHING = replace(unknown([], 5), node=7)


@pytest.mark.parametrize(
    "operator",
    [BatchNorm(), GroupNorm(), GroupNorm(1, True), GroupNorm(centred=False), Unknown(), Pointwise(step(F.relu))],
    ids=lambda operator: type(operator).__name__,
)
def test_factors_that_depend_on_an_unknown_level_are_unknown(operator):
    found, (edge,) = operator.through([NOTHING])
    assert not found.known
    assert math.isnan(edge.factor)
    assert edge.node == 7


def test_no_way_back_is_predicted_where_theory_has_none():
    assert not Unknown().forward([IMAGE]).known
    for operator, count in ((Unknown(), 2), (Attention(8, 16), 3), (Pointwise(step(torch.atan2, Slot(0), Slot(1))), 2)):
        given = [replace(IMAGE, origins=frozenset({(i,)})) for i in range(count)]
        assert all(math.isnan(edge.factor) for edge in operator.through(given)[1])
    assert math.isnan(way_back(composed(step(F.relu), [replace(NOTHING, gaussian=True)])).factor)


def test_the_way_back_through_what_is_always_the_same_needs_no_level():
    for operator, factor in (
        (Layer(10, 20, 0.3), 6.0),
        (Dropout(0.5), 2.0),
        (Dropout(1.0), 0.0),
        (Dropout(0.5, alpha=True), 1 / (1 + ALPHA_PRIME**2 / 2)),
        (Scale(4.0), 4.0),
        (View(0.25), 0.25),
    ):
        assert operator.through([NOTHING])[1][0].factor == pytest.approx(factor)


def test_a_function_that_refuses_numbers_is_no_prediction():
    """torch.where takes masks alone, and a mask that came in from outside is no function of a level."""
    chosen = Pointwise(Step(torch.where, (Slot(0), 1.0, 0.0)))
    after, (edge,) = chosen.through([field(1.0, 0.5, 2)])
    assert not after.known
    assert math.isnan(edge.factor)
