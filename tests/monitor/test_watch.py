"""watch(): the training stays bit for bit the same, and the ledger says what a slow twin without hooks works out."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import sqlite3
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

import gainstage as gs
from gainstage.errors import BadInput
from gainstage.monitor import sampling
from tests.monitor.trainings import (
    OPTIMIZERS,
    PLACES,
    SIZES,
    Chain,
    Normalised,
    Skip,
    differences,
    hooks,
    loss_of,
    same_bits,
    sick,
    slow_ledger,
    slow_levels,
    step,
    steps_of,
    train,
    watched,
    wrong_quantities,
)  # fmt: skip
from tests.networks import Convolutional, Functional, deep, residual
from tests.tools import blobs, normal, quiet


class Checkpointed(Normalised):
    """The forward of its body runs a second time during the backward pass."""

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=False)


# ---------------------------------------------------------------- the training stays the same
KINDS = {
    "chain": (Chain, None),
    "normalised": (Normalised, None),
    "checkpointed": (Checkpointed, None),
    "convolutional": (Convolutional, (normal(8, 1, 8, 8), torch.arange(8) % 3)),
    "functional": (Functional, None),
    "residual": (residual, None),
}


@pytest.mark.parametrize(("make", "data"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("every", [1, 3, None])
def test_a_watched_training_equals_an_unwatched_one_bit_by_bit(make, data, every):
    model, twin = quiet(make), quiet(make)
    monitor, optimizer = watched(model, "adam", every=every)
    results = [train(model, optimizer, 5, data), train(twin, OPTIMIZERS["adam"](twin.parameters()), 5, data)]
    assert same_bits(*results)
    assert len(monitor.history) == {1: 5, 3: 2, None: 5}[every]


def under_autocast(model: nn.Module, x: Any, y: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.cross_entropy(model(x), y)


def called_twice(model: nn.Module, x: Any, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y) + F.mse_loss(model(-x), model(x).detach())


@pytest.mark.parametrize("loss", [under_autocast, called_twice])
def test_a_watched_training_stays_the_same_however_the_loss_is_made(loss):
    model, twin = quiet(Normalised), quiet(Normalised)
    monitor, optimizer = watched(model)
    results = [train(model, optimizer, 4, loss=loss), train(twin, OPTIMIZERS["sgd"](twin.parameters()), 4, loss=loss)]
    assert same_bits(*results)
    assert len(monitor.history) == 4


def test_one_different_bit_is_noticed():
    results = [train(model := quiet(Chain), SGD(model.parameters(), lr=0.1), 2) for _ in range(2)]
    assert same_bits(*results)
    weight = results[1]["a.weight"]
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert not same_bits(*results)


@pytest.mark.parametrize("make", [Chain, Skip])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_ledger_says_what_a_slow_twin_works_out(make, name):
    model, twin = quiet(make), quiet(make)
    monitor, optimizer = watched(model, name)
    slow = OPTIMIZERS[name](twin.parameters())
    for number in range(3):
        data = blobs(32, seed=number)
        step(model, optimizer, data)
        assert differences(monitor.ledger, slow_ledger(twin, slow, *data)) == {}
        assert monitor.ledger.samples == 32


@pytest.mark.parametrize("quantity", [*PLACES, *SIZES])
def test_a_difference_in_any_quantity_is_noticed(quantity):
    model = quiet(Chain)
    monitor, optimizer = watched(model)
    step(model, optimizer, blobs(32))
    row = next(row for row in monitor.ledger.rows if getattr(row, quantity))
    right = {name: getattr(row, name) for name in (*PLACES, *SIZES)}
    assert wrong_quantities(row, right) == []
    for wrong in (right[quantity] * 1.01, None):
        assert wrong_quantities(row, {**right, quantity: wrong}) == [quantity]


def test_the_input_of_the_network_has_its_row():
    model, (x, y) = quiet(Chain), blobs(32)
    monitor, optimizer = watched(model)
    step(model, optimizer, (x, y))
    assert wrong_quantities(monitor.ledger.source, slow_levels(x)) == []


@pytest.mark.parametrize(("name", "fits"), [("sgd", True), ("adam", False), ("adamw", False)])
def test_the_update_is_not_learning_rate_times_gradient(name, fits):
    model = quiet(Chain)
    monitor, optimizer = watched(model, name)
    step(model, optimizer, blobs(32))
    rate = optimizer.param_groups[0]["lr"]
    for row in monitor.ledger.rows:
        shortcut = rate * row.weight_gradient / row.weight
        assert (row.update == pytest.approx(shortcut, rel=1e-3)) is fits


def test_a_shared_module_has_a_row_a_call():
    layer = quiet(lambda: nn.Linear(20, 20))
    model = nn.Sequential(layer, nn.Tanh(), layer)
    monitor, optimizer = watched(model)
    step(model, optimizer, (normal(32, 20), torch.arange(32) % 20))
    assert [row.name for row in monitor.ledger.rows] == ["0", "0 #2"]
    assert monitor.ledger.rows[0].update == monitor.ledger.rows[1].update > 0


def test_frozen_weights_have_no_gradient_and_do_not_move():
    model = quiet(Chain)
    model.a.requires_grad_(False)
    monitor, optimizer = watched(model)
    step(model, optimizer, blobs(32))
    row = monitor.ledger.row("a")
    assert (row.gradient, row.weight_gradient, row.update) == (None, None, 0.0)
    assert row.signal is not None


def test_inputs_by_keyword_are_measured():
    model = quiet(Chain)
    monitor, optimizer = watched(model)
    step(model, optimizer, blobs(32), loss=lambda model, x, y: F.cross_entropy(model(x=x), y))
    assert monitor.ledger.row("a").signal is not None


def test_inputs_by_keyword_are_counted():
    model = quiet(Chain)
    monitor, optimizer = watched(model)
    step(model, optimizer, blobs(32), loss=lambda model, x, y: F.cross_entropy(model(x=x), y))
    assert monitor.ledger.samples == 32


# ---------------------------------------------------------------- which steps, which forwards
# ---------------------------------------------------------------- which steps
@pytest.mark.parametrize(("every", "steps"), [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6]), (10, [0])])
def test_every_so_many_steps_are_measured(every, steps):
    model = quiet(Chain)
    monitor, optimizer = watched(model, every=every)
    train(model, optimizer, 7)
    assert steps_of(monitor) == steps
    assert monitor.step == 7


def test_without_an_interval_the_budget_decides(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(sampling, "perf_counter", lambda: clock.now)
    model = quiet(lambda: nn.Linear(20, 3))
    monitor, optimizer = watched(model, every=None, budget=0.125)

    def slow(model, x, y):
        clock.now += 1.5 if monitor.sampler.due(monitor.step) else 1.0
        return loss_of(model, x, y)

    train(model, optimizer, 90, blobs(8), slow)
    assert steps_of(monitor)[:12] == [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48]
    assert {b - a for a, b in pairwise(steps_of(monitor)[11:])} <= set(range(1, 9)), "0.5 seconds are a sixteenth of 8"
    assert 0 < monitor.overhead < 0.125


def test_between_measured_steps_no_module_carries_a_hook_but_the_watched_one():
    model = quiet(Chain)
    _monitor, optimizer = watched(model, every=2)
    counts = hooks(model, optimizer)
    for number in range(4):
        step(model, optimizer, blobs(32, seed=number))
        assert hooks(model, optimizer) == counts == [1, 1, 0, *[0] * (len(counts) - 5), 1, 1]


# ---------------------------------------------------------------- on and off
def test_close_takes_every_hook_off_and_keeps_what_was_measured():
    model = quiet(Normalised)
    optimizer = SGD(model.parameters(), lr=0.1)
    before = hooks(model, optimizer)
    monitor = gs.watch(model, optimizer, every=1)
    assert hooks(model, optimizer) != before
    train(model, optimizer, 2)
    monitor.close()
    monitor.close()  # may be called twice
    assert hooks(model, optimizer) == before
    train(model, optimizer, 2)
    assert steps_of(monitor) == [0, 1]


def test_a_monitor_is_closed_by_its_with_block_also_after_an_error():
    model = quiet(Chain)
    optimizer = SGD(model.parameters(), lr=0.1)
    before = hooks(model, optimizer)
    with pytest.raises(KeyError), gs.watch(model, optimizer):
        raise KeyError("the user's")
    assert hooks(model, optimizer) == before


def test_close_between_forward_and_step_drops_the_half_measured_step():
    model = quiet(Chain)
    monitor, optimizer = watched(model)
    loss = loss_of(model, *blobs(32))
    monitor.close()
    loss.backward()
    optimizer.step()
    assert monitor.history == []
    assert sum(hooks(model, optimizer)) == 0


def test_watching_twice_leaves_one_set_of_hooks():
    model = quiet(Chain)
    first, optimizer = watched(model)
    once = hooks(model, optimizer)
    train(model, optimizer, 1)
    second = gs.watch(model, optimizer, every=1)
    assert hooks(model, optimizer) == once
    train(model, optimizer, 2)
    assert (steps_of(first), steps_of(second)) == ([0], [0, 1])


def test_hooks_of_the_user_stay_in_their_order():
    model, told = quiet(Chain), []
    model.register_forward_hook(lambda *_: told.append("model before"))
    monitor, optimizer = watched(model)
    model.register_forward_hook(lambda *_: told.append("model after"))
    optimizer.register_step_post_hook(lambda *_: told.append("optimizer"))
    train(model, optimizer, 1)
    monitor.close()
    train(model, optimizer, 1)
    assert told == ["model before", "model after", "optimizer"] * 2


def copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("twin_of", [copied, saved])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_copy_of_a_watched_model_trains_unwatched(twin_of, steps):
    model = quiet(Normalised)
    monitor, optimizer = watched(model)
    train(model, optimizer, steps)
    twin = twin_of(model)
    assert all(torch.equal(value, twin.state_dict()[key]) for key, value in model.state_dict().items())
    train(twin, SGD(twin.parameters(), lr=0.1), 2)
    assert steps_of(monitor) == list(range(steps))
    train(model, optimizer, 1)
    assert steps_of(monitor) == list(range(steps + 1))


@pytest.mark.parametrize("twin_of", [copied, saved])
def test_a_copy_of_a_watched_model_can_be_watched(twin_of):
    model = quiet(Chain)
    monitor, _ = watched(model)
    twin = twin_of(model)
    other, optimizer = watched(twin)
    train(twin, optimizer, 2)
    assert (steps_of(monitor), steps_of(other)) == ([], [0, 1])


def test_model_and_optimizer_can_be_copied_together():
    model = quiet(Chain)
    monitor, optimizer = watched(model, "adam")
    train(model, optimizer, 1)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    train(twin, twin_optimizer, 1)
    assert (steps_of(monitor), monitor.step) == ([0], 1)


# ---------------------------------------------------------------- what is told, and what is kept


def test_log_receives_the_numbers_of_each_measured_step():
    model, logged = quiet(Chain), []
    monitor, optimizer = watched(model, every=2, log=logged.append)
    train(model, optimizer, 4)
    assert [numbers["step"] for numbers in logged] == [0.0, 2.0]
    assert all(isinstance(value, float) for numbers in logged for value in numbers.values())
    row = monitor.ledger.row("b")
    assert {k: v for k, v in logged[-1].items() if k.startswith("b/")} == {
        f"b/{q}": getattr(row, q) for q in (*PLACES, "update") if getattr(row, q) is not None
    }


def test_a_finding_is_told_once_a_code():
    model, told = sick(), []
    monitor, optimizer = watched(model, on_finding=told.append)
    train(model, optimizer, 5)
    codes = [finding.code for finding in told]
    assert "S103" in codes
    assert len(codes) == len(set(codes))
    assert told == monitor.findings
    assert len(monitor.history) == 5


def test_a_healthy_network_has_no_findings():
    model = deep(2, "selu")
    monitor, optimizer = watched(model)
    train(model, optimizer, 5)
    assert monitor.findings == []


def test_there_is_no_ledger_before_the_first_step():
    monitor, _ = watched(quiet(Chain))
    assert (monitor.ledger, monitor.history, monitor.overhead) == (None, [], 0.0)


def rows_of(folder, query: str) -> list[tuple]:
    """What a second connection sees now."""
    with contextlib.closing(sqlite3.connect(folder / "run.sqlite", timeout=0)) as database:
        return database.execute(query).fetchall()


def test_readings_can_be_read_while_the_training_goes_on(tmp_path):
    model = quiet(Chain)
    monitor, optimizer = watched(model, folder=tmp_path)
    for number in range(3):
        step(model, optimizer, blobs(32, seed=number))
        assert rows_of(tmp_path, "SELECT DISTINCT step FROM readings") == [(i,) for i in range(number + 1)]
    found = dict(rows_of(tmp_path, "SELECT quantity, value FROM readings WHERE step = 2 AND stage = 'b'"))
    row = monitor.ledger.row("b")
    assert found == {name: getattr(row, name) for name in found}
    assert set(found) >= {"signal", "gradient", "update", "dead"}
    monitor.close()


def test_findings_are_kept_with_the_step_at_which_they_came_up(tmp_path):
    model = sick()
    monitor, optimizer = watched(model, folder=tmp_path)
    train(model, optimizer, 3)
    monitor.close()
    assert (0, "S103") in rows_of(tmp_path, "SELECT step, code FROM findings")


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "settings",
    [
        {"every": 0}, {"every": -3}, {"budget": 0.0}, {"budget": 1.0}, {"budget": -0.1}, {"budget": math.nan},
        {"every": 2.5}, {"every": "often"},
        {"budget": "low"}, {"log": 3},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be_used_are_refused_and_leave_no_hook(settings):
    model = quiet(Chain)
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(BadInput) as caught:
        gs.watch(model, optimizer, **settings)
    assert "\n" not in str(caught.value)
    assert sum(hooks(model, optimizer)) == 0


@pytest.mark.parametrize(
    "swap", [lambda m, o: (o, m), lambda m, o: (m, "adam"), lambda m, o: (m, None), lambda m, o: (Chain, o)]
)
def test_what_is_no_model_and_optimizer_is_refused(swap):
    model = quiet(Chain)
    with pytest.raises(BadInput, match=r"needs a torch\.nn\.Module and a torch\.optim\.Optimizer"):
        gs.watch(*swap(model, SGD(model.parameters(), lr=0.1)))


def test_a_folder_that_cannot_be_written_is_refused_and_leaves_no_hook(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    model = quiet(Chain)
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(BadInput, match="choose another folder"):
        gs.watch(model, optimizer, folder=tmp_path / "file")
    assert sum(hooks(model, optimizer)) == 0
