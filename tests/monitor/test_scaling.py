"""Mixed precision: the gradients of the loss itself are told, whatever it is scaled by, and the scaler is left alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional as F
from torch.optim import SGD, Adam

import gainstage as gs
from gainstage.monitor.scaling import Scaling, scaling_of
from tests.monitor.trainings import (
    Chain,
    Skip,
    by_hand,
    differences,
    loss_of,
    measured,
    rms,
    same_bits,
    slow_rows,
    steps_of,
    train,
    watched,
)
from tests.tools import blobs, quiet

LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}


# ---------------------------------------------------------------- autocast alone
@pytest.mark.parametrize("dtype", LOW.values(), ids=LOW)
@pytest.mark.parametrize("make", [Chain, Skip])
def test_under_autocast_the_ledger_says_what_a_slow_twin_works_out(make, dtype):
    model, twin = quiet(make), quiet(make)
    monitor, optimizer = watched(model)
    slow = SGD(twin.parameters(), lr=0.1)
    for number in range(3):
        x, y = blobs(32, seed=number)
        results = []
        for each in (model, partial(by_hand, twin)):
            with torch.autocast("cpu", dtype=dtype):
                results.append(each(x))
        F.cross_entropy(results[0].float(), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        F.cross_entropy(results[1]["c"].float(), y).backward()
        assert differences(monitor.ledger, slow_rows(twin, x, results[1], slow.step), rel=1e-3) == {}
        slow.zero_grad()
        assert same_bits(model.state_dict(), twin.state_dict())


# ---------------------------------------------------------------- with a scaler
def scaled_step(model, optimizer, scaler: GradScaler, data, *, dtype=torch.float16, clip=None, parts=1) -> None:
    optimizer.zero_grad()
    for x, y in zip(*(each.chunk(parts) for each in data), strict=True):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            loss = F.cross_entropy(model(x).float(), y) / parts
        scaler.scale(loss).backward()
    if clip is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    scaler.step(optimizer)
    scaler.update()


def slow_scaled_step(twin, optimizer, scaler: GradScaler, data, *, clip=None, parts=1):
    """The same by hand in fp16, and what the rows should say."""
    optimizer.zero_grad()
    scale = scaler.get_scale()
    for x, y in zip(*(each.chunk(parts) for each in data), strict=True):
        with torch.autocast("cpu", dtype=torch.float16):
            outputs = by_hand(twin, x)
            loss = F.cross_entropy(outputs["c"].float(), y) / parts
        scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    if clip is not None:
        nn.utils.clip_grad_norm_(twin.parameters(), clip)
    outputs = {name: unscaled(output, scale) for name, output in outputs.items()}
    rows = slow_rows(twin, x, outputs, lambda: scaler.step(optimizer))
    scaler.update()
    return rows


def unscaled(output: Tensor, scale: float) -> Tensor:
    """The same in single precision, the scale taken out of its gradient."""
    copy = output.detach().float()
    copy.grad = output.grad.float() / scale
    return copy


RECIPES = {"plain": {}, "clipped": {"clip": 1e-3}, "accumulated": {"parts": 2}, "both": {"clip": 1e-3, "parts": 2}}
MAKERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(SGD, lr=0.1),
    "adam": partial(Adam, lr=1e-2),
    "fused sgd": partial(SGD, lr=0.1, fused=True),
    "fused adam": partial(Adam, lr=1e-2, fused=True),
}


@pytest.mark.parametrize("scale", [1024.0, 1000.0, 1.0])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_scale_is_taken_out_and_what_was_clipped_stays_clipped(make, recipe, scale):
    models = [quiet(Chain) for _ in range(3)]
    optimizers = [make(model.parameters()) for model in models]
    scalers = [GradScaler("cpu", init_scale=scale, growth_interval=2) for _ in models]
    watched_one, plain, slow = zip(models, optimizers, scalers, strict=True)
    monitor = gs.watch(models[0], optimizers[0], every=1)
    for number in range(3):
        data = blobs(32, seed=number)
        scaled_step(*watched_one, data, **recipe)
        scaled_step(*plain, data, **recipe)
        expected = slow_scaled_step(*slow, data, **recipe)
        assert differences(monitor.ledger, expected, rel=2e-3) == {}
        assert same_bits(models[0].state_dict(), models[1].state_dict())
        assert scalers[0].state_dict() == scalers[1].state_dict()
        models[2].load_state_dict(models[0].state_dict())  # a fused optimiser rounds otherwise
    assert (steps_of(monitor), monitor.skipped) == ([0, 1, 2], 0)
    assert scalers[0].get_scale() > scale  # it grew on the way


@pytest.mark.parametrize("clip", [None, 1e9])  # with which the gradients are unscaled before the step
@pytest.mark.parametrize("name", ["sgd", "fused sgd"])
def test_figures_do_not_depend_on_the_scale(clip, name):
    ledgers = []
    for scale in (1.0, 4096.0):
        model = quiet(Chain)
        optimizer = MAKERS[name](model.parameters())
        monitor = gs.watch(model, optimizer, every=1)
        scaled_step(model, optimizer, GradScaler("cpu", init_scale=scale), blobs(32), dtype=None, clip=clip)
        ledgers.append(monitor.ledger)
    assert differences(ledgers[0], measured(ledgers[1]), rel=1e-6) == {}


def test_a_scaler_that_is_switched_off_changes_nothing():
    model, twin = quiet(Chain), quiet(Chain)
    (monitor, optimizer), (plain, slow) = watched(model), watched(twin)
    scaled_step(model, optimizer, GradScaler("cpu", enabled=False), blobs(32), dtype=None)
    train(twin, slow, 1)
    assert measured(monitor.ledger) == measured(plain.ledger)


def halves(model: Chain) -> list[torch.optim.Optimizer]:
    return [SGD(model.a.parameters(), lr=0.1), SGD([*model.b.parameters(), *model.c.parameters()], lr=0.1, fused=True)]


@pytest.mark.parametrize("order", [1, -1])
def test_two_optimizers_may_share_a_scaler(order):
    model, twin = quiet(Chain), quiet(Chain)
    optimizers = halves(model)[::order]
    monitor, (plain, slow) = gs.watch(model, optimizers, every=1), watched(twin)
    scaler = GradScaler("cpu", init_scale=1024.0)
    scaler.scale(loss_of(model, *blobs(32))).backward()
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    loss_of(twin, *blobs(32)).backward()
    slow.step()
    assert differences(monitor.ledger, measured(plain.ledger), rel=1e-6) == {}


def test_gradients_that_no_optimizer_takes_are_unscaled_as_well():
    model, twin = quiet(Chain), quiet(Chain)
    optimizer, slow = halves(model)[1], halves(twin)[1]
    monitor, plain = gs.watch(model, optimizer, every=1), gs.watch(twin, slow, every=1)
    scaled_step(model, optimizer, GradScaler("cpu", init_scale=1024.0), blobs(32), dtype=None)
    train(twin, slow, 1, blobs(32))
    assert differences(monitor.ledger, measured(plain.ledger), rel=1e-6) == {}
    assert monitor.ledger.row("a").weight_gradient > 0


def test_gradients_are_told_as_their_own_optimizer_takes_them():
    model = quiet(Chain)
    first, second = halves(model)
    monitor, scaler = gs.watch(model, [first, second], every=1), GradScaler("cpu", init_scale=1024.0)
    scaler.scale(loss_of(model, *blobs(32))).backward()
    scaler.step(first)
    scaler.unscale_(second)
    nn.utils.clip_grad_norm_(model.b.parameters(), 1e-3)  # after the first one's step
    clipped = rms(model.b.weight.grad)
    scaler.step(second)
    assert monitor.ledger.row("b").weight_gradient == pytest.approx(clipped, rel=1e-5)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_step_skipped_for_an_overflow_is_counted_and_not_read(make, parts):
    model, twin = quiet(Chain), quiet(Chain)
    optimizer, slow = make(model.parameters()), make(twin.parameters())
    scaler, other = (GradScaler("cpu", init_scale=2.0**22) for _ in range(2))
    monitor = gs.watch(model, optimizer, every=1)
    taken = 0
    for number in range(16):
        before, data = scaler.get_scale(), blobs(32, seed=number)
        scaled_step(model, optimizer, scaler, data, parts=parts)
        scaled_step(twin, slow, other, data, parts=parts)
        taken += scaler.get_scale() == before
    assert same_bits(model.state_dict(), twin.state_dict())
    assert 4 < taken < 14, "or this test could not fail"
    assert monitor.skipped == 16 - taken
    assert len(monitor.history) == taken
    for reading in monitor.history:
        assert all(row.update > 0 and 0 < row.gradient < 1 for row in reading.ledger.rows)


def test_a_gradient_that_is_not_finite_without_a_scaler_is_no_skipped_step():
    model = quiet(Chain)
    monitor, optimizer = watched(model)
    for factor in (float("inf"), 1.0):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = loss_of(model, *blobs(32))
        (loss * factor).backward()
    optimizer.step()
    assert (monitor.skipped, steps_of(monitor)) == (0, [0])


# ---------------------------------------------------------------- finding the scaler
class Own(GradScaler):
    """A user's own kind."""


@pytest.mark.parametrize("make", [GradScaler, Own])
def test_the_scaler_is_found_only_within_its_step(make):
    model, found = quiet(Chain), []
    optimizer = SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: found.append(scaling_of(optimizer)))
    scaler = make("cpu", init_scale=64.0)
    scaler.scale(loss_of(model, *blobs(32))).backward()
    optimizer.step()
    scaler.step(optimizer)
    assert found == [Scaling(), Scaling(64.0)]
