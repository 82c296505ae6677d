"""When to measure, and when to judge what was measured: dense at first, then as often as an overhead budget allows."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

from gainstage.errors import BadInput

DENSE = 64  # steps at the start, and behind a finding, in which the distances only grow: instability shows early
UNTIMED = 10  # steps between two measurements before their cost is known


@dataclass
class Schedule:
    """Which steps something is done at: at distances that grow by a factor over the first steps, then as the budget allows.

    growth: the factor. share: of the time that it may take.
    """

    growth: float
    share: float
    costs: deque[float] = field(default_factory=lambda: deque(maxlen=20))  # seconds
    _origin: int = 0
    _next: int = 0

    def due(self, step: int) -> bool:
        """True when `step` has its turn."""
        return step >= self._next

    def done(self, step: int, interval: int) -> None:
        """It was done at `step`; interval: steps to the next turn, once those are no longer dense."""
        since = step - self._origin
        dense = max(since + 1, int(since * self.growth))
        self._next = self._origin + dense if dense <= DENSE else step + interval

    def restart(self, step: int) -> None:
        """Be dense again from behind `step` on."""
        self._origin, self._next = step, step + 1

    def interval(self, plain: float | None) -> int:
        """Steps between two turns that keep to the share; plain: seconds that a step takes without it."""
        if not plain or not self.costs:
            return UNTIMED
        return max(1, math.ceil(max(median(self.costs), 0.0) / (self.share * plain)))


@dataclass
class Sampler:
    """Decides which steps are measured and which of these are judged by theory and rules, and keeps account of the cost.

    every: a fixed interval of measuring in steps; None adapts it. budget: share of the time that everything adaptive may
    take. Raises BadInput for an interval below 1 and a budget outside (0, 1).
    """

    every: int | None = None
    budget: float = 0.01
    extra_seconds: float = 0.0
    total_seconds: float = 0.0
    plain: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    measured: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    _last: float | None = None

    def __post_init__(self) -> None:
        if self.every is not None and (not isinstance(self.every, int) or self.every < 1):
            raise BadInput(f"every must be a whole number of at least 1 step, got {self.every!r}")
        if not isinstance(self.budget, (int, float)) or not 0 < self.budget < 1:
            raise BadInput(f"budget is the share of time that measuring may take, between 0 and 1, got {self.budget!r}")
        self.measuring = Schedule(1.5, self.budget / 2)
        self.judging = Schedule(2.0, self.budget / 2)

    def due(self, step: int) -> bool:
        """True when `step` is to be measured."""
        if self.every is not None:
            return step % self.every == 0
        return self.measuring.due(step) or self.judging.due(step)

    def judges(self, step: int) -> bool:
        """True when `step`, if it is measured, is to be judged too."""
        return self.judging.due(step)

    def stepped(
        self, step: int, measured: bool, judged: bool = False, intervals: tuple[int, int] | None = None
    ) -> None:
        """Take the time at the end of `step`; intervals: in steps, of measuring and of judging, where others decide them."""
        now = perf_counter()
        if self._last is not None:
            self._timed(now - self._last, measured, judged)
        self._last = now
        measuring, judging = intervals or self.intervals
        if measured:
            self.measuring.done(step, measuring)
        if judged:
            self.judging.done(step, judging)

    def _timed(self, seconds: float, measured: bool, judged: bool) -> None:
        self.total_seconds += seconds
        if not measured:
            self.plain.append(seconds)
            return
        if not judged:
            self.measured.append(seconds)
        usual = self._usual(self.plain or self.measured)
        if usual is not None:
            (self.judging if judged else self.measuring).costs.append(seconds - usual)
            self.extra_seconds += max(seconds - usual, 0.0)

    @staticmethod
    def _usual(seconds: deque[float]) -> float | None:
        return median(seconds) if seconds else None

    @property
    def intervals(self) -> tuple[int, int]:
        """Steps between two measurements, and between two judgements, that keep to the budget."""
        usual = self._usual(self.plain or self.measured)
        return self.measuring.interval(usual), self.judging.interval(usual)

    def found(self, step: int) -> None:
        """Something was found at `step`: look closely for a while."""
        self.measuring.restart(step)
        self.judging.restart(step)

    @property
    def overhead(self) -> float:
        """Share of the time so far that went into measuring, beyond the usual step that is not measured; where all are
        measured, beyond the usual one of those."""
        return self.extra_seconds / self.total_seconds if self.total_seconds else 0.0
