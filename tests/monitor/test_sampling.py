"""When to measure and when to judge: dense at first, then within the budget; the tests move the clock by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest

from gainstage.monitor import sampling
from gainstage.monitor.sampling import DENSE, UNTIMED, Sampler, Schedule

PLAIN, MEASURED, JUDGED = 1.0, 1.5, 3.0  # seconds that a step takes


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


def train(
    sampler: Sampler, clock: Clock, steps: int, plain: float = PLAIN, measured: float = MEASURED, judged: float = JUDGED
) -> tuple[list[int], list[int]]:
    """A training whose steps take so many seconds; returns the steps that were measured, and those judged too."""
    taken, looked_at = [], []
    for step in range(steps):
        due = sampler.due(step)
        judges = due and sampler.judges(step)
        taken += [step] * due
        looked_at += [step] * judges
        clock.now += judged if judges else measured if due else plain
        sampler.stepped(step, due, judges)
    return taken, looked_at


@pytest.mark.parametrize(("every", "steps"), [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6]), (7, [0]), (100, [0])])
def test_a_fixed_interval_is_kept(clock, every, steps):
    assert train(Sampler(every=every), clock, 7)[0] == steps


@pytest.mark.parametrize("measured", [1.0, 1.5, 100.0])
def test_a_fixed_interval_does_not_depend_on_the_time(clock, measured):
    assert train(Sampler(every=4), clock, 12, measured=measured)[0] == [0, 4, 8]


@pytest.mark.parametrize("measured", [1.5, 100.0])
def test_the_first_steps_are_measured_densely_whatever_it_costs(clock, measured):
    taken, judged = train(Sampler(), clock, DENSE + 1, measured=measured)
    assert taken == [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert judged == [0, 1, 2, 4, 8, 16, 32, 64]


def test_a_judgement_waits_for_a_measured_step(clock):
    assert train(Sampler(every=3), clock, 40)[1] == [0, 3, 6, 12, 24]


@pytest.mark.parametrize(
    ("share", "cost", "interval"),
    [(0.125, 0.5, 4), (0.25, 0.5, 2), (0.125, 1.0, 8), (0.3, 0.5, 2), (0.5, 0.25, 1), (0.1, 0.0, 1), (0.1, -1.0, 1)],
)
def test_the_interval_spreads_the_cost_over_the_share(share, cost, interval):
    schedule = Schedule(2.0, share)
    schedule.costs.append(cost)
    assert schedule.interval(1.0) == interval
    schedule.done(100, schedule.interval(1.0))
    assert next(step for step in range(100, 120) if schedule.due(step)) == 100 + interval


def test_before_its_cost_is_known_the_interval_is_a_guess():
    schedule = Schedule(2.0, 0.01)
    assert schedule.interval(1.0) == UNTIMED
    schedule.costs.append(1.0)
    assert schedule.interval(None) == schedule.interval(0.0) == UNTIMED


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.2])
@pytest.mark.parametrize(("measured", "judged"), [(1.2, 1.5), (3.0, 12.0), (12.0, 12.5)])
def test_the_overhead_keeps_to_the_budget_behind_the_first_steps(clock, budget, measured, judged):
    sampler = Sampler(budget=budget)
    train(sampler, clock, 1000, measured=measured, judged=judged)
    spent, began = 0.0, clock.now
    for step in range(1000, 40_000):
        due = sampler.due(step)
        judges = due and sampler.judges(step)
        seconds = judged if judges else measured if due else PLAIN
        clock.now += seconds
        spent += seconds - PLAIN
        sampler.stepped(step, due, judges)
    assert budget / 3 < spent / (clock.now - began) <= budget


def test_the_interval_follows_the_cost(clock):
    sampler = Sampler(budget=0.25)
    train(sampler, clock, 200)
    assert sampler.measuring.interval(PLAIN) == 4
    for step in range(200, 2_000):
        due = sampler.due(step)
        clock.now += 3.0 if due else PLAIN
        sampler.stepped(step, due)
    assert sampler.measuring.interval(PLAIN) == 16


def test_a_finding_makes_it_look_closely_again(clock):
    sampler = Sampler(budget=0.01)
    train(sampler, clock, 1001, measured=100.0)
    assert not any(sampler.due(step) for step in range(1001, 1040))
    sampler.found(1000)
    taken = []
    for step in range(1001, 1012):
        due = sampler.due(step)
        taken += [step] * due
        clock.now += 100.0 if due else PLAIN
        sampler.stepped(step, due, due and sampler.judges(step))
    assert taken == [1001, 1002, 1003, 1004, 1006, 1008]


def test_where_every_step_is_measured_judging_keeps_to_the_budget(clock):
    sampler = Sampler(every=1, budget=0.02)
    _, judged = train(sampler, clock, 2000, judged=MEASURED + 0.25)
    later = [b - a for a, b in pairwise(judged) if a > 200]
    assert set(later) == {17}, "0.25 seconds at 1.5 a step are a hundredth at every 17th"


def test_the_overhead_is_the_share_of_the_time_beyond_a_plain_step(clock):
    sampler = Sampler(every=4)
    sampler.judging.restart(10**6)
    taken, _ = train(sampler, clock, 41)
    timed = len(taken) - 1  # the first step has no beginning that was seen
    assert sampler.overhead == pytest.approx(timed * (MEASURED - PLAIN) / (30 * PLAIN + timed * MEASURED))


@pytest.mark.parametrize("measured", [1.0, 0.5])
def test_the_overhead_is_never_negative(clock, measured):
    sampler = Sampler(every=4)
    train(sampler, clock, 40, measured=measured, judged=measured)
    assert sampler.overhead == 0.0


@pytest.mark.parametrize("steps", [0, 1])
def test_there_is_no_overhead_before_a_step_was_timed(clock, steps):
    sampler = Sampler()
    train(sampler, clock, steps)
    assert sampler.overhead == 0.0


def test_one_slow_step_does_not_move_the_interval(clock):
    sampler = Sampler(budget=0.25)
    train(sampler, clock, 100)
    clock.now += 1000.0  # a pause, such as an evaluation
    sampler.stepped(100, False)
    assert sampler.measuring.interval(PLAIN) == 4


def test_a_clock_that_is_too_coarse_does_no_harm(clock):
    assert train(Sampler(), clock, 6, plain=0.0, measured=0.0, judged=0.0)[0] == [0, 1, 2, 3, 4]
