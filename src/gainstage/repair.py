"""fix(): remedies one by one, each measured, each kept only when it proved better; all others undone exactly."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from torch import nn

from gainstage.checkup import Checkup, check_program
from gainstage.display import Displayed
from gainstage.errors import GainstageError
from gainstage.program import Program, as_program
from gainstage.remedies import REGISTRY, CannotApply, Remedy, Treatment
from gainstage.rules import Finding, flatten
from gainstage.signal.untouched import check_shapes
from gainstage.trial import redraw, train_briefly

TRIAL_SEEDS = 3
TRIAL_STEPS = 100
WORST_LOSS_RATIO = 30.0  # an output of unit variance may start worse than one near zero, but not by so much
MOST_ATTEMPTS = 30  # far beyond what a fixed point takes; a guard against remedies that chase each other


@dataclass(frozen=True)
class TrialResult:
    """Final training losses over seeds, lower is better: unchanged, with mere new weights, and with the remedy."""

    unchanged: tuple[float, ...]
    redrawn: tuple[float, ...]
    treated: tuple[float, ...]

    @property
    def better(self) -> bool:
        """True when the remedy beats both controls by more than the seeds' spread."""
        return all(_clearly_below(self.treated, control) for control in (self.unchanged, self.redrawn))


def _clearly_below(treated: tuple[float, ...], control: tuple[float, ...]) -> bool:
    """The mean paired difference exceeds the spread of the differences; a finite loss beats one that diverged."""
    if not all(map(math.isfinite, treated)):
        return False
    gains = [c - t for c, t in zip(control, treated, strict=True)]
    if not all(map(math.isfinite, gains)):
        return True
    return fmean(gains) > (stdev(gains) if len(gains) > 1 else 0.0) and fmean(gains) > 0


@dataclass(frozen=True)
class Attempt:
    """One remedy tried on one finding: kept or undone, and why."""

    remedy: str
    title: str
    safety: str
    finding: str
    kept: bool
    reason: str
    trial: TrialResult | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {**vars(self), "trial": None if self.trial is None else vars(self.trial)}


@dataclass(frozen=True)
class Fix(Displayed):
    """What fix() did: all attempts in order, and the program as it is now (changed in place).

    hidden_unsafe: remedies that were not tried because they are unsafe.
    """

    program: Program
    before: Checkup
    after: Checkup
    attempts: tuple[Attempt, ...]
    hidden_unsafe: int
    description_before: tuple[str, ...]
    description_after: tuple[str, ...]

    @property
    def applied(self) -> tuple[Attempt, ...]:
        """Attempts that were kept."""
        return tuple(attempt for attempt in self.attempts if attempt.kept)

    @property
    def rejected(self) -> tuple[Attempt, ...]:
        """Attempts that were undone."""
        return tuple(attempt for attempt in self.attempts if not attempt.kept)

    @property
    def model(self) -> nn.Module:
        return self.program.model

    @property
    def loss(self) -> Any:
        return self.program.loss

    @property
    def optimizer(self) -> Any:
        return self.program.optimizer

    @property
    def data(self) -> Any:
        return self.program.data

    def diff(self) -> str:
        """A unified diff of the network, one line a module with the size of its weights; empty when nothing changed."""
        lines = difflib.unified_diff(
            self.description_before, self.description_after, "before", "after", lineterm="", n=1
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return {
            "attempts": [attempt.to_dict() for attempt in self.attempts],
            "hidden_unsafe": self.hidden_unsafe,
            "diff": self.diff(),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
        }


def fix(
    model: Any,
    loss: Any = None,
    data: Any = None,
    *,
    optimizer: Any = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    valid: Any = None,
    level: str = "preflight",
    select: Iterable[str] | None = None,
    ignore: Iterable[str] | None = None,
    seed: int = 0,
    unsafe: bool = False,
    on_attempt: Callable[[Attempt], None] | None = None,
) -> Fix:
    """Repair a network in place: the root cause first, the least invasive remedy first.

    A remedy is kept when it changed what it claims to change, its finding is gone and no new one came; at level "trial"
    also only when short trainings with the same seeds and data order go better than without it, and than with mere new
    weights, by more than their spread. Everything else is undone, bit by bit. Remedies that change the function family
    or what was learned are tried only with unsafe=True. on_attempt is called after each attempt.
    Other arguments and errors are those of check().
    """
    program = as_program(model, loss, data, optimizer=optimizer, batch_size=batch_size, epochs=epochs, valid=valid)
    program = program.bare()
    check_shapes(program.model)
    doctor = _Doctor(
        program, {"level": level, "select": _tuple(select), "ignore": _tuple(ignore), "seed": seed}, unsafe
    )
    before, described = doctor.current, describe(program.model)
    for attempt in doctor.treat():
        if on_attempt is not None:
            on_attempt(attempt)
    attempts = tuple(doctor.attempts)
    return Fix(program, before, doctor.current, attempts, doctor.hidden, described, describe(program.model))


def _tuple(codes: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if codes is None else (codes,) if isinstance(codes, str) else tuple(codes)


def describe(model: nn.Module) -> tuple[str, ...]:
    """One line for each module that has parameters of its own or no children: path, what it is, RMS of its weight."""
    lines = []
    for path, module in model.named_modules():
        inner = list(module.children())
        if inner and not any(True for _ in module.parameters(recurse=False)):
            continue
        text = f"{type(module).__name__}({module.extra_repr()})" if inner else str(module).replace("\n", " ")
        weight = getattr(module, "weight", None)
        size = f"  weight rms {float(weight.detach().square().mean().sqrt()):.4g}" if weight is not None else ""
        lines.append(f"{path or '(model)'}: {text}{size}")
    return tuple(lines)


class _Doctor:
    """The state of one fix(): the program, its latest checkup, and what was tried."""

    def __init__(self, program: Program, settings: dict[str, Any], unsafe: bool):
        self.program, self.settings, self.unsafe = program, settings, unsafe
        self.attempts: list[Attempt] = []
        self.hidden = 0
        self.current = self._check()

    def _check(self) -> Checkup:
        return check_program(self.program, **self.settings)

    def treat(self) -> Iterator[Attempt]:
        """Yield attempts until no finding has a remedy left that was not tried since the last change."""
        tried: set[tuple[str, tuple[str, ...], str]] = set()
        while len(self.attempts) < MOST_ATTEMPTS:
            choice = self._next(tried)
            if choice is None:
                break
            finding, remedy = choice
            tried.add((finding.code, finding.where, remedy.name))
            attempt = self._attempt(finding, remedy)
            self.attempts.append(attempt)
            yield attempt
            if attempt.kept:
                tried.clear()
        self.hidden = len(self._hidden())

    def _next(self, tried: set[tuple[str, tuple[str, ...], str]]) -> tuple[Finding, Remedy] | None:
        for finding in self.current.findings:
            for name in finding.remedies:
                remedy = REGISTRY[name]()
                allowed = self.unsafe or remedy.safety == "safe"
                if allowed and (finding.code, finding.where, name) not in tried:
                    return finding, remedy
        return None

    def _hidden(self) -> set[str]:
        if self.unsafe:
            return set()
        names = {name for finding in self.current.findings for name in finding.remedies}
        return {name for name in names if REGISTRY[name].safety == "unsafe"}

    def _attempt(self, finding: Finding, remedy: Remedy) -> Attempt:
        graph_before = self.current.graph
        treatment = Treatment(self.program, graph_before, finding.where, self.settings["seed"])
        trial = None
        try:
            undo = remedy.apply(treatment)
        except CannotApply as error:
            return self._report(remedy, finding, False, str(error))
        try:
            after = self._check()
            reason = self._objection(finding, remedy, treatment, after)
        except GainstageError as error:
            after, reason = None, str(error)
        except BaseException:
            undo()
            raise
        if reason is None and self.settings["level"] == "trial":
            undo()
            trial = self._trial(remedy, treatment)
            reason = None if trial.better else "training with it does not go better, beyond the spread of the seeds"
            undo = remedy.apply(treatment)
        if reason is not None or after is None:
            undo()
            return self._report(remedy, finding, False, reason or "", trial)
        self.current = after
        return self._report(remedy, finding, True, f"{finding.code} is gone, nothing new came", trial)

    def _objection(self, finding: Finding, remedy: Remedy, treatment: Treatment, after: Checkup) -> str | None:
        """Why the remedy cannot be kept; None when it can."""
        if not remedy.changed(treatment.graph, after.graph, treatment):
            return "it did not change what it claims to change"
        if any(f.code == finding.code and f.overlaps(finding) for f in flatten(after.findings)):
            return f"{finding.code} {finding.name} is still there"
        before, now = (_loss_of(checkup) for checkup in (self.current, after))
        if now > WORST_LOSS_RATIO * before or not math.isfinite(now):
            return f"it raises the loss from {before:.3g} to {now:.3g}"
        known = set(self.current.codes)
        new = [f for f in flatten(after.findings) if f.code not in known and f.severity != "note"]
        return f"it brings {new[0].code} {new[0].name}: {new[0].message}" if new else None

    def _trial(self, remedy: Remedy, treatment: Treatment) -> TrialResult:
        seeds = range(treatment.seed, treatment.seed + TRIAL_SEEDS)
        return TrialResult(
            unchanged=tuple(self._train(seed, lambda program, seed: None) for seed in seeds),
            redrawn=tuple(self._train(seed, _redraw) for seed in seeds),
            treated=tuple(
                self._train(seed, lambda p, s: remedy.apply(Treatment(p, treatment.graph, treatment.where, s)))
                for seed in seeds
            ),
        )

    def _train(self, seed: int, change: Callable[[Program, int], Any]) -> float:
        twin = self.program.copy()
        change(twin, seed)
        return train_briefly(twin, TRIAL_STEPS, seed).final

    @staticmethod
    def _report(remedy: Remedy, finding: Finding, kept: bool, reason: str, trial: TrialResult | None = None) -> Attempt:
        return Attempt(remedy.name, remedy.title, remedy.safety, finding.code, kept, reason, trial)


def _loss_of(checkup: Checkup) -> float:
    """Loss of the measured batch; 0 where nothing was measured, infinite where it is not a number."""
    loss = 0.0 if checkup.ledger is None or checkup.ledger.loss is None else abs(checkup.ledger.loss)
    return math.inf if math.isnan(loss) else loss


def _redraw(program: Program, seed: int) -> None:
    redraw(program.model, torch.Generator().manual_seed(seed))
