"""When to measure: dense at first, then as often as an overhead budget allows."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

from gainstage.errors import BadInput

DENSE = (0, 1, 2, 4, 8, 16, 32, 64)  # early instability shows in the first steps


@dataclass
class Sampler:
    """Decides which steps are measured, and keeps account of what measuring costs.

    every: a fixed interval in steps; None adapts it so that measuring takes the share `budget` of the time. Raises
    BadInput for an interval below 1 and a budget outside (0, 1).
    """

    every: int | None = None
    budget: float = 0.01
    plain: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    measured: deque[float] = field(default_factory=lambda: deque(maxlen=20))
    extra_seconds: float = 0.0
    total_seconds: float = 0.0
    _next: int = 0
    _last: float | None = None

    def __post_init__(self) -> None:
        if self.every is not None and (not isinstance(self.every, int) or self.every < 1):
            raise BadInput(f"every must be a whole number of at least 1 step, got {self.every!r}")
        if not isinstance(self.budget, (int, float)) or not 0 < self.budget < 1:
            raise BadInput(f"budget is the share of time that measuring may take, between 0 and 1, got {self.budget!r}")

    def due(self, step: int) -> bool:
        """True when `step` is to be measured."""
        if self.every is not None:
            return step % self.every == 0
        return step in DENSE or step >= max(self._next, DENSE[-1] + 1)

    def stepped(self, step: int, measured: bool, interval: int | None = None) -> None:
        """Take the time at the end of `step`; interval: of steps to the next measurement, where others decide that."""
        now = perf_counter()
        if self._last is not None:
            seconds = now - self._last
            self.total_seconds += seconds
            (self.measured if measured else self.plain).append(seconds)
            if measured and self.plain:
                self.extra_seconds += max(seconds - median(self.plain), 0.0)
        self._last = now
        if measured:
            self._next = step + (interval or self.interval)

    @property
    def interval(self) -> int:
        """Steps between two measurements that keep to the budget; 10 until both kinds of steps have been timed."""
        if not self.plain or not self.measured:
            return 10
        plain = max(median(self.plain), 1e-9)  # a coarse clock may show nothing
        extra = max(median(self.measured) - plain, 0.0)
        return max(1, math.ceil(extra / (self.budget * plain)))

    @property
    def overhead(self) -> float:
        """Share of the time so far that measuring took."""
        return self.extra_seconds / self.total_seconds if self.total_seconds else 0.0
