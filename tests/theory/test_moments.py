"""Moments of activations: published values, closed forms, Monte Carlo, and the correlation map near alikeness."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gainstage.errors import BadInput
from gainstage.theory import (
    Activation,
    depth_scale,
    finite_moments,
    leaky_relu,
    lookup,
    moments,
    saturated_share,
    signal_power,
    stationary_level,
)
from gainstage.theory.moments import level_after, pair_moments
from tests.tools import normal

PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=40)
VARIANCES = st.floats(-4, 4).map(lambda exponent: 10**exponent)
NAMES = ["relu", "gelu", "silu", "mish", "elu", "selu", "tanh", "sigmoid"]
GAINS = dict(zip(NAMES, [1.4142, 1.5335, 1.6765, 1.4868, 1.2452, 1.0000, 1.5925, 1.8462], strict=True))
GRADIENT_GAINS = dict(zip(NAMES, [1.4142, 1.4811, 1.6233, 1.4448, 1.2234, 0.9660, 1.4674, 4.7226], strict=True))
SAMPLES = 400_000


def to_four_decimals(found, expected):
    return abs(found - expected) < 1e-4


def hermite_gain(name):
    """The gradient gain by plain Gauss-Hermite quadrature, which stumbles over ReLU's kink."""
    z, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(201))
    z.requires_grad_(True)
    (slope,) = torch.autograd.grad(lookup(name).function(z).sum(), z)
    return float((weights / weights.sum() * slope**2).sum()) ** -0.5


def sampled(activation, q):
    """f(z) and f'(z)^2 of draws from N(0, q)."""
    z = (math.sqrt(q) * normal(SAMPLES).double()).requires_grad_(True)
    value = activation.function(z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), slope**2


def agree(found, activation, q, sigmas=4.0):
    """Mean, second moment, mean square slope and variance, each within `sigmas` standard errors of the samples'."""
    value, slope = sampled(activation, q)
    draws = (value, value**2, slope, (value - value.mean()) ** 2)
    wanted = (found.mean, found.second, found.slope, found.variance)
    errors = [
        (float(draw.mean()) - want) / float(draw.std()) * SAMPLES**0.5 for draw, want in zip(draws, wanted, strict=True)
    ]
    return max(map(abs, errors)) < sigmas


def relu_signal(q, signal):
    """Closed form of E (relu u - relu v)^2 / 2 (arc-cosine kernel, Cho & Saul 2009), free of cancellation."""
    distance = signal / q
    angle = 2 * math.asin(math.sqrt(distance / 2))
    return q / 2 * (distance - (math.sin(angle) - angle * math.cos(angle)) / math.pi)


def linearised(activation, q, signal):
    """What the signal would be if the activation were its mean slope: only right for samples that are nearly alike."""
    return signal * moments(activation, q).slope


@pytest.mark.parametrize("name", NAMES)
def test_published_gains_at_unit_variance(name):
    found = moments(lookup(name))
    assert to_four_decimals(found.level_gain, GAINS[name])
    assert to_four_decimals(found.gradient_gain, GRADIENT_GAINS[name])


def test_plain_gauss_hermite_misses_the_published_gain_of_relu():
    assert to_four_decimals(hermite_gain("tanh"), GRADIENT_GAINS["tanh"]), "good enough without a kink"
    assert not to_four_decimals(hermite_gain("relu"), GRADIENT_GAINS["relu"])


@PROPERTY
@given(VARIANCES, st.floats(-1, 1))
def test_leaky_relu_follows_its_closed_form(q, slope):
    found = moments(leaky_relu(slope), q)
    assert found.second == pytest.approx(q * (1 + slope**2) / 2, rel=1e-9)
    assert found.slope == pytest.approx((1 + slope**2) / 2, rel=1e-9)
    assert found.mean == pytest.approx((1 - slope) * math.sqrt(q / (2 * math.pi)), rel=1e-9, abs=1e-12)


@PROPERTY
@given(VARIANCES, st.sampled_from(NAMES))
def test_the_square_of_the_mean_never_exceeds_the_second_moment(q, name):
    found = moments(lookup(name), q)
    assert 0 < found.variance < found.second or found.mean == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("q", [0.2, 4.0])
@pytest.mark.parametrize("name", ["relu", "gelu", "selu", "tanh", "sigmoid", "hardtanh"])
def test_moments_agree_with_samples(name, q):
    assert agree(moments(lookup(name), q), lookup(name), q)


@pytest.mark.parametrize("wrong", [2.0, 16.0, 1.0], ids=["standard deviation", "square", "unit variance"])
def test_samples_reject_moments_at_another_variance(wrong):
    assert not agree(moments(lookup("tanh"), wrong), lookup("tanh"), 4.0)


def test_an_activation_of_ones_own_is_integrated_as_well():
    def bent(z):
        return torch.where(z > 0.7, 3 * z, torch.cos(z))

    own = Activation("bent", bent, "relu")
    assert agree(moments(own, 1.7), own, 1.7)


def test_gains_keep_level_and_gradient():
    found = moments(lookup("gelu"), 2.5)
    assert found.level_gain**2 * found.second == pytest.approx(2.5)
    assert found.gradient_gain**2 * found.slope == pytest.approx(1)


@pytest.mark.parametrize("q", [0.01, 1.0, 7.0])
@pytest.mark.parametrize("distance", [1.0, 0.9, 0.5, 0.1, 0.01, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12, 1e-14])
def test_relus_signal_follows_the_arc_cosine_kernel(q, distance):
    """Distance is 1 - correlation; a thousandth in power is four thousandths of a decibel."""
    signal = distance * q
    assert signal_power(lookup("relu"), q, signal) == pytest.approx(relu_signal(q, signal), rel=1e-3)


def test_the_arc_cosine_kernel_rejects_a_linearised_relu():
    assert linearised(lookup("relu"), 1.0, 1e-12) == pytest.approx(relu_signal(1.0, 1e-12), rel=1e-3)
    assert linearised(lookup("relu"), 1.0, 0.1) != pytest.approx(relu_signal(1.0, 0.1), rel=1e-3)


def test_the_correlation_map_agrees_with_its_textbook_form():
    """E f(u)^2 - E f(u) f(v), which is the same where nothing cancels."""
    q, correlation = 2.0, 0.4
    angle = math.acos(correlation)
    product = q * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / (2 * math.pi)
    assert signal_power(lookup("relu"), q, q * (1 - correlation)) == pytest.approx(q / 2 - product, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_independent_samples_keep_the_whole_variance(name):
    found = moments(lookup(name), 1.5)
    assert signal_power(lookup(name), 1.5, 1.5) == pytest.approx(found.variance, rel=1e-3)
    assert signal_power(lookup(name), 1.5, 1.5 * (1 + 1e-9)) == signal_power(lookup(name), 1.5, 1.5), "but for rounding"


@pytest.mark.parametrize("name", NAMES)
def test_nearly_alike_samples_see_the_mean_square_slope(name):
    chi = moments(lookup(name), 1.5).slope
    assert signal_power(lookup(name), 1.5, 1e-10) == pytest.approx(1e-10 * chi, rel=1e-3)


@PROPERTY
@given(VARIANCES, st.floats(0, 1), st.floats(0.01, 1), st.sampled_from(["relu", "tanh", "gelu"]))
def test_more_signal_in_is_more_signal_out(q, less, more, name):
    low, high = sorted((less, more))
    activation = lookup(name)
    assert signal_power(activation, q, low * q) <= signal_power(activation, q, high * q) * (1 + 1e-3)


def test_no_signal_in_is_no_signal_out():
    assert signal_power(lookup("relu"), 1.0, 0.0) == 0.0
    assert signal_power(lookup("relu"), 1.0, -1e-9) == 0.0, "rounding may make a measured signal negative"


@pytest.mark.parametrize("signal", [99.0, 1.51, -0.01])
def test_a_signal_is_a_part_of_the_power(signal):
    with pytest.raises(BadInput, match=f"a signal is a part of the power 1.5, got {signal:g}"):
        signal_power("relu", 1.5, signal)


@PROPERTY
@given(st.floats(0.01, 0.99))
def test_depth_scale_is_the_number_of_layers_to_a_factor_e(chi):
    assert chi ** depth_scale(chi) == pytest.approx(1 / math.e, rel=1e-6)
    assert depth_scale(1 / chi) == pytest.approx(depth_scale(chi), rel=1e-6)


@pytest.mark.parametrize(("chi", "expected"), [(1.0, math.inf), (0.0, 0.0), (math.inf, 0.0)])
def test_depth_scale_at_the_edge(chi, expected):
    assert depth_scale(chi) == expected


def test_what_is_not_known_has_no_depth_scale():
    assert math.isnan(depth_scale(math.nan))


@pytest.mark.parametrize("gain", ["level_gain", "gradient_gain"])
@pytest.mark.parametrize("function", [torch.zeros_like, lambda z: 1 / z, lambda z: z * math.nan])
def test_where_there_is_no_gain_none_is_told(function, gain):
    with pytest.raises(BadInput, match=r"for a gain that keeps the .*, must be positive and finite, got"):
        getattr(moments(function), gain)


@pytest.mark.parametrize(("name", "expected"), [("relu", 0.0), ("logistic", 0.25), ("tanh", 0.0)])
def test_the_level_behind_a_silent_layer_is_the_activations_value_at_zero(name, expected):
    assert level_after(lookup(name), 0.0) == expected


def test_the_level_behind_a_layer_is_the_second_moment():
    assert level_after(lookup("gelu"), 0.7) == moments(lookup("gelu"), 0.7).second


def is_stationary(q, name, weight_power, bias_power):
    return weight_power * moments(lookup(name), q).second + bias_power == pytest.approx(q, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "weight_power", "bias_power"),
    [("relu", 2.0, 0.0), ("selu", 1.0, 0.0), ("tanh", 2.25, 0.0), ("tanh", 2.25, 0.1), ("sigmoid", 1.0, 0.5)],
)
def test_the_stationary_level_stays_what_it_is(name, weight_power, bias_power):
    q = stationary_level(lookup(name), weight_power, bias_power)
    assert is_stationary(q, name, weight_power, bias_power)
    assert not is_stationary(1.5 * q, "tanh", weight_power, bias_power), "the check must reject another level"


def test_the_bias_belongs_to_the_stationary_level():
    assert not is_stationary(stationary_level(lookup("tanh"), 2.25), "tanh", 2.25, bias_power=0.1)


def test_a_network_without_a_fixed_point_grows_or_fades():
    assert stationary_level(lookup("relu"), 3.0) > 1e6
    assert stationary_level(lookup("relu"), 1.0) < 1e-12
    assert stationary_level(lookup("relu"), 8.0, layers=200) > 1e30, "stops once it is clear"


@pytest.mark.parametrize(("name", "q"), [("tanh", 1.0), ("tanh", 25.0), ("sigmoid", 9.0), ("hardtanh", 0.5)])
def test_the_saturated_share_is_the_share_of_samples_outside(name, q):
    low, high = lookup(name).responsive
    z = math.sqrt(q) * normal(SAMPLES).double()
    outside = ((z < low) | (z > high)).double()
    error = float(outside.std()) / SAMPLES**0.5
    assert abs(saturated_share(lookup(name), q) - float(outside.mean())) < 4 * error
    assert abs(saturated_share(lookup(name), q**2 + 1) - float(outside.mean())) > 4 * error, "the check must bite"


@pytest.mark.parametrize(("name", "q", "expected"), [("identity", 1e6, 0.0), ("tanh", 0.0, 0.0), ("tanh", 1e12, 1.0)])
def test_the_saturated_share_at_the_edge(name, q, expected):
    assert saturated_share(lookup(name), q) == pytest.approx(expected, abs=1e-5)


def test_moments_are_the_same_in_any_grad_mode():
    own = Activation("own", lambda z: F.gelu(z) + 0, "relu")
    with torch.no_grad():
        inside = moments(own, 1.0)
    assert inside.slope == pytest.approx(moments(lookup("gelu"), 1.0).slope)


BATCHES = 200


def pairs(activation, q, gap, mean):
    """(power, excess) of f(z1) - f(z2) in each of many batches of samples."""
    common = math.sqrt(q - gap / 2) * normal(BATCHES, SAMPLES // BATCHES, seed=1).double() + mean
    half = math.sqrt(gap / 2) * normal(BATCHES, SAMPLES // BATCHES, seed=2).double()
    square = (activation.function(common + half) - activation.function(common - half)).square()
    power, fourth = square.mean(1), square.square().mean(1)
    # about the mean of all, which is known ten times better: a batch's own square would be biased
    return power / 2, fourth / square.mean() ** 2 - 2 * power / square.mean() + 1


def within_errors(found, measured, sigmas=4.0):
    deviations = [
        abs(float(m.mean()) - f) / float(m.std()) * BATCHES**0.5 for f, m in zip(found, measured, strict=True)
    ]
    return max(deviations) < sigmas


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "selu"])
@pytest.mark.parametrize(("q", "gap", "mean"), [(1.0, 0.2, 0.0), (2.0, 2.0, 0.7), (2.0, 3.0, -0.7), (0.5, 1e-4, 1.0)])
def test_power_and_excess_of_a_difference_agree_with_samples(name, q, gap, mean):
    activation = lookup(name)
    measured = pairs(activation, q, gap, mean)
    found = pair_moments(activation, q, gap, mean)
    assert within_errors(found, measured)
    assert not within_errors((2 * found[0], found[1]), measured), "half forgotten"
    assert not within_errors((found[0], found[1] + 1), measured), "the square of the mean left in"
    assert not within_errors(pair_moments(activation, q, gap, mean + 0.5), measured), "another mean"
    assert not within_errors(pair_moments(activation, q, gap / 2, mean), measured), "another gap"


@pytest.mark.parametrize("gap", [1e-6, 0.5, 2.0, 4.0])
def test_a_gaussian_difference_has_the_excess_of_a_chi_squared_number(gap):
    assert pair_moments(lookup("identity"), 2.0, gap) == pytest.approx((gap, 2.0), rel=1e-9)


def test_relus_difference_of_samples_nearly_alike_has_the_excess_of_a_halved_one():
    """Half of the units are silent: E d^4 / (E d^2)^2 = 3 * 2 (Hanin & Rolnick 2018)."""
    power, excess = pair_moments(lookup("relu"), 1.0, 1e-8)
    assert power == pytest.approx(0.5e-8, rel=1e-3)
    assert excess == pytest.approx(5.0, rel=1e-3)
    assert pair_moments(lookup("relu"), 1.0, 1.0)[1] < 4.0, "samples that are not alike seldom are silent together"


def test_a_difference_of_nothing_is_nothing_and_none_is_larger_than_that_of_opposites():
    for gap in (0.0, -1e-9):
        assert pair_moments(lookup("tanh"), 1.0, gap) == (0.0, 0.0)
    assert pair_moments(lookup("tanh"), 1.0, 2.5) == pair_moments(lookup("tanh"), 1.0, 2.0)
    power, _ = pair_moments(lookup("tanh"), 1.0, 2.0)
    assert power == pytest.approx(2 * moments(lookup("tanh"), 1.0).second, rel=1e-3), "f(-z) = -f(z)"
    assert pair_moments(Activation("constant", torch.ones_like, "other"), 1.0, 0.5) == (0.0, 0.0)


@pytest.mark.parametrize("name", ["tanh", "gelu", "relu"])
@pytest.mark.parametrize("mean", [-1.0, 0.3, 5.0])
def test_moments_around_a_mean_are_those_of_the_shifted_function(name, mean):
    function = lookup(name).function
    shifted = moments(Activation("shifted", lambda z: function(z + mean), "other"), 1.7)
    found = moments(lookup(name), 1.7, mean)
    for quantity in ("mean", "second", "slope", "fourth"):
        assert getattr(found, quantity) == pytest.approx(getattr(shifted, quantity), rel=1e-6)
    assert found.second != pytest.approx(moments(lookup(name), 1.7).second, rel=1e-2)


@pytest.mark.parametrize("function", [torch.log, torch.zeros_like, torch.sqrt, lambda z: z * math.nan])
def test_no_weights_fit_a_function_that_is_not_finite_or_nothing_but_zero(function):
    with pytest.raises(BadInput, match=r"the activation odd is not finite and non-zero .* of variance 2"):
        finite_moments(Activation("odd", function, "other"), 2.0)


def test_finite_moments_are_the_moments():
    assert finite_moments(lookup("gelu"), 0.7) == moments(lookup("gelu"), 0.7)


def test_a_function_that_bends_far_from_the_middle_is_resolved_there():
    at = moments(lookup("tanh"), 1e6, 2000.0)
    density = math.exp(-2) / math.sqrt(2 * math.pi * 1e6)  # of N(2000, 10^6) at 0, where alone tanh is steep
    assert at.slope == pytest.approx(4 / 3 * density, rel=1e-3), "the integral of (1 - tanh^2)^2 is 4/3"
