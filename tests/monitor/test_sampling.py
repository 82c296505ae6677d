"""When to measure: dense at first, then within the budget; all times come from a clock that the tests move by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest

from gainstage.monitor import sampling
from gainstage.monitor.sampling import DENSE, Sampler

PLAIN, MEASURED = 1.0, 1.5  # seconds that a step takes


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(sampling, "perf_counter", clock)
    return clock


def train(sampler: Sampler, clock: Clock, steps: int, plain: float = PLAIN, measured: float = MEASURED) -> list[int]:
    """A training whose steps take so many seconds; returns the steps that were measured."""
    taken = []
    for step in range(steps):
        due = sampler.due(step)
        taken += [step] * due
        clock.now += measured if due else plain
        sampler.stepped(step, due)
    return taken


@pytest.mark.parametrize(("every", "steps"), [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6]), (7, [0]), (100, [0])])
def test_a_fixed_interval_is_kept(clock, every, steps):
    assert train(Sampler(every=every), clock, 7) == steps


@pytest.mark.parametrize("measured", [1.0, 1.5, 100.0])
def test_a_fixed_interval_does_not_depend_on_the_time(clock, measured):
    assert train(Sampler(every=4), clock, 12, measured=measured) == [0, 4, 8]


@pytest.mark.parametrize("measured", [1.0, 1.5, 100.0])
def test_the_first_steps_are_measured_densely_whatever_it_costs(clock, measured):
    assert train(Sampler(), clock, 65, measured=measured) == list(DENSE) == [0, 1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize(
    ("budget", "measured", "interval"),
    [(0.125, 1.5, 4), (0.25, 1.5, 2), (0.125, 2.0, 8), (0.015625, 1.5, 32), (0.3, 1.5, 2), (0.5, 1.25, 1)],
)
def test_the_interval_spreads_the_cost_over_the_budget(clock, budget, measured, interval):
    sampler = Sampler(budget=budget)
    taken = train(sampler, clock, 300, measured=measured)
    assert sampler.interval == interval
    later = [step for step in taken if step > 65 + interval]
    assert {b - a for a, b in pairwise(later)} == {interval}


@pytest.mark.parametrize("measured", [1.0, 0.5])
def test_measuring_that_costs_nothing_is_done_at_every_step(clock, measured):
    sampler = Sampler()
    assert train(sampler, clock, 100, measured=measured)[8:] == list(range(65, 100))
    assert sampler.interval == 1


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("measured", [1.2, 3.0, 12.0])
def test_the_overhead_keeps_to_the_budget_behind_the_first_steps(clock, budget, measured):
    sampler = Sampler(budget=budget)
    train(sampler, clock, 65, measured=measured)
    extra, total = sampler.extra_seconds, sampler.total_seconds
    for step in range(65, 20_065):
        due = sampler.due(step)
        clock.now += measured if due else PLAIN
        sampler.stepped(step, due)
    share = (sampler.extra_seconds - extra) / (sampler.total_seconds - total)
    assert budget / 3 < share <= budget


def test_the_interval_follows_the_cost(clock):
    sampler = Sampler(budget=0.125)
    train(sampler, clock, 200)
    cheap = sampler.interval
    for step in range(200, 2_000):
        due = sampler.due(step)
        clock.now += 3.0 if due else PLAIN
        sampler.stepped(step, due)
    assert (cheap, sampler.interval) == (4, 16)


@pytest.mark.parametrize("steps", [[], [True], [False, False], [True, True]])
def test_the_interval_is_ten_until_both_kinds_of_steps_have_been_timed(clock, steps):
    sampler = Sampler()
    for step, measured in enumerate(steps):
        clock.now += PLAIN
        sampler.stepped(step, measured)
    assert sampler.interval == 10


def test_the_overhead_is_the_share_of_the_time_beyond_a_plain_step(clock):
    sampler = Sampler(every=4)
    taken = train(sampler, clock, 41)
    timed = len(taken) - 1  # the first step has no beginning that was seen
    assert sampler.overhead == pytest.approx(timed * (MEASURED - PLAIN) / (30 * PLAIN + timed * MEASURED))


@pytest.mark.parametrize("measured", [1.0, 0.5])
def test_the_overhead_is_never_negative(clock, measured):
    sampler = Sampler(every=4)
    train(sampler, clock, 40, measured=measured)
    assert sampler.overhead == 0.0


@pytest.mark.parametrize("steps", [0, 1])
def test_there_is_no_overhead_before_a_step_was_timed(clock, steps):
    sampler = Sampler()
    train(sampler, clock, steps)
    assert sampler.overhead == 0.0


def test_one_slow_step_does_not_move_the_interval(clock):
    sampler = Sampler(budget=0.125)
    train(sampler, clock, 100)
    clock.now += 1000.0  # a pause, such as an evaluation
    sampler.stepped(100, False)
    assert sampler.interval == 4


def test_a_clock_that_is_too_coarse_does_no_harm(clock):
    assert train(Sampler(), clock, 6, plain=0.0, measured=0.0) == [0, 1, 2, 4]
