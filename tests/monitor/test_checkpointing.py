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
    measured,
    same_bits,
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


@pytest.mark.parametrize(
    "reentrant",
    [pytest.param(True, marks=pytest.mark.xfail(strict=True, reason="gradients within are not observed")), False],
    ids=KINDS,
)
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


@pytest.mark.parametrize("reentrant", KINDS.values(), ids=KINDS)
def test_what_runs_again_is_not_traced_again(reentrant):
    model, hooks = quiet(partial(Blocks, reentrant)), []
    _, optimizer = watched(model)
    block = model.blocks[0].linear
    block.register_forward_pre_hook(lambda module, _: hooks.append(len(module._forward_pre_hooks)))
    train(model, optimizer, 1)
    whole, around = quiet(Chain), []
    _, optimizer = watched(whole)
    whole.b.register_forward_pre_hook(lambda module, _: around.append(len(module._forward_pre_hooks)))
    x, y = blobs(32)
    F.cross_entropy(checkpoint(whole, x.requires_grad_(), use_reentrant=reentrant), y).backward()
    assert hooks == [2, 1]
    assert around == ([1, 2] if reentrant else [2, 1])
