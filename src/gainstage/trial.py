"""A short training of a copy: what rules and remedies of depth `trial` judge by."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from statistics import fmean

import torch
from torch import nn

from gainstage.data import Batch, order_kept, training_batches
from gainstage.program import Program, run_loss, run_model
from gainstage.randomness import seeded

DEFAULT_BATCH = 32


@dataclass(frozen=True)
class Trial:
    """The losses of a short training, one a step."""

    losses: tuple[float, ...]

    @property
    def final(self) -> float:
        """Mean loss over the last quarter of the steps; infinite when any loss was not finite."""
        if not all(map(math.isfinite, self.losses)):
            return math.inf
        return fmean(self.losses[-max(1, len(self.losses) // 4) :])


def train_briefly(program: Program, steps: int, seed: int) -> Trial:
    """Train `program` (a copy: its weights change) for `steps` optimiser steps with the data order of `seed`.

    The random state of the process is left as it was.
    """
    if not any(module.training for module in program.model.modules()):
        program.model.train()
    with seeded(seed), order_kept(program.source):
        optimizer = program.make_optimizer()
        losses = [training_step(program, optimizer, batch) for batch in islice(_endless(program, seed), steps)]
    return Trial(tuple(losses))


def training_step(program: Program, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    """One forward, backward and update; returns the loss before the update."""
    optimizer.zero_grad()
    loss = run_loss(program.loss, run_model(program.model, batch[0]), batch[1])
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def _endless(program: Program, seed: int) -> Iterator[Batch]:
    size = program.batch_size or DEFAULT_BATCH
    for epoch in count():
        generator = torch.Generator().manual_seed(seed + 1000 * epoch)
        yield from training_batches(program.source, size, generator)


def redraw(model: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight matrix anew with the mean and standard deviation it has: a mere change of luck."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                mean, std = float(parameter.mean()), float(parameter.std(unbiased=False))
                parameter.normal_(mean, std, generator=generator)
