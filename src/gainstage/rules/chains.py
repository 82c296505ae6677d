"""Falls along a chain of stages: what the rules of vanishing and exploding share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from gainstage.rules.base import Context
from gainstage.signal import Row
from gainstage.theory import decibels, ratio

# Plain gradient descent trains through about six depth scales (Schoenholz 2017), a factor e^-6 or -26 dB in power; adaptive
# optimisers reach further. Healthy networks lose up to that: 20 ReLU layers with He weights -12 dB, four hidden layers of
# torch's defaults -31 dB; and sound ones grow: batch normalisation with ReLU by 1.7 dB a stage going back. Twice the six
# is worth a warning, and at four times, where single precision ends, nothing is left.
WARNING_DB = 2 * 10 * math.log10(math.e**6)
ERROR_DB = 2 * WARNING_DB


class Fall(NamedTuple):
    """From position `start` to position `stop` of a sequence everything falls by `size` dB, and stays down."""

    start: int
    stop: int
    size: float


def largest_fall(values: Sequence[float]) -> Fall | None:
    """The largest fall that lasts: nothing behind it comes up again to what stood in front of it.

    Compared are the maxima before and after each position, so that a branch that starts at zero beside a sound trunk
    does not count. Minus infinity is allowed. None for fewer than two values or when nothing falls.
    """
    best: Fall | None = None
    for cut in range(1, len(values)):
        start = max(range(cut), key=lambda i: values[i])
        stop = max(range(cut, len(values)), key=lambda i: values[i])
        size = values[start] - values[stop] if values[start] > -math.inf else 0.0
        if size > 0 and (best is None or size > best.size):
            best = Fall(start, stop, size)
    return best


def hidden_path(context: Context) -> list[Row]:
    """Ledger rows from the first stage to the last but one, along the main path."""
    assert context.ledger is not None
    return [context.ledger.rows[i] for i in context.graph.main_path() if i != context.graph.output_stage]


def describe_fall(fall: Fall, expected: Sequence[float | None]) -> str:
    """For example "x3.1e-07 (-130 dB), -7.2 dB each; theory for these weights: -7.1 dB each"."""
    if math.isinf(fall.size):
        return "to exactly zero"
    steps = abs(fall.stop - fall.start)
    total = f"x{ratio(-fall.size):.2g} (-{fall.size:.0f} dB) over {steps} stage{'s' * (steps > 1)}"
    text = f"{total}, -{fall.size / steps:.1f} dB each"
    mean = mean_decibels(expected)
    return text if mean is None else f"{text}; theory for these weights: {mean:+.1f} dB each"


def mean_decibels(gains: Sequence[float | None]) -> float | None:
    """Mean of gains in dB; None when one of them is not known."""
    values = [decibels(gain) for gain in gains]
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known and len(known) == len(values) else None
