"""Curves of activations, drawn in the terminal with braille characters: eight dots a character, no display needed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text
from torch import Tensor

from gainstage.errors import BadInput
from gainstage.theory import Activation
from gainstage.theory.quadrature import derivative

ROWS = 12  # characters of height for one activation
WIDEST = 80  # columns; a wider curve reads no better
LABEL = 8  # columns for the numbers beside the axis
DASH, GAP = 6, 4  # dots of the dashed line
BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille character's dots, by row and column
BRAILLE, SHADE = 0x2800, "░"
SOLID, DASHED, FAINT = "bold cyan", "yellow", "dim"

Cells = Mapping[tuple[int, int], int]


@dataclass(frozen=True)
class Curve:
    """An activation over a range, all dimensionless.

    z, value, slope: float64 tensors of shape (points,), the inputs, f(z) and f'(z). saturated: the intervals in which
    |f'| stays below 5 % of its maximum.
    """

    name: str
    z: Tensor
    value: Tensor
    slope: Tensor
    saturated: tuple[tuple[float, float], ...]

    @property
    def low(self) -> float:
        """The smallest of f, f' and 0."""
        return min(float(torch.minimum(self.value, self.slope).min()), 0.0)

    @property
    def high(self) -> float:
        """The largest of f, f' and 0; 1 where all are 0."""
        high = max(float(torch.maximum(self.value, self.slope).max()), 0.0)
        return high if high > self.low else 1.0


def curve_of(activation: Activation, low: float, high: float, points: int = 801) -> Curve:
    """The curve of `activation` from `low` to `high`; BadInput for an empty or infinite range."""
    if not (low < high and math.isfinite(high - low)):
        raise BadInput(f"the range of a plot goes from a lower to a higher finite number, got {low:g} to {high:g}")
    z = torch.linspace(low, high, points, dtype=torch.float64)
    first, last = activation.responsive
    outside = ((low, min(first, high)), (max(last, low), high))
    saturated = tuple((start, end) for start, end in outside if start < end)
    return Curve(activation.name, z, activation.function(z), derivative(activation.function, z), saturated)


@dataclass(frozen=True)
class Plot:
    """Curves below each other, as wide as the screen allows; f solid, f' dashed, saturation shaded."""

    curves: Sequence[Curve]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = max(min(options.max_width, WIDEST) - LABEL - 1, 8)
        for curve in self.curves:
            yield Text(curve.name, style="bold")
            yield from panel(curve, columns)
            yield ""
        yield Text.assemble(
            ("⠒⠒⠒ f(z)", SOLID), "   ", ("⠒ ⠒ f'(z)", DASHED), "   ",
            (f"{SHADE * 3} saturated: |f'| below 5 % of its maximum", FAINT),
        )  # fmt: skip


def panel(curve: Curve, columns: int, rows: int = ROWS) -> Iterator[Text]:
    """The lines of one curve: `rows` lines of `columns` characters behind an axis, and one with the range of z."""
    solid = _dots(curve, curve.value, columns, rows, dashed=False)
    dashed = _dots(curve, curve.slope, columns, rows, dashed=True)
    across, origin = _axis_row(curve, rows), _axis_column(curve, columns)
    labels = {0: f"{curve.high:.3g}", rows - 1: f"{curve.low:.3g}", across: "0"}
    for row in range(rows):
        line = Text(f"{labels.get(row, ''):>{LABEL}}│", style=FAINT)
        for column in range(columns):
            bits, more = solid.get((row, column), 0), dashed.get((row, column), 0)
            if bits or more:
                line.append(chr(BRAILLE + (bits | more)), style=SOLID if bits else DASHED)
            else:
                line.append(_background(curve, column, columns, row == across, column == origin), style=FAINT)
        yield line
    left, right = f"{float(curve.z[0]):g}", f"{float(curve.z[-1]):g}"
    yield Text(" " * (LABEL + 1) + left + "z".center(columns - len(left) - len(right)) + right, style=FAINT)


def _dots(curve: Curve, values: Tensor, columns: int, rows: int, dashed: bool) -> Cells:
    """Braille bits of the cells that a line touches; the solid line is closed where it is steep."""
    z = np.linspace(float(curve.z[0]), float(curve.z[-1]), 2 * columns)
    share = (curve.high - np.interp(z, curve.z.numpy(), values.numpy())) / (curve.high - curve.low)
    heights = np.rint(share * (4 * rows - 1)).astype(int)
    cells: dict[tuple[int, int], int] = defaultdict(int)
    for x, y in enumerate(heights):
        before = y if dashed or x == 0 else heights[x - 1]
        if not dashed or x % (DASH + GAP) < DASH:
            for dot in range(y, before, -1 if y > before else 1) or (y,):
                cells[dot // 4, x // 2] |= BITS[dot % 4][x % 2]
    return cells


def _axis_row(curve: Curve, rows: int) -> int:
    return round(curve.high / (curve.high - curve.low) * (4 * rows - 1)) // 4


def _axis_column(curve: Curve, columns: int) -> int | None:
    low, high = float(curve.z[0]), float(curve.z[-1])
    return round(-low / (high - low) * (2 * columns - 1)) // 2 if low <= 0 <= high else None


def _background(curve: Curve, column: int, columns: int, across: bool, down: bool) -> str:
    if across or down:
        return "┼" if across and down else "─" if across else "│"
    low, high = float(curve.z[0]), float(curve.z[-1])
    z = low + (column + 0.5) / columns * (high - low)
    return SHADE if any(start < z < end for start, end in curve.saturated) else " "
