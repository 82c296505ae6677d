"""Numbers as the reports write them."""

from __future__ import annotations

import math

from gainstage.theory import decibels

NOT_OBSERVED = "–"


def level(value: float | None) -> str:
    """A size in dB relative to 1: "-12.3"."""
    db = decibels(value)
    return NOT_OBSERVED if db is None else _db(db)


def gain(value: float | None) -> str:
    """A gain as ratio and dB: "x0.24 (-12.4)"."""
    db = decibels(value)
    return NOT_OBSERVED if db is None or value is None else f"x{value:.3g} ({_db(db, sign=True)})"


def gain_db(value: float | None) -> str:
    """A gain in dB alone: "-12.4"."""
    db = decibels(value)
    return NOT_OBSERVED if db is None else _db(db, sign=True)


def share(value: float | None) -> str:
    """A share in percent: "43%"."""
    if value is None:
        return NOT_OBSERVED
    return f"{value:.1%}" if 0 < value < 0.0095 else f"{value:.0%}"


def number(value: float | None) -> str:
    """A plain number: "0.00191"."""
    return NOT_OBSERVED if value is None else f"{value:.3g}"


def _db(db: float, sign: bool = False) -> str:
    if math.isinf(db):
        return "-inf" if db < 0 else "inf"
    return f"{db:+.1f}" if sign else f"{db:.1f}"


def count(number: int, noun: str) -> str:
    """ "1 finding", "2 findings"."""
    return f"{number} {noun}{'s' * (number != 1)}"
