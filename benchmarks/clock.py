"""Times of actions that take turns, wall time and processor time of this thread, and their ratios."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from time import perf_counter, thread_time

import numpy as np
import torch

Action = Callable[[], object]
Times = dict[str, np.ndarray]  # by action: (rounds, calls, 2), seconds of wall and of processor time
Pair = tuple[float, float]  # wall, processor


def time_in_turn(
    actions: Mapping[str, Action], rounds: int, calls: int, device: str, collecting: bool = False
) -> Times:
    """In each round each action is called `calls` times on end; every other round goes the other way about. collecting:
    whether garbage is collected meanwhile, as in a user's loop; else what exists is kept out of all collections."""
    times = {name: np.empty((rounds, calls, 2)) for name in actions}
    with nullcontext() if collecting else _frozen():
        for number in range(rounds):
            for name in list(actions)[:: 1 - 2 * (number % 2)]:
                with nullcontext() if collecting else _without_collecting():
                    for call in range(calls):
                        times[name][number, call] = _timed(actions[name], device)
    return times


def repeated(action: Action, times: int) -> Action:
    """Many calls as one."""

    def block() -> None:
        for _ in range(times):
            action()

    return block


def median_ratio(times: Times, name: str, to: str = "plain") -> Pair:
    """Of each round the median of both, and of their ratios the median."""
    ratios = np.median(times[name], 1) / np.median(times[to], 1)
    return _pair(np.median(ratios, 0))


def total_ratio(times: Times, name: str, to: str = "plain", since: int = 0) -> Pair:
    """Of all the time from round `since` on."""
    return _pair(times[name][since:].sum((0, 1)) / times[to][since:].sum((0, 1)))


def median_time(times: Times, name: str) -> Pair:
    """Seconds of the middle call."""
    return _pair(np.median(times[name], (0, 1)))


def extra_time(times: Times, name: str, to: str = "plain") -> Pair:
    """Seconds a call takes longer: the median over the rounds."""
    return _pair(np.median(np.median(times[name], 1) - np.median(times[to], 1), 0))


def _pair(values: np.ndarray) -> Pair:
    return float(values[0]), float(values[1])


def _timed(action: Action, device: str) -> Pair:
    _synchronize(device)
    wall, processor = perf_counter(), thread_time()
    action()
    _synchronize(device)
    return perf_counter() - wall, thread_time() - processor


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


@contextmanager
def _frozen() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _without_collecting() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
