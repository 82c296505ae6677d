"""Functions with singularities, with jumps, or that grow fast: their moments are right, or infinite, or not known."""

import math

import pytest
import torch
from torch.nn import functional as F

from gainstage.errors import BadInput
from gainstage.theory import KNOWN, expectation, finite_moments, lookup, moments, saturated_share
from gainstage.theory.moments import pair_moments
from gainstage.theory.quadrature import find_jumps, find_kinks, find_singularities

EULER = 0.5772156649015329


def power_of(exponent, place=0.0):
    return lambda z: (z - place).abs() ** exponent


def absolute_moment(exponent):
    """E |z|^exponent for z ~ N(0, 1)."""
    return 2 ** (exponent / 2) * math.gamma((exponent + 1) / 2) / math.sqrt(math.pi)


def log_size(z):
    return z.abs().log()


def swelling(rate):
    return lambda z: (rate * z * z).exp()


@pytest.mark.parametrize("exponent", [-0.25, -0.1, 0.1, 0.5, 0.75, 1.5, 3.0])
def test_powers_have_their_known_moments(exponent):
    found = finite_moments(power_of(exponent))
    assert found.second == pytest.approx(absolute_moment(2 * exponent), rel=1e-5)
    assert found.mean == pytest.approx(absolute_moment(exponent), rel=1e-5)
    if exponent > 0.5:
        assert found.slope == pytest.approx(exponent**2 * absolute_moment(2 * exponent - 2), rel=1e-5)
    else:
        assert found.slope == math.inf


def test_so_has_a_logarithm():
    """ln |z| of mean -(gamma + ln 2) / 2 and variance pi^2 / 8."""
    found = finite_moments(log_size)
    assert found.mean == pytest.approx(-(EULER + math.log(2)) / 2, rel=1e-6)
    assert found.variance == pytest.approx(math.pi**2 / 8, rel=1e-6)
    assert found.slope == math.inf


@pytest.mark.parametrize("q", [0.25, 1.0, 9.0])
def test_so_has_an_exponential(q):
    assert finite_moments(torch.exp, q).second == pytest.approx(math.exp(2 * q), rel=1e-4)
    assert finite_moments(swelling(0.2 / q), q).second == pytest.approx(1 / math.sqrt(1 - 0.8), rel=1e-4)


@pytest.mark.parametrize(
    "function",
    [
        lambda z: 1 / z,
        lambda z: 1 / (z - 1 / 3),
        lambda z: 1 / (3 * z - 1) ** 2,
        power_of(-0.5),
        power_of(-0.5, 1.7),
        torch.tan,
        swelling(1.0),
        swelling(0.25),
        swelling(0.24),  # finite, but most of it lies outside the range of integration
        lambda z: (10 * z).exp(),  # so does this
        lambda z: z.exp().exp(),
    ],
)
def test_an_integral_that_does_not_converge_is_infinite(function):
    assert moments(function).second == math.inf
    with pytest.raises(BadInput, match=r"E f\^2 is infinite, or too large to be told\): no weights fit it"):
        finite_moments(function)


def test_the_mean_may_converge_where_the_square_does_not():
    assert moments(power_of(-0.5)).mean == pytest.approx(absolute_moment(-0.5), rel=1e-5)
    assert moments(lambda z: 1 / z**2).mean == math.inf
    assert math.isnan(moments(lambda z: 1 / z).mean), "the two halves may cancel or not"


@pytest.mark.parametrize("q", [1e-30, 1e-8, 1e-3, 1.0, 1e3, 1e8, 1e17])
@pytest.mark.parametrize("name", KNOWN)
def test_all_moments_of_what_is_known_are_finite(name, q):
    found = moments(name, q)
    assert all(math.isfinite(value) for value in (found.mean, found.second, found.slope, found.fourth))


def test_expectations_that_do_not_converge_are_no_numbers():
    assert expectation(lambda z: 1 / z**2) == math.inf
    assert expectation(torch.exp, 400.0) == math.inf
    assert math.isnan(expectation(lambda z: 1 / z))
    assert math.isnan(expectation(lambda z: z * swelling(0.6)(z)))
    assert expectation(power_of(-0.5)) == pytest.approx(absolute_moment(-0.5), rel=1e-5)
    assert expectation(power_of(-0.5, 0.3), breaks=(0.3,)) == pytest.approx(expectation(power_of(-0.5, 0.3)), rel=1e-5)


@pytest.mark.parametrize(
    ("function", "places"),
    [
        (lambda z: 1 / z, (0,)),
        (lambda z: 1 / (z - 1 / 3), (1 / 3,)),
        (log_size, (0,)),
        (lambda z: (z + 2).sign() * (z + 2).abs().sqrt(), (-2,)),
        (torch.tan, tuple(math.pi * (n + 0.5) for n in range(-6, 6))),
        (power_of(0.9, 1.0), (1,)),
        (torch.tanh, ()),
        (lambda z: torch.tanh(1000 * (z - 1)), ()),
        (F.relu, ()),
        (torch.sign, ()),
        (torch.exp, ()),
        (lambda z: z * z, ()),
        (power_of(1.5), ()),
    ],
)
def test_singularities_are_found(function, places):
    assert find_singularities(function, find_kinks(function)) == pytest.approx(places, abs=1e-8)


@pytest.mark.parametrize(
    ("function", "places"),
    [(torch.sign, (0,)), (lambda z: (z > 1).to(z.dtype) * z, (1,)), (F.hardshrink, (-0.5, 0.5)), (F.relu, ()), (F.selu, ())],
)  # fmt: skip
def test_jumps_are_told_from_kinks(function, places):
    assert find_jumps(function, find_kinks(function)) == pytest.approx(places, abs=1e-8)


@pytest.mark.parametrize("q", [0.01, 1.0, 25.0])
@pytest.mark.parametrize("distance", [1.0, 0.5, 0.1, 1e-3, 1e-6, 1e-10])
def test_the_signal_behind_a_sign_is_the_angle_between_the_samples(q, distance):
    """E (sign u - sign v)^2 / 2 = 2 angle / pi (Sheppard 1899): however alike they are, some differ."""
    angle = 2 * math.asin(math.sqrt(distance / 2))
    power, excess = pair_moments(torch.sign, q, distance * q)
    assert power == pytest.approx(2 * angle / math.pi, rel=1e-6)
    assert excess == pytest.approx(math.pi / angle - 1, rel=1e-6), "d^2 is 4 or 0"


def test_a_jump_away_from_the_middle_is_followed_as_well():
    shifted = pair_moments(lambda z: (z - 1.3).sign(), 1.0, 0.1)
    assert pair_moments(torch.sign, 1.0, 0.1, mean=-1.3) == pytest.approx(shifted, rel=1e-9)
    assert shifted[0] < 0.5 * pair_moments(torch.sign, 1.0, 0.1)[0]


@pytest.mark.parametrize("distance", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("function", [torch.tanh, F.hardtanh])
def test_far_out_a_bend_is_a_jump(function, distance):
    """Of a power of 10^8 only 1 in 10^4 values lies where tanh is not a sign."""
    found, limit = (pair_moments(f, 1e8, distance * 1e8)[0] for f in (function, torch.sign))
    assert found == pytest.approx(limit, rel=1e-3)


@pytest.mark.parametrize("function", [log_size, power_of(-0.25), lambda z: 1 / z, torch.tan, swelling(1.0), torch.log])
def test_of_the_difference_behind_a_singularity_nothing_is_said(function):
    assert all(map(math.isnan, pair_moments(function, 1.0, 0.5)))


def test_where_there_is_no_steepest_slope_nothing_saturates():
    for function in (
        torch.exp,
        lambda z: z * z,
        lambda z: F.relu(z) ** 2,
        log_size,
        lambda z: 1 / z,
        lambda z: 1 / (z - 2),
        power_of(0.5, 1),
        swelling(1.0),
    ):
        assert lookup(function).responsive == (-math.inf, math.inf)
        assert not lookup(function).saturates
        assert saturated_share(function, 1.0) == 0.0
    assert lookup(lambda z: torch.tanh(z) * 1.01).saturates
