"""Short trainings of copies: what rules and remedies of depth `trial` judge by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, islice
from statistics import fmean, median

import torch
from torch import nn
from torch.optim import Optimizer

from gainstage.data import Batch, mapped, order_kept, training_batches
from gainstage.evaluation import evaluating, score
from gainstage.objective import describe, recognise
from gainstage.program import Program, run_loss, run_model
from gainstage.randomness import seeded

DEFAULT_BATCH = 32
STEPS = 100
SCORED = 1024  # samples
FEW = 32  # samples that a network must be able to learn by heart


@dataclass(frozen=True)
class Trial:
    """A short training, step by step. losses: before each step. norms: of the gradient over all parameters, as it came.
    updates: by parameter (only of matrices), size of the true step, weight after minus before, relative to the weight.
    score: on the validation data, or else on a sample of the training data, when it is over; see evaluation.score."""

    losses: tuple[float, ...]
    norms: tuple[float, ...] = ()
    updates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    score: float | None = None

    @property
    def final(self) -> float:
        """Mean loss over the last quarter of the steps; infinite when any loss was not finite."""
        if not self.finite:
            return math.inf
        return fmean(self.losses[-max(1, len(self.losses) // 4) :])

    @property
    def finite(self) -> bool:
        """True when every loss was a finite number."""
        return all(map(math.isfinite, self.losses))

    @property
    def typical_updates(self) -> dict[str, float]:
        """By parameter, the median over the steps of its true update ratio."""
        return {name: median(sizes) for name, sizes in self.updates.items() if sizes}


class Trials:
    """Short trainings of copies of one program with one order of the data: each runs when it is first looked at."""

    def __init__(self, program: Program, seed: int = 0, steps: int = STEPS):
        self.program, self.seed, self.steps = program, seed, steps
        self._at: dict[float, Trial] = {}

    @property
    def plain(self) -> Trial:
        """The program as it is."""
        return self.at_rate(1.0)

    def at_rate(self, factor: float) -> Trial:
        """The program with its learning rates multiplied by `factor`."""
        if factor not in self._at:
            self._at[factor] = train_briefly(self.program.copy(), self.steps, self.seed, rate=factor)
        return self._at[factor]

    @cached_property
    def one_batch(self) -> Trial:
        """The same 32 samples over and over."""
        batch = self.program.source.sample(FEW, self.seed)
        return train_briefly(self.program.copy(), self.steps, self.seed, change=lambda _: batch)

    @cached_property
    def blind(self) -> Trial:
        """Every input replaced by zeros: what can be learned without looking."""
        return train_briefly(self.program.copy(), self.steps, self.seed, change=_without_inputs)


def _without_inputs(batch: Batch) -> Batch:
    return mapped(batch[0], torch.zeros_like), batch[1]


def train_briefly(
    program: Program,
    steps: int,
    seed: int,
    *,
    rate: float = 1.0,
    change: Callable[[Batch], Batch] = lambda batch: batch,
) -> Trial:
    """Train `program` (a copy: its weights change) for `steps` optimiser steps with the data order of `seed`. rate: what its
    learning rates are multiplied by. change: what is done to each batch first.

    The random state of the process is left as it was.
    """
    if not any(module.training for module in program.model.modules()):
        program.model.train()
    with seeded(seed), order_kept(program.source):
        optimizer = program.make_optimizer()
        for group in optimizer.param_groups:
            group["lr"] *= rate
        notes = _Notes(program.model)
        for batch in islice(_endless(program, seed), steps):
            notes.step(program, optimizer, change(batch))
        return notes.trial(_score(program, seed))


def _score(program: Program, seed: int) -> float | None:
    x, y = (program.valid or program.source).sample(SCORED, seed)
    with evaluating(program.model):
        output = run_model(program.model, x)
    return score(output, y, describe(y), recognise(program.loss, output, y))


class _Notes:
    """What is written down of a short training."""

    def __init__(self, model: nn.Module):
        self.weights = {name: p for name, p in model.named_parameters() if p.ndim > 1 and p.requires_grad}
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.updates: dict[str, list[float]] = {name: [] for name in self.weights}

    def step(self, program: Program, optimizer: Optimizer, batch: Batch) -> None:
        before = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.losses.append(compute_gradient(program, optimizer, batch))
        sizes = [p.grad.norm() for p in self.parameters if p.grad is not None]
        self.norms.append(float(torch.stack(sizes).norm()) if sizes else 0.0)
        update(program, optimizer)
        for name, weight in self.weights.items():
            size = float(before[name].norm())
            if size > 0:
                self.updates[name].append(float((weight.detach() - before[name]).norm()) / size)

    def trial(self, score: float | None) -> Trial:
        updates = {name: tuple(sizes) for name, sizes in self.updates.items()}
        return Trial(tuple(self.losses), tuple(self.norms), updates, score)


def training_step(program: Program, optimizer: Optimizer, batch: Batch) -> float:
    """One forward, backward and update; returns the loss before the update."""
    loss = compute_gradient(program, optimizer, batch)
    update(program, optimizer)
    return loss


def compute_gradient(program: Program, optimizer: Optimizer, batch: Batch) -> float:
    """One forward and backward pass from cleared gradients; returns the loss."""
    optimizer.zero_grad()
    loss = run_loss(program.loss, run_model(program.model, batch[0]), batch[1])
    loss.backward()
    return float(loss.detach())


def update(program: Program, optimizer: Optimizer) -> None:
    """The optimiser's step, behind the program's clipping."""
    if program.clip_norm is not None:
        nn.utils.clip_grad_norm_(program.model.parameters(), program.clip_norm)
    optimizer.step()


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
