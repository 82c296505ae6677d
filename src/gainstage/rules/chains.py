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


class Expectation(NamedTuple):
    """Theory for the stages of a fall together: its size in dB, negative for a fall, and its standard error."""

    size: float
    error: float

    def sigmas(self, fall: Fall) -> float | None:
        """How many standard errors the fall is away from it; None without an error."""
        return abs(fall.size + self.size) / self.error if self.error > 0 else None


def expected_fall(gains: Sequence[tuple[float | None, float | None]]) -> Expectation | None:
    """Of stages with these gains and standard errors (ratios); None when one of the gains is not known."""
    sizes = [decibels(gain) for gain, _ in gains]
    known = [size for size in sizes if size is not None and math.isfinite(size)]
    if not known or len(known) < len(sizes):
        return None
    relative = [error / gain for gain, error in gains if gain and error]
    return Expectation(sum(known), 20 / math.log(10) * math.sqrt(sum(error**2 for error in relative)))


def describe_fall(fall: Fall, expected: Expectation | None, judged: bool = True) -> str:
    """For example "x3.1e-07 (-130 dB) over 18 stages, -7.2 dB each; theory for these weights: -7.1 dB each, 0.4 sigma off".
    judged: whether the fall is certain enough to be compared."""
    if math.isinf(fall.size):
        return "to exactly zero"
    steps = abs(fall.stop - fall.start)
    total = f"x{ratio(-fall.size):.2g} (-{fall.size:.0f} dB) over {steps} stage{'s' * (steps > 1)}"
    text = f"{total}, -{fall.size / steps:.1f} dB each"
    if expected is None:
        return text
    text = f"{text}; theory for these weights: {expected.size / steps:+.1f} dB each"
    sigmas = expected.sigmas(fall) if judged else None
    return text if sigmas is None else f"{text}, {sigmas:.{0 if sigmas >= 10 else 1}f} sigma off"
