"""fit(): the training loop, on one screen."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gainstage.data import training_batches
from gainstage.errors import BadInput
from gainstage.evaluation import evaluate
from gainstage.monitor import Monitor, RunStore
from gainstage.monitor.sampling import Sampler
from gainstage.monitor.watch import open_store
from gainstage.program import Program, as_program, run_loss, run_model
from gainstage.randomness import seeded
from gainstage.training.files import save_run
from gainstage.training.progress import Reporter, reporting
from gainstage.training.run import Run

DEFAULT_EPOCHS, DEFAULT_BATCH = 10, 32


def fit(
    model: Any,
    loss: Any = None,
    train: Any = None,
    valid: Any = None,
    *,
    optimizer: Any = None,
    schedule: Callable[[Optimizer], Any] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    patience: int | None = None,
    schedule_every: str = "epoch",
    clip_norm: float | None = None,
    budget: float = 0.01,
    progress: bool = True,
    label: str = "training",
) -> Run:
    """Train `model` in place, watched, and return the Run.

    model: an nn.Module, or a whole Program. train, valid: (x, y) tensors or arrays, a Dataset or a DataLoader.
    optimizer: a name ("adam" when left out), an instance, or a callable that takes the parameters. schedule: a callable
    that takes the optimiser and returns a torch scheduler, stepped once every "epoch" or "step" (schedule_every). clip_norm:
    the gradient's norm is clipped to it. patience: stop after so many epochs
    without a lower validation loss. With validation data the best weights are put back at the end. seed: order of the
    data and everything random in the model; the process's own random state is left as it was. folder: readings, metrics,
    findings (run.sqlite), weights and settings. budget: share of the time that watching may take.
    Raises BadInput when something handed in cannot be used.
    """
    program = as_program(
        model, loss, train, valid=valid, optimizer=optimizer, epochs=epochs, batch_size=batch_size, clip_norm=clip_norm
    )
    settings = Settings(patience, schedule_every)
    _check(program, schedule, seed, folder, settings)
    count = program.epochs or DEFAULT_EPOCHS
    with ExitStack() as stack:
        stack.enter_context(seeded(seed))
        torch_optimizer = program.make_optimizer()
        store = open_store(folder)
        # a monitor of its own: watch() would take the place of one that the user has on this model
        monitor = Monitor(program.model, [torch_optimizer], Sampler(budget=budget), None, None, store)
        stack.enter_context(monitor)
        report = stack.enter_context(reporting(count, progress, label))
        loop = _Loop(program, torch_optimizer, schedule and schedule(torch_optimizer), store, settings)
        return loop.run(count, seed, report, monitor, None if folder is None else Path(folder))


def _check(program: Program, schedule: Any, seed: Any, folder: str | Path | None, settings: Settings) -> None:
    """BadInput for what the loop could not use."""
    if folder is not None and (Path(folder) / "run.json").exists():
        raise BadInput(f"{folder} holds a finished run already; choose another folder, or remove it")
    if schedule is not None and not callable(schedule):
        raise BadInput(f"schedule must be a callable that takes the optimiser, got {schedule!r}")
    if not isinstance(seed, int):
        raise BadInput(f"seed must be a whole number, got {seed!r}")
    if settings.patience is not None and program.valid is None:
        raise BadInput("patience counts epochs without a better validation loss: it needs validation data, give valid=")
    if isinstance(program.optimizer, torch.optim.LBFGS):
        raise BadInput("fit does not drive LBFGS, which calls the loss itself; choose another optimiser")


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of an epoch's order: no order is shared between neighbouring seeds."""
    return seed * 1_000_003 + epoch


@dataclass(frozen=True)
class Settings:
    """How the loop goes about it; BadInput for values that cannot be used."""

    patience: int | None = None
    schedule_every: str = "epoch"

    def __post_init__(self) -> None:
        if self.patience is not None and (not isinstance(self.patience, int) or self.patience < 1):
            raise BadInput(f"patience must be a whole number of at least 1 epoch, got {self.patience!r}")
        if self.schedule_every not in ("epoch", "step"):
            raise BadInput(f"schedule_every must be 'epoch' or 'step', got {self.schedule_every!r}")

    @property
    def steps_schedule(self) -> bool:
        """True when the schedule moves with every optimiser step."""
        return self.schedule_every == "step"


class _Loop:
    """The state of one training."""

    def __init__(
        self,
        program: Program,
        optimizer: Optimizer,
        schedule: Any,
        store: RunStore | None,
        settings: Settings,
    ):
        self.program, self.optimizer, self.schedule = program, optimizer, schedule
        self.store, self.settings = store, settings
        self.history: list[dict[str, float]] = []
        self.best: dict[str, float] = {}
        self.best_weights: dict[str, Any] | None = None
        self.stopped: str | None = None

    def run(self, epochs: int, seed: int, report: Reporter, monitor: Monitor, folder: Path | None) -> Run:
        began = time.perf_counter()
        model = self.program.model
        if not any(module.training for module in model.modules()):
            model.train()
        for epoch in range(1, epochs + 1):
            row = self.epoch(epoch, torch.Generator().manual_seed(epoch_seed(seed, epoch)))
            self.history.append(row)
            report(row)
            if self.stopped is not None or self.is_over():
                break
        if self.best_weights is not None:
            model.load_state_dict(self.best_weights)
        run = Run(
            model, tuple(self.history), self.best, tuple(monitor.findings), self.stopped,
            time.perf_counter() - began, monitor.overhead, folder,
        )  # fmt: skip
        if folder is not None:
            save_run(run, folder)
        return run

    def epoch(self, epoch: int, generator: torch.Generator) -> dict[str, float]:
        began = time.perf_counter()
        row = {"epoch": float(epoch), "learning_rate": float(self.optimizer.param_groups[0]["lr"])}
        row["train_loss"] = self.train_epoch(generator)
        if self.program.valid is not None:
            measured = evaluate(self.program.model, self.program.loss, self.program.valid)
            row.update({f"valid_{name}": value for name, value in measured.items()})
        row["seconds"] = time.perf_counter() - began
        self.remember(row)
        if isinstance(self.schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.schedule.step(row.get("valid_loss", row["train_loss"]))
        elif self.schedule is not None and not self.settings.steps_schedule:
            self.schedule.step()
        return row

    def train_epoch(self, generator: torch.Generator) -> float:
        """One pass over the data; the mean loss over its samples."""
        total, samples = torch.zeros(()), 0
        for x, y in training_batches(self.program.source, self.program.batch_size or DEFAULT_BATCH, generator):
            self.optimizer.zero_grad()
            loss = run_loss(self.program.loss, run_model(self.program.model, x), y)
            loss.backward()
            if self.program.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.program.model.parameters(), self.program.clip_norm)
            self.optimizer.step()
            if self.settings.steps_schedule and self.schedule is not None:
                self.schedule.step()
            total, samples = total + loss.detach().cpu() * len(y), samples + len(y)
        mean = float(total) / samples
        if not math.isfinite(mean):
            self.stopped = "the loss is no longer finite; lower the learning rate, or run gainstage check"
        return mean

    def remember(self, row: dict[str, float]) -> None:
        """Keep the metrics, and the weights where they are the best so far."""
        if self.store is not None:
            self.store.add_metrics(int(row["epoch"]), row)
        key = "valid_loss" if "valid_loss" in row else "train_loss"
        if math.isfinite(row[key]) and (not self.best or row[key] < self.best[key]):
            self.best = row
            if key == "valid_loss":
                self.best_weights = copy.deepcopy(self.program.model.state_dict())

    def is_over(self) -> bool:
        """Early stopping."""
        if self.settings.patience is None or not self.best:
            return False
        waited = self.history[-1]["epoch"] - self.best["epoch"]
        if waited >= self.settings.patience:
            self.stopped = f"no lower validation loss for {self.settings.patience} epochs"
        return self.stopped is not None
