"""Curves in the terminal: what is drawn is where the function is, within a dot."""

import math
import re

import numpy as np
import pytest
import torch

from gainstage.errors import BadInput
from gainstage.nn.activations import pointwise
from gainstage.report import to_text
from gainstage.report.plots import BRAILLE, LABEL, ROWS, SHADE, Plot, curve_of, panel
from gainstage.theory import KNOWN, Activation

COLUMNS = 60
INSIDE = slice(LABEL + 1, None)


def drawn(name, low=-5.0, high=5.0):
    """The lines of a panel: ROWS rows of COLUMNS characters, and the axis below."""
    lines = [line.plain for line in panel(curve_of(pointwise(name), low, high), COLUMNS)]
    return [line[INSIDE] for line in lines[:-1]], lines


def dots(rows):
    """Places (x, y) of the dots, counted from the upper left."""
    order = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3))  # Unicode's numbering of the eight dots
    return {
        (2 * column + x, 4 * row + y)
        for row, line in enumerate(rows)
        for column, character in enumerate(line)
        if BRAILLE <= ord(character) < BRAILLE + 256
        for bit, (x, y) in enumerate(order)
        if ord(character) - BRAILLE >> bit & 1
    }


def heights(curve, values):
    """Where a line should be in each column of dots, by exact arithmetic."""
    z = np.linspace(float(curve.z[0]), float(curve.z[-1]), 2 * COLUMNS)
    exact = np.interp(z, curve.z.numpy(), values.numpy())
    return (curve.high - exact) / (curve.high - curve.low) * (4 * ROWS - 1)


@pytest.mark.parametrize("name", KNOWN)
def test_the_curve_holds_the_function_and_its_derivative(name):
    curve = curve_of(KNOWN[name], -3.0, 2.0)
    assert (float(curve.z[0]), float(curve.z[-1])) == (-3.0, 2.0)
    assert torch.equal(curve.value, KNOWN[name].function(curve.z))
    step = curve.z[1] - curve.z[0]
    middle = (curve.slope[1:] + curve.slope[:-1]) / 2
    kinks = torch.tensor([abs(curve.z[:-1] - kink).min() for kink in KNOWN[name].kinks])
    wrong = ((curve.value.diff() / step - middle).abs() > 1e-4).sum()
    assert wrong <= 2 * len(kinks)


@pytest.mark.parametrize(
    ("name", "low", "high", "expected"),
    [
        ("relu", -5, 5, [(-5, 0)]),
        ("identity", -5, 5, []),
        ("huge_leaky_relu", -5, 5, []),
        ("leaky_relu", -5, 5, [(-5, 0)]),
        ("logistic", -8, 8, [(-8, -4.36), (4.36, 8)]),
        ("tanh", -5, 1, [(-5, -2.18)]),
        ("tanh", 3, 5, [(3, 5)]),
        ("selu", -5, 5, [(-5, math.log(0.05))]),
        ("relu6", -1, 7, [(-1, 0), (6, 7)]),
    ],
)
def test_saturation_is_where_the_slope_is_below_a_twentieth(name, low, high, expected):
    saturated = curve_of(pointwise(name), low, high).saturated
    assert len(saturated) == len(expected)
    for found, right in zip(saturated, expected, strict=True):
        assert found == pytest.approx(right, abs=0.01)


@pytest.mark.parametrize("name", [*KNOWN, "huge_leaky_relu"])
def test_every_column_of_dots_has_the_function_within_a_dot(name):
    curve, (rows, _) = curve_of(pointwise(name), -5.0, 5.0), drawn(name)
    found = dots(rows)
    for x, y in enumerate(heights(curve, curve.value)):
        assert any(abs(y - dot) <= 0.5 for column, dot in found if column == x)


@pytest.mark.parametrize("name", ["selu", "logistic", "gelu"])
def test_the_derivative_is_dashed_and_no_dot_belongs_to_nothing(name):
    curve, (rows, _) = curve_of(pointwise(name), -5.0, 5.0), drawn(name)
    found, value, slope = dots(rows), heights(curve, curve.value), heights(curve, curve.slope)
    on_slope = {x for x, y in found if abs(y - slope[x]) <= 0.5}
    assert 0.5 < len(on_slope) / (2 * COLUMNS) < 0.8, "six dots in ten, and where the curves meet"
    for x, y in found:
        before = value[max(x - 1, 0)]
        on_value = min(value[x], before) - 0.5 <= y <= max(value[x], before) + 0.5
        assert on_value or abs(y - slope[x]) <= 0.5


def test_a_steep_curve_has_no_gaps():
    rows, _ = drawn("tanh", -100.0, 100.0)
    assert {y for x, y in dots(rows) if abs(x - COLUMNS) <= 3} == set(range(4 * ROWS))


def test_a_curve_drawn_for_another_activation_is_noticed():
    curve, (rows, _) = curve_of(pointwise("elu"), -5.0, 5.0), drawn("softplus")
    found = dots(rows)
    misses = [
        x
        for x, y in enumerate(heights(curve, curve.value))
        if not any(abs(y - dot) <= 0.5 for column, dot in found if column == x)
    ]
    assert len(misses) > 10


def test_saturation_is_shaded_and_nothing_else():
    rows, _ = drawn("relu6", -4.0, 8.0)
    for line in rows:
        shaded = {column for column, character in enumerate(line) if character == SHADE}
        assert not shaded & set(range(20, 50)), "relu6 responds from 0 to 6"
    assert rows[1][:20] == SHADE * 20
    assert rows[1][50:] == SHADE * 10


@pytest.mark.parametrize(
    ("low", "high", "cross"), [(-5.0, 5.0, True), (1.0, 5.0, False), (-5.0, -1.0, False), (0.0, 5.0, True)]
)
def test_the_axis_through_zero_is_drawn_where_zero_is(low, high, cross):
    rows, _ = drawn("relu", low, high)
    upright = {column for line in rows for column, character in enumerate(line) if character in "│┼"}
    assert upright == ({round(-low / (high - low) * (2 * COLUMNS - 1)) // 2} if cross else set())


def test_the_ends_of_both_axes_are_labelled():
    _, lines = drawn("selu", -4.0, 2.5)
    assert [line[:LABEL].strip() for line in lines if line[:LABEL].strip()] == ["2.63", "0", "-1.73"]
    assert lines[-1].split() == ["-4", "z", "2.5"]


@pytest.mark.parametrize("width", [30, 80, 200])
def test_plots_keep_to_the_width_and_name_every_activation(width):
    curves = [curve_of(pointwise(name), -5.0, 5.0) for name in ("selu", "elu", "leaky_relu")]
    text = to_text(Plot(curves), width)
    assert max(len(line) for line in text.splitlines()) <= min(width, 80)
    names = [line.strip() for line in text.splitlines() if re.fullmatch(r"[a-z_0-9.()]+ *", line)]
    assert names == ["selu", "elu", "leaky_relu(0.01)"]
    assert "saturated: |f'| below 5 % of its maximum" in " ".join(text.split())


def test_a_flat_function_can_be_drawn():
    flat = Activation("nothing", torch.zeros_like, "linear")
    assert to_text(Plot([curve_of(flat, -1.0, 1.0)]), 60).startswith("nothing")


@pytest.mark.parametrize(("low", "high"), [(5.0, 5.0), (5.0, -5.0), (math.nan, 1.0), (-math.inf, 0.0), (-1e308, 1e308)])
def test_an_empty_or_endless_range_is_refused(low, high):
    with pytest.raises(BadInput, match=re.escape(f"finite number, got {low:g} to {high:g}")):
        curve_of(pointwise("relu"), low, high)
