"""Errors of the tracing cost the reading, never the training, and the user's own errors stay theirs."""

from __future__ import annotations

import pytest
from torch import nn
from torch.optim import SGD

import gainstage as gs
from gainstage.signal import operations
from tests.monitor.trainings import Chain, fails, hooks, same_bits, steps_of, told, train, watched
from tests.tools import quiet


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
