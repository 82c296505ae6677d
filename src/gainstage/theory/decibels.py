"""Decibels: the scale on which the gains of a chain add."""

from __future__ import annotations

import math

from gainstage.theory.checks import number, power


def decibels(ratio: float | None) -> float | None:
    """20 log10 of a ratio of RMS values; minus infinity for 0, None for None and NaN. Raises BadInput for a negative
    one and for what is no number."""
    if ratio is None or math.isnan(ratio := power(ratio, "a ratio of RMS values")):
        return None
    return 20 * math.log10(ratio) if ratio > 0 else -math.inf


def ratio(decibel: float) -> float:
    """The ratio of RMS values that `decibel` stands for; infinity beyond what a float holds. Raises BadInput for what is no
    number."""
    try:
        return 10 ** (number(decibel, "a level in dB") / 20)
    except OverflowError:
        return math.inf
