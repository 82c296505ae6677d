"""Gaussian expectations: exact for polynomials, and not spoilt by kinks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gainstage.theory.quadrature import derivative, expectation, find_kinks, gaussian_nodes

PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=40)
VARIANCES = st.floats(-6, 6).map(lambda exponent: 10**exponent)


def hermite(function, nodes=201):
    """The textbook rule, which stumbles over kinks: what must not be good enough."""
    z, weights = np.polynomial.hermite_e.hermegauss(nodes)
    return float((torch.from_numpy(weights / weights.sum()) * function(torch.from_numpy(z))).sum())


@PROPERTY
@given(VARIANCES, st.sampled_from([(0, 1), (1, 0), (2, 1), (3, 0), (4, 3), (6, 15), (8, 105)]))
def test_powers_have_their_known_expectations(variance, power):
    exponent, factor = power
    expected = factor * variance ** (exponent / 2)
    tolerance = 1e-9 * variance ** (exponent / 2)
    assert expectation(lambda z: z**exponent, variance) == pytest.approx(expected, rel=1e-9, abs=tolerance)


@PROPERTY
@given(st.floats(0.05, 20), st.floats(-2, 2))
def test_a_step_counts_the_share_above_it(variance, place):
    def step(z):
        return (z > place).double()

    expected = 0.5 * math.erfc(place / math.sqrt(2 * variance))
    assert expectation(step, variance, breaks=(place,)) == pytest.approx(expected, abs=1e-9)


def test_splitting_at_the_kink_is_what_makes_the_step_exact():
    def exact(value):
        return value == pytest.approx(0.5 * math.erfc(0.3 / math.sqrt(2)), abs=1e-6)

    assert exact(expectation(lambda z: (z > 0.3).double(), breaks=(0.3,)))
    assert not exact(expectation(lambda z: (z > 0.3).double(), breaks=()))
    assert not exact(hermite(lambda z: (z > 0.3).double()))


def test_cosine_is_resolved_far_out_in_a_wide_gaussian():
    assert expectation(torch.cos, 9.0) == pytest.approx(math.exp(-4.5), abs=1e-12)


@pytest.mark.parametrize("variance", [1e-12, 1.0, 1e8])
def test_nodes_are_double_precision_and_their_weights_add_up_to_one(variance):
    z, weights = gaussian_nodes(variance)
    assert z.dtype == weights.dtype == torch.float64
    assert z.shape == weights.shape
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("variance", [0.0, -1.0, math.inf, math.nan])
def test_a_variance_that_is_none_is_refused(variance):
    with pytest.raises(ValueError, match="variance must be positive and finite"):
        gaussian_nodes(variance)


def test_derivative_is_the_slope_of_the_function_even_without_grad_mode():
    z = torch.linspace(-3, 3, 31, dtype=torch.float64)
    with torch.no_grad():
        slope = derivative(torch.tanh, z)
    assert torch.allclose(slope, 1 - torch.tanh(z) ** 2)
    assert not slope.requires_grad


@pytest.mark.parametrize("function", [torch.zeros_like, lambda z: torch.ones(3), lambda z: z.detach() ** 2])
def test_a_function_that_does_not_depend_on_its_input_has_slope_zero(function):
    assert derivative(function, torch.ones(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("function", "kinks"),
    [
        (F.relu, (0,)),
        (F.selu, (0,)),
        (F.hardtanh, (-1, 1)),
        (F.relu6, (0, 6)),
        (F.hardswish, (-3, 3)),
        (torch.sign, (0,)),
        (lambda z: 0.01 * F.relu(z - 2), (2,)),
    ],
)
def test_kinks_are_found(function, kinks):
    assert find_kinks(function) == pytest.approx(kinks, abs=1e-8)


@pytest.mark.parametrize("function", [torch.tanh, F.gelu, F.silu, F.elu, F.softsign, torch.sin, torch.zeros_like])
def test_smooth_functions_have_no_kinks(function):
    assert find_kinks(function) == ()


@PROPERTY
@given(st.floats(-19, 19), st.floats(0.1, 10))
def test_a_kink_is_found_wherever_it_sits(place, slope):
    assert find_kinks(lambda z: slope * F.relu(z - place)) == pytest.approx((place,), abs=1e-8)
