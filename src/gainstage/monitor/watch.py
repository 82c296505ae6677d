"""watch(): the same measuring, live, inside any training loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gainstage.errors import BadInput
from gainstage.monitor.reading import Reading, remember
from gainstage.monitor.recording import Recording
from gainstage.monitor.sampling import Sampler
from gainstage.monitor.store import RunStore
from gainstage.optimizers import check_trains
from gainstage.rules import Context, Finding, choose, flatten, run_rules
from gainstage.signal import Ledger
from gainstage.signal.replay import Script


def watch(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    every: int | None = None,
    budget: float = 0.01,
    log: Callable[[dict[str, float]], Any] | None = None,
    on_finding: Callable[[Finding], Any] | None = None,
    folder: str | Path | None = None,
) -> Monitor:
    """Measure `model` while the user's own loop trains it; the loop stays as it is.

    every: measure each so many optimiser steps; None adapts the interval to `budget`, the share of the time that
    measuring may take. log: called with a dictionary of numbers for each measured step. on_finding: called once for each
    new finding. folder: readings and findings go to folder/run.sqlite.
    Returns a Monitor, also a context manager. Raises BadInput for arguments that cannot be used; an error while
    measuring switches the monitor off with one warning and never stops the training.
    """
    sampler = Sampler(every, budget)
    _check_arguments(model, optimizer, log, on_finding)
    previous = _watching(model)
    if previous is not None:
        previous.close()
    return Monitor(model, optimizer, sampler, log, on_finding, open_store(folder))


def open_store(folder: str | Path | None) -> RunStore | None:
    """The run's database, where there is a folder for it."""
    return None if folder is None else RunStore(folder)


def _check_arguments(model: Any, optimizer: Any, log: Any, on_finding: Any) -> None:
    if not isinstance(model, nn.Module) or not isinstance(optimizer, Optimizer):
        raise BadInput("watch(model, optimizer) needs a torch.nn.Module and a torch.optim.Optimizer on its parameters")
    for name, value in (("log", log), ("on_finding", on_finding)):
        if value is not None and not callable(value):
            raise BadInput(f"{name} must be callable, got a {type(value).__name__}")
    check_trains(optimizer, model)


class Monitor:
    """What watch() returns: `ledger` (the latest), `history` (all readings), `findings` (each once), `close()`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        sampler: Sampler,
        log,
        on_finding,
        store: RunStore | None,
    ):
        self.model, self.sampler, self.store = model, sampler, store
        self.log, self.on_finding = log, on_finding
        self.step = 0
        self.history: list[Reading] = []
        self.findings: list[Finding] = []
        self._recording: Recording | None = None
        self._script: Script | None = None
        self._closed = self._in_hook = False
        self._handles = [
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            model.register_forward_hook(self._after_forward, always_call=True),
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    @property
    def ledger(self) -> Ledger | None:
        """The latest ledger; None before the first measured step."""
        return self.history[-1].ledger if self.history else None

    @property
    def overhead(self) -> float:
        """Measured share of the training time that watching took."""
        return self.sampler.overhead

    def close(self) -> None:
        """Take every hook off; what was measured stays. May be called twice, and from inside a callback."""
        self._closed = True
        if self._recording is not None:
            self._recording.abandon()
            self._recording = None
        if self.store is not None:
            self.store.close()
            self.store = None
        if not self._in_hook:  # else the optimiser is walking through its hooks: the next forward pass takes them off
            for handle in self._handles:
                handle.remove()
            self._handles.clear()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_exception: Any) -> None:
        self.close()

    def __deepcopy__(self, _memo: Any) -> Monitor:
        return self  # a copied model is not watched: the hooks look which model calls them

    def __reduce__(self):
        return _Detached, ()

    # ---------------------------------------------------------------- hooks
    def _before_forward(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._closed:
            self.close()
            return
        wanted = module is self.model and module.training and torch.is_grad_enabled()
        if wanted and self._recording is None and self.sampler.due(self.step):
            script = None if self.sampler.judges(self.step) else self._script
            self._recording = self._guarded(lambda: Recording(self.model, (args, kwargs), script))

    def _after_forward(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        recording = self._recording
        if module is not self.model or recording is None or recording.graph is not None:
            return
        if output is None:  # the user's forward raised
            recording.abandon()
            self._recording = None
        else:
            self._guarded(lambda: recording.forward_done(output))

    def _before_step(self, _optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        if self._recording is not None:
            self._guarded(self._recording.before_step)

    def _after_step(self, _optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        if not self._closed:
            recording, self._recording = self._recording, None
            self._guarded(lambda: self._finish_step(recording))

    def _finish_step(self, recording: Recording | None) -> None:
        measured = None if recording is None else self._take(recording)
        judged = measured is not None and self.sampler.judges(self.step)
        if measured is not None and judged:
            self._judge(measured)
        self.sampler.stepped(self.step, recording is not None, judged)
        self.step += 1

    def _guarded(self, action: Callable[[], Any]) -> Any:
        """An error of ours never stops a training: the monitor switches itself off with one warning."""
        self._in_hook = True
        try:
            return action()
        except Exception as error:
            self.close()
            warnings.warn(f"gainstage stopped watching: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=3)
            return None
        finally:
            self._in_hook = False

    def _take(self, recording: Recording) -> Reading | None:
        measured = recording.after_step()
        self._script = recording.script
        if measured is None:
            return None
        reading = remember(self.history, self.step, measured)
        if self.log is not None or self.store is not None:
            self._write(measured.ledger(theory=False))
        return reading

    def _write(self, ledger: Ledger) -> None:
        if self.log is not None:
            self.log(_scalars(self.step, ledger))
        if self.store is not None:
            self.store.add_readings(self.step, ledger.records())

    def _judge(self, reading: Reading) -> None:
        """Let the rules look at a step."""
        seen = {finding.code for finding in flatten(self.findings)}
        rules = [rule for rule in choose() if rule.depth != "static" or self.step == 0]
        context = Context(self.model, reading.measured.graph, reading.ledger)
        found = [finding for finding in run_rules(rules, context, "run") if finding.code not in seen]
        for finding in found:
            self._announce(finding)
        if found:
            self.sampler.found(self.step)

    def _announce(self, finding: Finding) -> None:
        self.findings.append(finding)
        if self.store is not None:
            self.store.add_finding(self.step, finding)
        if self.on_finding is not None:
            self.on_finding(finding)


class _Detached:
    """What a monitor becomes in a pickle: hooks that do nothing."""

    def _before_forward(self, *_arguments: Any) -> None:
        return None

    def _after_forward(self, *_arguments: Any) -> None:
        return None


def _watching(model: nn.Module) -> Monitor | None:
    """The monitor that already watches `model`, for a notebook cell that runs again."""
    owners = (getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values())
    return next((owner for owner in owners if isinstance(owner, Monitor) and owner.model is model), None)


def _scalars(step: int, ledger: Ledger) -> dict[str, float]:
    quantities = (
        "signal",
        "offset",
        "similarity",
        "gain",
        "gradient",
        "backward_gain",
        "dead",
        "saturated",
        "update",
    )
    numbers = {
        f"{row.name}/{quantity}": value
        for row in ledger.rows
        for quantity in quantities
        if (value := getattr(row, quantity)) is not None
    }
    return {"step": float(step), **numbers}
