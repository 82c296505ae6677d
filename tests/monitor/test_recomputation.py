"""Activation checkpointing: what runs again in the backward pass is not measured again."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.monitor.trainings import (
    OPTIMIZERS,
    QUANTITIES,
    Chain,
    differences,
    figures_differ,
    hooks,
    loss_of,
    measured,
    same_bits,
    seeded,
    slow_ledger,
    step,
    steps_of,
    train,
    watched,
)
from tests.tools import blobs, quiet

KINDS = {"reentrant": True, "not reentrant": False}


class Block(nn.Module):
    """Batch normalisation, dropout, in-place ReLU: what shows when a forward pass runs twice."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout(0.2)
        self.again = nn.Linear(16, 16)

    def forward(self, x):
        return torch.tanh(self.again(self.drop(torch.relu_(self.norm(self.linear(x))))))


class Blocks(nn.Module):
    """Two blocks, kept or run again."""

    def __init__(self, reentrant: bool | None):
        super().__init__()
        self.first, self.blocks, self.last = nn.Linear(20, 16), nn.ModuleList([Block(), Block()]), nn.Linear(16, 3)
        self.reentrant = reentrant

    def forward(self, x):
        x = torch.tanh(self.first(x))
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return self.last(x)


@pytest.mark.parametrize("reentrant", KINDS.values(), ids=KINDS)
def test_a_watched_training_with_checkpoints_stays_the_same_bit_by_bit(reentrant):
    model, twin = quiet(partial(Blocks, reentrant)), quiet(partial(Blocks, reentrant))
    monitor, optimizer = watched(model, "adam")
    results = [train(model, optimizer, 4), train(twin, OPTIMIZERS["adam"](twin.parameters()), 4)]
    assert same_bits(*results)
    assert steps_of(monitor) == [0, 1, 2, 3]


@pytest.mark.parametrize("reentrant", KINDS.values(), ids=KINDS)
def test_the_figures_are_those_without_checkpoints(reentrant):
    """The dropout of a block that runs again is the same, so that all figures are."""
    model, twin = quiet(partial(Blocks, reentrant)), quiet(partial(Blocks, None))
    (monitor, optimizer), (plain, slow) = watched(model), watched(twin)
    train(model, optimizer, 1)
    train(twin, slow, 1)
    expected = measured(plain.ledger)
    assert list(expected) == [row.name for row in monitor.ledger.rows]
    assert differences(monitor.ledger, expected, rel=1e-5) == {}
    assert monitor.ledger.coverage == plain.ledger.coverage


@pytest.mark.parametrize("reentrant", KINDS.values(), ids=KINDS)
def test_a_model_that_is_one_checkpoint_as_a_whole(reentrant):
    model, twin = quiet(Chain), quiet(Chain)
    monitor, optimizer = watched(model)
    slow = OPTIMIZERS["sgd"](twin.parameters())
    for number in range(2):
        x, y = blobs(32, seed=number)
        step(
            model, optimizer, (x.requires_grad_(), y),
            lambda model, x, y: F.cross_entropy(checkpoint(model, x, use_reentrant=reentrant), y),
        )  # fmt: skip
        assert differences(monitor.ledger, slow_ledger(twin, slow, x.detach(), y)) == {}
    assert steps_of(monitor) == [0, 1]


def test_a_sequence_in_segments_is_measured():
    def build():
        return nn.Sequential(*[part for _ in range(4) for part in (nn.Linear(20, 20), nn.Tanh())])

    class Segments(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = build()

        def forward(self, x):
            return checkpoint_sequential(self.body, 2, x, use_reentrant=False)

    model = quiet(Segments)
    monitor, optimizer = watched(model)
    train(model, optimizer, 2, (blobs(32)[0], torch.arange(32) % 20))
    assert len(monitor.ledger) == 4
    for row in monitor.ledger.rows:
        assert None not in [getattr(row, name) for name in QUANTITIES if name not in ("backward_gain", "dead")]


def test_what_runs_again_is_not_traced_again():
    model, hooks = quiet(Chain), []
    watched(model)
    model.b.register_forward_pre_hook(lambda module, _: hooks.append(len(module._forward_pre_hooks)))
    x, y = blobs(32)
    F.cross_entropy(checkpoint(model, x.requires_grad_(), use_reentrant=False), y).backward()
    assert hooks == [2, 1]


def test_hooks_that_wait_for_a_reentrant_checkpoint_are_gone_after_the_step():
    model = quiet(partial(Blocks, True))
    _, optimizer = watched(model)
    before = hooks(model, optimizer)
    train(model, optimizer, 2)
    assert hooks(model, optimizer) == before
    assert not torch.overrides._get_current_function_mode_stack()


class Shared(Blocks):
    """One block, run twice."""

    def __init__(self, reentrant: bool | None):
        super().__init__(reentrant)
        self.blocks[1] = self.blocks[0]


class Functions(Blocks):
    """What is run again is no module but a function that calls two."""

    def forward(self, x):
        def both(x):
            return self.blocks[1](self.blocks[0](x))

        x = torch.tanh(self.first(x))
        return self.last(both(x) if self.reentrant is None else checkpoint(both, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("make", [Shared, Functions])
def test_gradients_reach_the_calls_that_they_belong_to(make, reentrant):
    model, twin = quiet(partial(make, reentrant)), quiet(partial(make, None))
    (monitor, optimizer), (plain, slow) = watched(model), watched(twin)
    train(model, optimizer, 1)
    train(twin, slow, 1)
    found, expected = measured(monitor.ledger), measured(plain.ledger)
    for name, row in expected.items():  # between two modules that a function calls nothing runs in a module of its own
        silent = {k for k in row if found[name][k] is None and row[k] is not None}
        assert silent <= ({"gradient", "backward_gain"} if make is Functions else set())
        found[name].update({k: row[k] for k in silent})
    assert figures_differ(found, expected, rel=1e-5) == {}


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("reentrant", KINDS.values(), ids=KINDS)
def test_of_two_passes_that_wait_each_keeps_its_own_gradients(reentrant, together):
    ledgers = []
    for kind in (reentrant, None):
        model = quiet(partial(Blocks, kind))
        monitor, optimizer = watched(model)
        with seeded():
            losses = [loss_of(model, *blobs(32, seed=number)) * (number + 1) for number in range(2)]
            for loss in [sum(losses)] if together else losses:
                loss.backward()
        optimizer.step()
        ledgers.append(monitor.ledger)
    assert differences(ledgers[0], measured(ledgers[1]), rel=1e-4) == {}


class Fickle(Block):
    """Runs other operations the second time."""

    runs = 0

    def forward(self, x):
        self.runs += 1
        x = super().forward(x)
        return torch.tanh(self.again(x)) if self.runs % 2 else torch.sigmoid(self.again(x))


def test_what_runs_otherwise_than_before_is_not_observed():
    model = quiet(partial(Blocks, True))
    model.blocks[1] = quiet(Fickle)
    monitor, optimizer = watched(model)
    train(model, optimizer, 1)
    assert monitor.ledger.row("blocks.1.linear").gradient is None
    assert monitor.ledger.row("blocks.0.linear").gradient is not None
    assert monitor.ledger.row("blocks.1.linear").signal is not None
