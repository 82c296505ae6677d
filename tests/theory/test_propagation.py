"""Fields through one operation, against real layers and tensors of many independent units, measured unit by unit."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gainstage.theory import Slot, field, lookup, moments, pointwise
from gainstage.theory.propagation import (
    composed,
    evaluated,
    slopes,
    through_alpha_dropout,
    through_dropout,
    through_function,
    through_layer,
    through_product,
    through_scale,
    through_shift,
)
from gainstage.theory.spatial import Axis, coverage
from tests.theory.fields import FLAT, PIXELS, SWAPPABLE, UNITS, agree, drawn, exact, images, moments_of, step
from tests.tools import normal, quiet

PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=30)
CHANNELS, TAPS = 64, 3
GAUSSIAN = replace(PIXELS, mean=0.7, gaussian=True)
MEANT = replace(FLAT, mean=0.7, gaussian=True)
SWAPPED = field(FLAT.offset, FLAT.signal)


def linear_layer():
    """Outputs of a layer with weights of standard deviation 0.3 and biases 0.5 +- 2."""
    weight, bias = 0.3 * normal(UNITS, CHANNELS, seed=3).double(), 0.5 + 2 * normal(UNITS, seed=4).double()
    return F.linear(exact(FLAT, CHANNELS), weight, bias)


def test_a_layer_multiplies_powers_and_adds_its_bias_to_the_level_alone():
    found = through_layer(FLAT, CHANNELS, 0.09, 4.25, 0.5)
    assert agree(linear_layer(), found)
    assert found.gaussian
    assert (found.signal, found.offset) == pytest.approx((CHANNELS * 0.09 * 1.5, CHANNELS * 0.09 * 2.5 + 4.25))


@pytest.mark.parametrize(
    "wrong",
    [
        through_layer(FLAT, UNITS, 0.09, 4.25, 0.5),
        through_layer(FLAT, CHANNELS, 0.3, 4.25, 0.5),
        through_layer(FLAT, CHANNELS, 0.09, 2.0, 0.5),
        through_layer(FLAT, CHANNELS, 0.09, 0.0, 0.5),
        through_layer(FLAT, CHANNELS, 0.09, 4.25, 0.0),
        through_layer(SWAPPED, CHANNELS, 0.09, 4.25, 0.5),
        through_layer(field(1.5 + 4.25, 2.5), CHANNELS, 0.09, 0.0, 0.5),
    ],
    ids=["fan_out", "weight std", "bias std", "no bias", "no bias mean", "signal for offset", "bias in the signal"],
)
def test_a_real_layer_rejects_a_wrong_prediction(wrong):
    assert not agree(linear_layer(), wrong)


def convolved(given, side=16, **options):
    weight = 0.1 * normal(8000, CHANNELS, TAPS, seed=5).double()
    return F.conv1d(exact(given, CHANNELS, 3, (side,)), weight, **options)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 1), (1, 2)])
def test_a_convolution_keeps_the_gaps_and_its_stride_widens_them(stride, dilation):
    values = convolved(PIXELS, stride=stride, dilation=dilation)
    assert agree(values, through_layer(PIXELS, CHANNELS * TAPS, 0.01, stride=stride), far=False)
    assert not agree(values, through_layer(PIXELS, CHANNELS * TAPS, 0.01, stride=3 - min(stride, 2)), far=False)
    assert not agree(values, through_layer(PIXELS, CHANNELS, 0.01, stride=stride), far=False), "the taps forgotten"


@pytest.mark.parametrize(("padding", "stride", "dilation"), [(1, 1, 1), (2, 2, 1), (2, 1, 2)])
@pytest.mark.parametrize("given", [PIXELS, SWAPPABLE], ids=["neighbours alike", "all alike"])
def test_taps_on_the_padding_see_nothing(given, padding, stride, dilation):
    values = convolved(given, padding=padding, stride=stride, dilation=dilation)
    covered = coverage((Axis(16, values.shape[-1], TAPS, stride, padding, dilation),), 5)

    def predicted(covered):
        return through_layer(given, CHANNELS * TAPS, 0.01, stride=stride, coverage=covered)

    assert agree(values, predicted(covered), far=False)
    assert not agree(values, predicted(()), far=False), "padding forgotten"
    assert not agree(values, predicted((covered[0],) * 5), far=False), "the same for any two positions"


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (4, 2), (3, 2), (3, 3)])
def test_a_transposed_convolution_makes_positions_that_share_no_tap_unlike(kernel, stride):
    weight = 0.1 * normal(CHANNELS, 8000, kernel, seed=5).double()
    values = F.conv_transpose1d(exact(PIXELS, CHANNELS, 3, (8,)), weight, stride=stride)
    border = kernel - stride
    values = values[..., border : border + (values.shape[-1] - 2 * border) // stride * stride]
    fan_in = CHANNELS * kernel / stride
    assert agree(values, through_layer(PIXELS, fan_in, 0.01, upsampling=(stride, 1)), far=False)
    assert not agree(values, through_layer(PIXELS, fan_in, 0.01), far=False), "as if not transposed"
    assert not agree(values, through_layer(PIXELS, CHANNELS * kernel, 0.01, upsampling=(stride, 1)), far=False), (
        "fan_in"
    )


FUNCTIONS = ["relu", "tanh", "gelu", "selu", "logistic", "relu6", "identity"]
GIVEN = [(GAUSSIAN, (8,)), (MEANT, ()), (replace(field(0.01, 1.0), mean=-0.5, gaussian=True), ())]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(("given", "sides"), GIVEN, ids=["positions", "flat", "nearly alike"])
def test_a_function_of_gaussian_values_around_any_mean(name, given, sides):
    values = lookup(name).function(drawn(given, 4, sides))
    found = through_function(given, pointwise(lookup(name).function))
    assert agree(values, found, far=False)
    assert found.gaussian is False
    assert found.pre is given


@pytest.mark.parametrize("name", FUNCTIONS[:-1])
@pytest.mark.parametrize(
    "mutant",
    [
        lambda given, f: through_function(replace(given, mean=0.0), f),
        lambda given, f: through_function(replace(given, level=given.level + given.mean**2), f),
        lambda given, f: through_function(replace(given, gaps=given.gaps * 1.2), f),
        lambda given, f: replace(through_function(given, f), gaps=given.gaps * slopes(given, f).slope),
        lambda given, f: replace(through_function(given, f), mean=0.0),
    ],
    ids=["mean ignored", "the mean in the variance", "all signal", "linearised", "mean of the function forgotten"],
)
def test_gaussian_values_reject_a_wrong_function(name, mutant):
    values = lookup(name).function(drawn(GAUSSIAN, 4, (8,)))
    assert not agree(values, mutant(GAUSSIAN, pointwise(lookup(name).function)), far=False)


@pytest.mark.parametrize(("mean", "expected"), [(0.0, 0.25), (2.0, 0.7758034925743758)])
def test_a_function_behind_silence_is_its_value_there(mean, expected):
    found = through_function(field(0.0, mean**2, mean=mean, gaussian=True), pointwise(torch.sigmoid))
    assert (found.level, found.signal) == pytest.approx((expected, 0.0))
    assert found.mean == pytest.approx(expected**0.5)


def test_what_is_unknown_of_the_positions_stays_unknown():
    found = through_function(images(1.0, [0, math.nan], [0.5, math.nan], gaussian=True), pointwise(F.relu))
    assert found.known
    assert np.isnan(found.gaps).tolist() == [[False, True], [False, True]]


def test_an_affine_function_may_follow_anything():
    values = drawn(MEANT).square()
    found = moments_of(values)
    given = field(float(found[1, 0].mean()), float((found["level"] - found[1, 0]).mean()))
    given = replace(given, mean=float(found["mean"].mean()))
    line = pointwise(lambda z: 3 - 2 * z)
    assert agree(3 - 2 * values, through_function(given, line))
    assert not agree(3 - 2 * values, through_function(replace(given, mean=0.0), line)), "mean ignored"
    assert not agree(3 - 2 * values, through_function(given, pointwise(lambda z: -2 * z))), "shift forgotten"
    assert not through_function(given, pointwise(torch.tanh)).known, "of others only a Gaussian's moments are known"


def test_an_affine_function_of_a_gaussian_is_the_same_either_way():
    line = pointwise(lambda z: 3 - 2 * z)
    one, other = through_function(GAUSSIAN, line), through_function(replace(GAUSSIAN, gaussian=False), line)
    assert (one.level, one.mean) == pytest.approx((other.level, other.mean))
    assert one.gaps == pytest.approx(other.gaps)
    assert one.straight


def test_several_functions_of_one_gaussian_field_are_one_function_worked_out_when_needed():
    half = through_function(GAUSSIAN, pointwise(torch.sigmoid))
    bare = composed(step(torch.mul, Slot(0), Slot(1)), [GAUSSIAN, half])
    assert not bare.known
    assert bare.pre is GAUSSIAN
    values = drawn(GAUSSIAN, 4, (8,))
    assert agree(F.silu(values), evaluated(bare), far=False)
    assert not agree(F.silu(values), through_product([GAUSSIAN, half]), far=False), "as if the two were independent"
    assert composed(step(torch.mul, Slot(0), Slot(1)), [GAUSSIAN, replace(GAUSSIAN)]) is None
    assert evaluated(half) is half


@PROPERTY
@given(st.floats(0.01, 10), st.floats(0, 10), st.floats(0.1, 30), st.floats(-2, 2))
def test_relu_is_homogeneous(signal, offset, factor, mean):
    relu = pointwise(F.relu)
    given = field(signal, offset + mean**2, mean=mean, gaussian=True)
    louder = field(factor**2 * signal, factor**2 * (offset + mean**2), mean=factor * mean, gaussian=True)
    quiet, loud = through_function(given, relu), through_function(louder, relu)
    assert loud.level == pytest.approx(factor**2 * quiet.level, rel=1e-6)
    assert loud.mean == pytest.approx(factor * quiet.mean, rel=1e-6, abs=1e-9)
    assert loud.signal == pytest.approx(factor**2 * quiet.signal, rel=2e-3)


@PROPERTY
@given(st.floats(0.01, 10), st.floats(0, 1), st.floats(0, 2), st.floats(-2, 2), st.sampled_from(FUNCTIONS))
def test_gaps_are_at_least_zero_and_at_most_twice_the_level(level, within, across, mean, name):
    gaps = [[0, level * within], [level * within, level * across]]
    found = through_function(images(level + mean**2, *gaps, mean, gaussian=True), pointwise(lookup(name).function))
    assert (found.gaps >= 0).all()
    assert (found.gaps <= 2 * found.level * (1 + 1e-6)).all()
    assert found.mean**2 <= found.level * (1 + 1e-9)


def test_slopes_are_taken_around_the_mean():
    z = drawn(MEANT, samples=2, units=200_000)[0].requires_grad_(True)
    (slope,) = torch.autograd.grad(F.gelu(z).sum(), z)
    measured, error = float(slope.square().mean()), float(slope.square().std()) / len(z) ** 0.5
    assert abs(slopes(MEANT, pointwise(F.gelu)).slope - measured) < 4 * error
    assert abs(moments(lookup("gelu"), MEANT.level).slope - measured) > 4 * error, "the mean in the variance"


def test_a_scale_of_one_size_is_exact():
    values = drawn(GAUSSIAN, 4, (8,)) * 1.3
    assert agree(values, through_scale(GAUSSIAN, 1.69), far=False)
    assert not agree(values, through_scale(GAUSSIAN, 1.3), far=False), "the number for its square"


def test_scales_of_every_unit_count_by_their_mean_square():
    values = drawn(GAUSSIAN, 4, (8,)) * (1 + 0.5 * normal(1, UNITS, 1, seed=9).double())
    assert agree(values, through_scale(GAUSSIAN, 1.25), far=False, leave=("mean",))
    assert not agree(values, through_scale(GAUSSIAN, 1.0), far=False, leave=("mean",)), "the mean, squared"


@pytest.mark.parametrize(("by_position", "shape"), [(False, (1, UNITS, 1)), (True, (1, UNITS, 8))])
def test_constants_added_join_the_level_and_those_of_positions_tell_them_apart(by_position, shape):
    values = drawn(GAUSSIAN, 4, (8,)) + (0.4 + 0.6 * normal(*shape, seed=9).double())
    assert agree(values, through_shift(GAUSSIAN, 0.52, 0.4, by_position), far=False)
    assert not agree(values, through_shift(GAUSSIAN, 0.52, 0.4, not by_position), far=False)
    assert not agree(values, through_shift(GAUSSIAN, 0.36, 0.4, by_position), far=False), "the variance for the power"
    assert not agree(values, through_shift(GAUSSIAN, 0.52, 0.0, by_position), far=False), "mean ignored"


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("whole_channels", [False, True])
def test_dropout_keeps_means_and_covariances_and_adds_its_noise(rate, whole_channels):
    values = quiet(lambda: (F.dropout1d if whole_channels else F.dropout)(drawn(GAUSSIAN, 4, (8,)), rate))
    assert agree(values, through_dropout(GAUSSIAN, rate, whole_channels), far=False)
    assert not agree(values, through_dropout(GAUSSIAN, rate, not whole_channels), far=False), "the other kind"
    assert not agree(values, through_dropout(GAUSSIAN, 0.9 * (1 - rate), whole_channels), far=False), "what is kept"


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("whole_channels", [False, True])
def test_alpha_dropout_sets_values_to_the_limit_of_selu(rate, whole_channels):
    drop = F.feature_alpha_dropout if whole_channels else F.alpha_dropout
    values = quiet(lambda: drop(drawn(GAUSSIAN, 4, (8,)), rate, training=True))
    assert agree(values, through_alpha_dropout(GAUSSIAN, rate, whole_channels), far=False)
    assert not agree(values, through_alpha_dropout(GAUSSIAN, rate, not whole_channels), far=False), "the other kind"
    assert not agree(values, through_alpha_dropout(GAUSSIAN, 0.9 * (1 - rate), whole_channels), far=False), "kept"
    wrong = through_alpha_dropout(replace(GAUSSIAN, mean=0.0), rate, whole_channels)
    assert not agree(values, wrong, far=False), "mean ignored"
    assert not agree(values, through_dropout(GAUSSIAN, rate, whole_channels), far=False), "zeros"


def test_alpha_dropout_keeps_what_it_is_made_for():
    found = through_alpha_dropout(field(0.4, 0.6), 0.3)
    assert (found.level, found.mean) == pytest.approx((1, 0), abs=1e-12)


@pytest.mark.parametrize("through", [through_dropout, through_alpha_dropout])
def test_no_dropout_changes_nothing_and_total_dropout_is_silence(through):
    same, silence = through(GAUSSIAN, 0.0), through(GAUSSIAN, 1.0)
    assert (same.level, same.mean) == pytest.approx((GAUSSIAN.level, GAUSSIAN.mean))
    assert same.gaps == pytest.approx(GAUSSIAN.gaps)
    assert (silence.level, silence.signal, silence.mean) == (0, 0, 0)
    assert not quiet(lambda: F.alpha_dropout(torch.ones(9), 1.0, training=True)).any()
