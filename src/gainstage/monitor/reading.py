"""What was measured at one step, kept small: a ledger is made of it when somebody looks."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cached_property

from gainstage.signal import Graph, Ledger
from gainstage.signal.prediction import source_fields
from gainstage.signal.rows import make_ledger
from gainstage.signal.values import Key

MOST = 512  # readings in a history


@dataclass(frozen=True)
class Measured:
    """The numbers of one pass over `samples` samples. units: of the tensors that leave a stage, by operation."""

    graph: Graph
    keys: tuple[Key, ...]
    numbers: array[float]
    units: dict[int, int]
    samples: int

    @property
    def readings(self) -> dict[Key, float]:
        """Number by quantity and place."""
        return dict(zip(self.keys, self.numbers, strict=True))

    def ledger(self, theory: bool) -> Ledger:
        """The ledger of the pass, with or without what theory expects (which takes most of the time)."""
        readings = self.readings
        sources = source_fields(self.graph, readings) if theory else None
        return make_ledger(self.graph, readings, sources, self.units, self.samples, None)


@dataclass(frozen=True)
class Reading:
    """One measured step. step: number of the optimiser's steps before it."""

    step: int
    measured: Measured

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger of the step."""
        return self.measured.ledger(theory=True)


def remember(history: list[Reading], step: int, measured: Measured) -> Reading:
    """Add a reading to a history, in place. Of more than 512 half are kept, at steps that lie evenly between the first and
    the latest."""
    if history and history[-1].measured.keys == measured.keys:  # one copy of what never changes
        measured = replace(measured, keys=history[-1].measured.keys, units=history[-1].measured.units)
    history.append(Reading(step, measured))
    if len(history) > MOST:
        steps = [each.step for each in history]
        even = (steps[0] + (steps[-1] - steps[0]) * part / (MOST // 2 - 1) for part in range(MOST // 2))
        history[:] = [history[place] for place in sorted({bisect_left(steps, at) for at in even})]
    return history[-1]
