"""Numbers as the reports write them: golden texts, and both halves of a gain saying the same."""

from __future__ import annotations

import math
import re

import pytest

from gainstage.report import figures

ABSENT = (None, math.nan)


def agree(text: str) -> bool:
    """True when the ratio and the decibels of "x0.24 (-12.4)" mean the same, within their rounding."""
    found = re.fullmatch(r"x(\S+) \(([+-]\d+\.\d)\)", text)
    assert found is not None, text
    return math.isclose(20 * math.log10(float(found[1])), float(found[2]), abs_tol=0.1)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "0.0"), (10.0, "20.0"), (0.24, "-12.4"), (1e-8, "-160.0"), (0.0, "-inf"), (math.inf, "inf")],
)
def test_a_level_is_written_in_decibels(value, text):
    assert figures.level(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "x1 (+0.0)"),
        (0.24, "x0.24 (-12.4)"),
        (2.0, "x2 (+6.0)"),
        (1.23e-5, "x1.23e-05 (-98.2)"),
        (0.0, "x0 (-inf)"),
        (math.inf, "xinf (inf)"),
    ],
)
def test_a_gain_is_written_as_ratio_and_decibels(value, text):
    assert figures.gain(value) == text


@pytest.mark.parametrize(("value", "text"), [(1.0, "+0.0"), (0.24, "-12.4"), (2.0, "+6.0"), (0.0, "-inf")])
def test_a_gain_in_decibels_alone_carries_its_sign(value, text):
    assert figures.gain_db(value) == text


@pytest.mark.parametrize("exponent", range(-12, 13, 3))
@pytest.mark.parametrize("factor", [1.0, 1.234, 4.56, 9.994])
def test_ratio_and_decibels_of_a_gain_agree(factor, exponent):
    assert agree(figures.gain(factor * 10.0**exponent))


@pytest.mark.parametrize("wrong", ["x0.24 (+12.4)", "x2 (+3.0)", "x2 (+6.3)"])
def test_the_comparison_of_ratio_and_decibels_notices_a_difference(wrong):
    assert not agree(wrong)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0%"), (0.001, "0.1%"), (0.009, "0.9%"), (0.0095, "1%"), (0.43, "43%"), (1.0, "100%")],
)
def test_a_share_is_written_in_percent_and_a_small_one_with_a_decimal(value, text):
    assert figures.share(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.00191, "0.00191"), (1.0, "1"), (1234.5, "1.23e+03"), (0.0, "0")])
def test_a_plain_number_has_three_digits(value, text):
    assert figures.number(value) == text


@pytest.mark.parametrize("write", [figures.level, figures.gain, figures.gain_db])
@pytest.mark.parametrize("value", ABSENT)
def test_a_size_that_is_not_known_is_a_dash_and_never_a_zero(write, value):
    assert write(value) == figures.NOT_OBSERVED


@pytest.mark.parametrize("write", [figures.share, figures.number])
def test_what_was_not_observed_is_a_dash_and_never_a_zero(write):
    assert write(None) == figures.NOT_OBSERVED


def test_the_dash_holds_no_digit():
    assert not any(character.isdigit() for character in figures.NOT_OBSERVED)


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 findings"), (1, "1 finding"), (2, "2 findings"), (200, "200 findings")]
)
def test_a_count_agrees_with_its_noun(number, text):
    assert figures.count(number, "finding") == text
