"""The ledger as data: records, frames, JSON."""

import json
import math

import pytest

from gainstage.signal import Ledger, Row
from gainstage.signal.ledger import span_name


def ledger(**numbers):
    rows = (Row(0, "first", "linear + relu", 16, signal=1.0, **numbers), Row(1, "second", "linear", 4, signal=0.5))
    return Ledger(rows, None, 8, 1.5, "3 of 3 operations understood")


def test_frames_have_one_line_a_stage_and_the_same_columns():
    pandas, polars = ledger(gain=0.5).to_pandas(), ledger(gain=0.5).to_polars()
    assert list(pandas.columns) == polars.columns
    assert list(pandas["name"]) == polars["name"].to_list() == ["first", "second"]
    assert polars["gain"].to_list() == [0.5, None]


def test_a_column_that_starts_with_nothing_becomes_a_number_in_polars():
    assert ledger().to_polars()["signal"].to_list() == [1.0, 0.5]


def test_json_is_strict_also_with_infinities():
    text = ledger(gradient=math.inf).to_json()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["stages"][0]["gradient"] == "inf"


def test_the_gradient_norm_counts_the_width_in():
    assert Row(0, "a", "", 100, gradient=0.1).gradient_norm_db == pytest.approx(0.0)
    assert Row(0, "a", "", 100).gradient_norm_db is None


def test_a_row_is_found_by_name_and_a_wrong_name_lists_the_right_ones():
    assert ledger().row("second").units == 4
    with pytest.raises(KeyError, match="first, second"):
        ledger().row("third")


def test_spans_read_as_people_write_them():
    rows = ledger().rows
    assert span_name(rows[:1]) == "stage first"
    assert span_name(rows) == "stages first to second"


def test_standard_errors_count_how_far_a_gain_is_above_theory():
    row = Row(0, "a", "", 4, gain=1.2, expected_gain=1.0, gain_error=0.1)
    assert row.gain_sigmas == pytest.approx(2)
    below = Row(0, "a", "", 4, backward_gain=0.7, expected_backward_gain=1.0, backward_gain_error=0.1)
    assert below.backward_gain_sigmas == pytest.approx(-3)
    assert row.backward_gain_sigmas is None


@pytest.mark.parametrize("missing", ["gain", "expected_gain", "gain_error"])
def test_without_one_of_the_three_there_is_no_count(missing):
    known = {"gain": 1.2, "expected_gain": 1.0, "gain_error": 0.1}
    assert Row(0, "a", "", 4, **{**known, missing: None}).gain_sigmas is None
    assert Row(0, "a", "", 4, **{**known, "gain_error": 0.0}).gain_sigmas is None


def test_a_signal_a_millionth_of_the_offset_is_rounding():
    assert Row(0, "a", "", 4, signal=0.9e-6, offset=1.0).is_rounding
    assert not Row(0, "a", "", 4, signal=1.1e-6, offset=1.0).is_rounding
    assert not Row(0, "a", "", 4, signal=1e-9).is_rounding
    assert not Row(0, "a", "", 4).is_rounding
