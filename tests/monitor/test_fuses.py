"""A part that fails falls silent with one warning; the rest, and the training, go on bit by bit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gainstage.monitor.fuses import Fuses
from gainstage.signal import statistics
from tests.monitor.trainings import (
    Chain,
    fails,
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


def fails_when(condition: Callable[[Tensor], bool], right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, *rest: fails() if condition(x) else right(x, *rest)


def one_warning(texts: list[str], part: str) -> bool:
    return texts == [f"gainstage switched {part} off: ArithmeticError: the probe is broken"]


# ---------------------------------------------------------------- one probe
def in_backward(_x: Tensor) -> bool:
    return torch._C._current_graph_task_id() != -1


BROKEN = {  # what is broken: the probe that is told of, and the quantities that are then not observed
    "similarity": ("similarity", lambda x: True, {"similarity"}),
    "dead_share": ("dead units", lambda x: True, {"dead"}),
    "saturated_share": ("saturation", lambda x: True, {"saturated"}),
    "unit_signals": ("signal", lambda x: True, {"signal", "offset", "gain"}),
    "relative_variance": ("spread", lambda x: True, set()),
    "mean_square": ("gradient", in_backward, {"gradient", "backward_gain"}),
}


@pytest.mark.parametrize("function", BROKEN)
def test_a_probe_that_fails_is_not_observed_and_the_others_go_on(monkeypatch, function):
    probe, where, lost = BROKEN[function]
    model, twin = quiet(Chain), quiet(Chain)
    (monitor, optimizer), (plain, slow) = watched(model), watched(twin)
    expected = train(twin, slow, 3)
    monkeypatch.setattr(statistics, function, fails_when(where, getattr(statistics, function)))
    with told() as warned:
        result = train(model, optimizer, 3)
    assert one_warning(warned, f"the probe of {probe}")
    assert same_bits(result, expected)
    for reading, right in zip(monitor.history, plain.history, strict=True):
        rows = measured(right.ledger)
        assert measured(reading.ledger) == {name: {**row, **dict.fromkeys(lost)} for name, row in rows.items()}


def test_a_probe_that_fails_on_one_output_is_silent_there_alone(monkeypatch):
    model = quiet(Chain)
    monitor, optimizer = watched(model)
    monkeypatch.setattr(statistics, "similarity", fails_when(lambda x: x.shape[1] == 3, statistics.similarity))
    with told() as warned:
        train(model, optimizer, 2)
    assert one_warning(warned, "the probe of similarity")
    assert [row.similarity is None for row in monitor.ledger.rows] == [False, False, True]


# ---------------------------------------------------------------- what is done with the reading
def test_a_ledger_that_cannot_be_made_stops_the_watching_in_the_end(monkeypatch):
    model = quiet(Chain)
    monitor, optimizer = watched(model)
    monkeypatch.setattr(RECORDING, "make_ledger", fails)
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
    monkeypatch.setattr(RECORDING, "make_ledger", fails)
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
