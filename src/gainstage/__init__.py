"""Gainstage measures every stage of a PyTorch network, says why it will not learn, repairs it and proves the repair."""

from __future__ import annotations

import random
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # at run time each name is imported when it is first used: torch takes its time
    from gainstage import nn as nn
    from gainstage import theory as theory
    from gainstage.checkup import Checkup as Checkup
    from gainstage.checkup import check as check
    from gainstage.initialization import initialize as initialize
    from gainstage.monitor import watch as watch
    from gainstage.program import Program as Program
    from gainstage.repair import fix as fix
    from gainstage.rules import Finding as Finding
    from gainstage.signal import Ledger as Ledger
    from gainstage.training import Run as Run
    from gainstage.training import fit as fit

__version__ = "0.1.0"

_HOME = {
    "Checkup": "checkup",
    "Finding": "rules",
    "Ledger": "signal",
    "Program": "program",
    "Run": "training",
    "check": "checkup",
    "fit": "training",
    "fix": "repair",
    "initialize": "initialization",
    "watch": "monitor",
}
_PACKAGES = ("nn", "theory")
__all__ = [*_HOME, *_PACKAGES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return _load(name)
    if name in _HOME:
        return getattr(_load(_HOME[name]), name)
    raise AttributeError(f"module 'gainstage' has no attribute {name!r}")


def _load(room: str) -> Any:
    """Import a room late, and leave Python's random state alone: some of the libraries draw from it when imported."""
    state = random.getstate()
    try:
        return import_module(f"gainstage.{room}")
    finally:
        random.setstate(state)


def __dir__() -> list[str]:
    return sorted(__all__)
