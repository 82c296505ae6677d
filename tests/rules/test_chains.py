"""Falls that last."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gainstage.rules.chains import ERROR_DB, WARNING_DB, Fall, describe_fall, expected_fall, largest_fall

LEVELS = st.lists(st.floats(-200, 50), min_size=2, max_size=20)


def test_thresholds_are_twelve_and_twenty_four_depth_scales():
    assert pytest.approx(20 * math.log10(math.exp(6))) == WARNING_DB
    assert ERROR_DB == 2 * WARNING_DB


@pytest.mark.parametrize(
    ("values", "fall"),
    [
        ([0, -10, -20, -30], Fall(0, 3, 30)),
        ([0, -50, 0], None),
        ([0, -50, -1], Fall(0, 2, 1)),
        ([-30, 0, -40], Fall(1, 2, 40)),
        ([0, -math.inf], Fall(0, 1, math.inf)),
        ([0, 1, 2], None),
        ([3], None),
        ([], None),
    ],
)
def test_only_a_fall_that_lasts_counts(values, fall):
    assert largest_fall(values) == fall


@given(LEVELS)
def test_nothing_behind_a_fall_comes_up_again(values):
    fall = largest_fall(values)
    if fall is not None:
        assert fall.size == pytest.approx(values[fall.start] - values[fall.stop])
        assert max(values[fall.stop :]) == values[fall.stop]
        assert fall.start < fall.stop


@given(LEVELS)
def test_a_sequence_that_ends_on_top_has_no_fall(values):
    assert largest_fall([*values, max(values)]) is None


def test_a_fall_is_described_with_its_slope_and_theory():
    expected = expected_fall([(0.3, 0.03)] * 4)
    text = describe_fall(Fall(0, 4, 40.0), expected)
    assert text == "x0.01 (-40 dB) over 4 stages, -10.0 dB each; theory for these weights: -10.5 dB each, 1.1 sigma off"
    assert "sigma" not in describe_fall(Fall(0, 4, 40.0), expected, judged=False)
    assert "theory" not in describe_fall(Fall(0, 4, 40.0), expected_fall([(0.3, 0.03), (None, None)]))
    assert describe_fall(Fall(0, 1, math.inf), None) == "to exactly zero"


def test_errors_of_stages_add_up_as_squares():
    one, four = expected_fall([(0.5, 0.05)]), expected_fall([(0.5, 0.05)] * 4)
    assert four.size == pytest.approx(4 * one.size) == pytest.approx(4 * 20 * math.log10(0.5))
    assert four.error == pytest.approx(2 * one.error)
    assert one.error == pytest.approx(20 * math.log10(1.1), rel=0.06), "a tenth of the gain"


def test_sigmas_need_an_error_and_unknown_gains_give_no_expectation():
    assert expected_fall([(0.1, None)]).sigmas(Fall(0, 1, 20.0)) is None
    assert expected_fall([(0.1, 0.01), (None, None)]) is None
    assert expected_fall([]) is None
