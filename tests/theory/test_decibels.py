"""Decibels: gains of a chain add, and nothing is lost on the way there and back."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gainstage.theory import decibels, ratio

PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=60)
RATIOS = st.floats(1e-100, 1e100)
KNOWN = {1.0: 0.0, 10.0: 20.0, 0.5: -6.0206, 0.24: -12.3958, math.sqrt(2): 3.0103, 3.1e-7: -130.1728}


def matches_known_values(formula):
    return all(formula(ratio) == pytest.approx(expected, abs=1e-4) for ratio, expected in KNOWN.items())


def test_known_ratios_have_their_known_decibels():
    assert matches_known_values(decibels)
    assert not matches_known_values(lambda ratio: 10 * math.log10(ratio)), "decibels of power must be rejected"
    assert not matches_known_values(lambda ratio: 20 * math.log(ratio)), "the natural logarithm must be rejected"


@PROPERTY
@given(st.floats(-2000, 2000))
def test_decibels_undo_ratio(level):
    assert decibels(ratio(level)) == pytest.approx(level, abs=1e-9)


@PROPERTY
@given(RATIOS)
def test_ratio_undoes_decibels(value):
    assert ratio(decibels(value)) == pytest.approx(value, rel=1e-9)


@PROPERTY
@given(RATIOS, RATIOS)
def test_gains_add_where_ratios_multiply(first, second):
    assert decibels(first * second) == pytest.approx(decibels(first) + decibels(second), abs=1e-9)


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, -math.inf), (math.inf, math.inf), (None, None), (math.nan, None)]
)
def test_values_at_the_edge(value, expected):
    assert decibels(value) == expected


def test_silence_is_a_ratio_of_zero():
    assert ratio(-math.inf) == 0.0
    assert ratio(1e5) == math.inf, "more than a float holds"
