"""A part that fails falls silent with one warning; the rest, and the training, go on bit by bit."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from torch import nn
from torch.optim import SGD

import gainstage as gs
from gainstage.monitor.fuses import Fuses
from gainstage.signal import operations, statistics
from gainstage.signal.statistics import Stack
from tests.monitor.trainings import (
    Chain,
    hooks,
    measured,
    same_bits,
    sick,
    steps_of,
    told,
    train,
    watched,
)
from tests.tools import quiet

WATCH = sys.modules["gainstage.monitor.watch"]  # the package gives its name to the function
RECORDING = sys.modules["gainstage.monitor.recording"]


def fails(*_arguments: Any, **_settings: Any) -> None:
    raise ArithmeticError("the probe is broken")


def one_warning(texts: list[str], part: str) -> bool:
    return texts == [f"gainstage switched {part} off: ArithmeticError: the probe is broken"]


# ---------------------------------------------------------------- one probe
BROKEN = {  # what is broken: the probes that are told of, and the quantities that are then not observed
    (Stack, "similarity"): (("similarity",), {"similarity"}),
    (Stack, "signal"): (("signal", "offset"), {"signal", "offset", "gain"}),
    (Stack, "offset"): (("offset",), {"offset"}),
    (Stack, "spread"): (("spread",), set()),
    (statistics, "dead_share"): (("dead units",), {"dead"}),
    (statistics, "saturated_share"): (("saturation",), {"saturated"}),
    (RECORDING.GuardedProbes, "rows"): (
        ("weight gradient", "weight", "update"),
        {"weight", "weight_gradient", "update"},
    ),
}


@pytest.mark.parametrize("place", BROKEN, ids=lambda place: place[1])
def test_a_probe_that_fails_is_not_observed_and_the_others_go_on(monkeypatch, place):
    owner, function = place
    probes, lost = BROKEN[place]
    model, twin = quiet(Chain), quiet(Chain)
    (monitor, optimizer), (plain, slow) = watched(model), watched(twin)
    expected = train(twin, slow, 3)
    monkeypatch.setattr(owner, function, property(fails) if owner is Stack else fails)
    with told() as warned:
        result = train(model, optimizer, 3)
    assert len(warned) == len(probes)
    assert all(one_warning([text], f"the probe of {probe}") for text, probe in zip(warned, probes, strict=True))
    assert same_bits(result, expected)
    for reading, right in zip(monitor.history, plain.history, strict=True):
        rows = measured(right.ledger)
        assert measured(reading.ledger) == {name: {**row, **dict.fromkeys(lost)} for name, row in rows.items()}


def test_a_probe_that_fails_on_one_output_is_silent_there_alone(monkeypatch):
    model = quiet(Chain)
    monitor, optimizer = watched(model)
    similarity = Stack.similarity.func
    broken = property(lambda stack: fails() if stack.channels == 3 else similarity(stack))
    monkeypatch.setattr(Stack, "similarity", broken)
    with told() as warned:
        train(model, optimizer, 2)
    assert one_warning(warned, "the probe of similarity")
    assert [row.similarity is None for row in monitor.ledger.rows] == [False, False, True]


# ---------------------------------------------------------------- the tracing itself
def test_an_error_of_the_tracer_costs_the_reading_and_after_three_in_a_row_the_watching(monkeypatch):
    model, twin = quiet(Chain), quiet(Chain)
    optimizer = SGD(model.parameters(), lr=0.1)
    before = hooks(model, optimizer)
    expected = train(twin, SGD(twin.parameters(), lr=0.1), 5)
    monitor = gs.watch(model, optimizer, every=1)
    monkeypatch.setattr(operations, "kind_of", fails)
    with told() as warned:
        result = train(model, optimizer, 5)
    assert warned == ["gainstage stopped watching: ArithmeticError: the probe is broken"]
    assert same_bits(result, expected)
    assert (monitor.history, hooks(model, optimizer)) == ([], before)


@pytest.mark.parametrize(("broken_at", "measured"), [((1,), [0, 2, 3, 4, 5]), ((0, 1, 4), [2, 3, 5])])
def test_errors_that_do_not_last_cost_their_steps_and_no_warning(monkeypatch, broken_at, measured):
    model, kind_of = quiet(Chain), operations.kind_of
    monitor, optimizer = watched(model)
    with told() as warned:
        for number in range(6):
            monkeypatch.setattr(operations, "kind_of", fails if number in broken_at else kind_of)
            train(model, optimizer, 1)
    assert warned == []
    assert steps_of(monitor) == measured


@pytest.mark.parametrize("call", [1, 2])  # before, and after, the user's function has run
def test_an_operation_whose_tracing_fails_runs_exactly_once(monkeypatch, call):
    def build():
        return nn.Sequential(nn.Dropout(0.5), nn.Linear(20, 3))  # it draws

    model, twin, calls = quiet(build), quiet(build), iter(range(1, 100))
    expected = train(twin, SGD(twin.parameters(), lr=0.1), 1)
    is_elementwise = operations.is_elementwise
    monkeypatch.setattr(operations, "is_elementwise", lambda x: fails() if next(calls) == call else is_elementwise(x))
    monitor, optimizer = watched(model)
    assert same_bits(train(model, optimizer, 1), expected)
    assert monitor.ledger is None


def test_an_error_of_the_users_own_operation_is_theirs():
    model = nn.Sequential(quiet(lambda: nn.Linear(20, 4)), nn.Unflatten(1, (3, 2)))
    _, optimizer = watched(model)
    with told() as warned, pytest.raises(RuntimeError, match="unflatten"):
        train(model, optimizer, 1)
    assert warned == []


# ---------------------------------------------------------------- what is done with the reading
def test_a_ledger_that_cannot_be_made_stops_the_watching_in_the_end(monkeypatch):
    model = quiet(Chain)
    monitor, optimizer = watched(model)
    monkeypatch.setattr(RECORDING, "Measured", fails)
    with told() as warned:
        train(model, optimizer, 5)
    assert warned == ["gainstage stopped watching: ArithmeticError: the probe is broken"]
    assert (monitor.step, sum(hooks(model, optimizer))) == (3, 0)


def test_rules_that_fail_are_switched_off_alone(monkeypatch):
    model = quiet(Chain)
    monitor, optimizer = watched(model)
    monkeypatch.setattr(WATCH, "run_rules", fails)
    with told() as warned:
        train(model, optimizer, 3)
    assert one_warning(warned, "the rules")
    assert steps_of(monitor) == [0, 1, 2]


@pytest.mark.parametrize("callback", ["log", "on_finding"])
def test_a_callback_that_fails_is_switched_off_alone(callback):
    model, called = sick(), []
    monitor, optimizer = watched(model, **{callback: lambda _: called.append(1) or fails()})
    with told() as warned:
        train(model, optimizer, 3)
    assert one_warning(warned, callback)
    assert called == [1]
    assert steps_of(monitor) == [0, 1, 2]
    assert monitor.findings != []


def test_a_failure_beside_another_hook_of_the_optimizer_does_not_stop_the_training(monkeypatch):
    model, called = quiet(Chain), []
    _, optimizer = watched(model)
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    monkeypatch.setattr(RECORDING, "Measured", fails)
    with told() as warned:
        train(model, optimizer, 5)
    assert (len(warned), len(called)) == (1, 5)


def test_a_healthy_monitor_does_not_warn():
    model = quiet(Chain)
    monitor, optimizer = watched(model)
    with told() as warned:
        train(model, optimizer, 2)
    assert warned == []
    assert steps_of(monitor) == [0, 1]


# ---------------------------------------------------------------- the fuses themselves
def test_a_part_is_told_of_once_and_not_run_again():
    fuses, ran = Fuses(), []
    for _ in range(3):
        fuses.run("one", lambda: ran.append(1) or fails())
        fuses.run("two", ran.append, 2)
    with told() as warned:
        fuses.tell()
        fuses.tell()
    assert one_warning(warned, "one")
    assert ran == [1, 2, 2, 2]


def test_what_a_guard_surrounds_runs_again():
    fuses, ran = Fuses(), []
    for _ in range(2):
        with fuses.guard("one"):
            ran.append(1)
            fails()
    with told() as warned:
        fuses.tell()
    assert (len(warned), ran) == (1, [1, 1])


def test_an_interrupt_passes():
    with pytest.raises(KeyboardInterrupt), Fuses().guard("one"):
        raise KeyboardInterrupt
