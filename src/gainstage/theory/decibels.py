"""Decibels: the scale on which the gains of a chain add."""

from __future__ import annotations

import math


def decibels(ratio: float | None) -> float | None:
    """20 log10 of a ratio of RMS values; minus infinity for 0, None for None."""
    if ratio is None or math.isnan(ratio):
        return None
    return 20 * math.log10(ratio) if ratio > 0 else -math.inf


def ratio(decibel: float) -> float:
    """The ratio of RMS values that `decibel` stands for."""
    return 10 ** (decibel / 20)
