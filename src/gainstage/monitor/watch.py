"""watch(): the same measuring, live, inside any training loop."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gainstage.errors import BadInput
from gainstage.monitor.compilation import is_compiled, run_eagerly, settle
from gainstage.monitor.distributed import is_first
from gainstage.monitor.fuses import Fuses
from gainstage.monitor.passes import Passes
from gainstage.monitor.reading import Reading, remember
from gainstage.monitor.recomputation import in_backward
from gainstage.monitor.recording import Recording
from gainstage.monitor.sampling import Sampler
from gainstage.monitor.store import RunStore
from gainstage.optimizers import check_trains
from gainstage.program import unwrapped
from gainstage.rules import Context, Finding, choose, flatten, run_rules
from gainstage.signal import Ledger

FAILURES = 3  # in a row, of what no probe of its own does; then the monitor stops
UNSEEN = 10


def watch(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    every: int | None = None,
    budget: float = 0.01,
    log: Callable[[dict[str, float]], Any] | None = None,
    on_finding: Callable[[Finding], Any] | None = None,
    folder: str | Path | None = None,
) -> Monitor:
    """Measure `model` while the user's own loop trains it; the loop stays as it is.

    optimizer: what trains the model; a list of several, of which each may train a part. every: measure each so many
    optimiser steps; None adapts the interval to `budget`, the share of the time that measuring may take. log: called with
    a dictionary of numbers for each measured step. on_finding: called once for each new finding. folder: readings and
    findings go to folder/run.sqlite.

    A step is read from the last forward pass (in training mode, with gradients) that a backward pass reached: of several
    micro-batches from the last, its gradient as it came, and the weights' gradients as they had added up when the optimiser
    took them. Where the optimiser's step calls a closure, it is read from the closure's first call. Several optimisers that
    step without a forward pass in between take one step together.

    Returns a Monitor, also a context manager. Raises BadInput for arguments that cannot be used. No error while measuring
    stops the training: a probe or callback that raises is switched off with one warning.
    """
    sampler = Sampler(every, budget)
    optimizers = _check_arguments(model, optimizer, log, on_finding)
    previous = _watching(unwrapped(model))
    if previous is not None:
        previous.close()
    return Monitor(model, optimizers, sampler, log, on_finding, open_store(folder))


def open_store(folder: str | Path | None) -> RunStore | None:
    """The run's database, where there is a folder for it; of several processes the first writes it."""
    return None if folder is None or not is_first() else RunStore(folder)


def _check_arguments(model: Any, optimizer: Any, log: Any, on_finding: Any) -> list[Optimizer]:
    optimizers = list(dict.fromkeys(optimizer)) if isinstance(optimizer, (list, tuple)) else [optimizer]
    wrong = not optimizers or not all(isinstance(each, Optimizer) for each in optimizers)
    if not isinstance(model, nn.Module) or wrong:
        raise BadInput("watch(model, optimizer) needs a torch.nn.Module and a torch.optim.Optimizer on its parameters")
    for name, value in (("log", log), ("on_finding", on_finding)):
        if value is not None and not callable(value):
            raise BadInput(f"{name} must be callable, got a {type(value).__name__}")
    for each in optimizers:
        check_trains(each, model)
    return optimizers


class Monitor:
    """What watch() returns: `ledger` (the latest), `history` (all readings), `findings` (each once), `close()`."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        sampler: Sampler,
        log,
        on_finding,
        store: RunStore | None,
    ):
        self.model, self.sampler, self.store = unwrapped(model), sampler, store
        self.log, self.on_finding = log, on_finding
        self.step = 0
        self.history: list[Reading] = []
        self.findings: list[Finding] = []
        self._fuses = Fuses()
        self._passes = Passes(self.model, self._fuses)
        self._failures: list[Exception] = []  # in a row
        self._optimizers, self._stepped = len(optimizers), set[int]()
        self._closed = self._in_hook = False
        self._handles = [
            self.model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            self.model.register_forward_hook(self._after_forward, always_call=True),
        ]
        for optimizer in optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))
        self._unseen = 0  # steps in a row that were to be measured and whose forward pass no hook saw
        self._compiled = is_compiled(model)
        weakref.finalize(self, settle).atexit = False  # for one that is never closed
        weakref.finalize(self, self._passes.team.leave).atexit = False
        self._prepare()

    @property
    def ledger(self) -> Ledger | None:
        """The latest ledger; None before the first measured step."""
        return self.history[-1].ledger if self.history else None

    @property
    def overhead(self) -> float:
        """Measured share of the training time that watching took."""
        return self.sampler.overhead

    @property
    def skipped(self) -> int:
        """Backward passes of measured steps whose gradient overflowed, so that a GradScaler took no step from them."""
        return self._passes.skipped

    def close(self) -> None:
        """Take every hook off; what was measured stays. May be called twice, and from inside a callback."""
        if self._stepped and not self._closed:
            self._finish_step()
        self._closed = True
        self._passes.clear()
        self._passes.team.leave()
        run_eagerly(self, False)
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
        if torch.compiler.is_compiling():  # nothing of a hook is to be in the compiled code
            return
        if self._closed:
            self.close()
        elif module is self.model and module.training and torch.is_grad_enabled():
            if self._stepped and not in_backward():
                self._finish_step()
            if self.sampler.due(self.step):
                anew = self.sampler.judges(self.step)
                self._guarded(lambda: self._passes.begin((args, kwargs), anew))

    def _after_forward(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        if not torch.compiler.is_compiling() and module is self.model:
            self._guarded(lambda: self._passes.end(output))

    def _before_step(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if id(optimizer) in self._stepped:  # once more, without a forward pass in between
            self._finish_step()
        self._guarded(lambda: self._passes.before_step(optimizer))

    def _after_step(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        if self._closed or torch.compiler.is_compiling():
            return
        self._guarded(self._passes.stepped)
        self._stepped.add(id(optimizer))
        if len(self._stepped) == self._optimizers:
            self._finish_step()

    def _finish_step(self) -> None:
        """All optimisers have taken their step; or those that were to, for a new forward pass begins."""
        recording, due = self._passes.chosen, self.sampler.due(self.step)
        self._stepped.clear()
        if recording is not None:
            self._unseen = 0
        elif due:
            self._note_unseen()
        complete, intervals = self._meet(recording) if due else (True, None)
        reading = self._guarded(lambda: self._take(recording)) if recording is not None and complete else None
        self._guarded(self._passes.clear)
        self._end_step(reading, intervals)
        self._stop_if_failing()
        self._prepare()
        self._fuses.tell()

    def _end_step(self, reading: Reading | None, intervals: tuple[int, int] | None) -> None:
        judged, known = reading is not None and self.sampler.judges(self.step), len(self.findings)
        if judged:
            self._fuses.run("the rules", self._judge, reading)
        self.sampler.stepped(self.step, reading is not None, judged, intervals)
        if len(self.findings) > known:
            self.sampler.found(self.step)
        self.step += 1

    def _meet(self, recording: Recording | None) -> tuple[bool, tuple[int, int] | None]:
        """Add up with the other processes that train the model, where there are some. Returns whether there is a reading of
        all, and the intervals that all keep to; None for one process alone."""
        group = self._passes.group
        if not self._guarded(lambda: self._passes.team.is_complete(group)):
            return True, None
        mine = None if recording is None else self._guarded(recording.contribution)
        turn, device = (self.step, self.sampler.intervals), next(self.model.parameters()).device
        together = self._guarded(lambda: self._passes.team.meet(group, mine, turn, device))
        if recording is None or together is None:
            return False, None
        recording.share(together)
        return True, together.intervals

    def _prepare(self) -> None:
        """Compiled code calls no hooks: where it hid a step, or is known, the next measured one runs without it."""
        run_eagerly(self, self._compiled and not self._closed and self.sampler.due(self.step))

    def _note_unseen(self) -> None:
        self._unseen, self._compiled = self._unseen + 1, True
        if self._unseen == UNSEEN:
            warnings.warn(
                f"gainstage has seen no forward pass of the {type(self.model).__name__} in {UNSEEN} steps: it is measured "
                "where the module itself is called, model(x), in training mode",
                RuntimeWarning,
                stacklevel=4,
            )

    def _guarded(self, action: Callable[[], Any]) -> Any:
        """An error of ours never stops a training: it costs the reading of this step."""
        was, self._in_hook = self._in_hook, True
        try:
            return action()
        except Exception as error:
            self._passes.clear()
            self._failures.append(error)
            return None
        finally:
            self._in_hook = was

    def _stop_if_failing(self) -> None:
        """After three errors in a row the monitor switches itself off with one warning. Only here, where a step is over: other
        processes may count on this one until then."""
        if len(self._failures) >= FAILURES and not self._closed:
            error = self._failures[-1]
            self._in_hook = True
            self.close()
            self._in_hook = False
            warnings.warn(f"gainstage stopped watching: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=4)

    def _take(self, recording: Recording) -> Reading:
        reading = remember(self.history, self.step, recording.result())
        if self.log is not None or self.store is not None:
            self._write(reading.measured.ledger(theory=False))
        self._failures.clear()
        return reading

    def _write(self, ledger: Ledger) -> None:
        if self.log is not None:
            self._fuses.run("log", self.log, _scalars(self.step, ledger))
        if self.store is not None:
            self._fuses.run("the run folder", self.store.add_readings, self.step, ledger.records())

    def _judge(self, reading: Reading) -> None:
        """Let the rules look at a step; static ones at the first alone, when nothing has been learned yet."""
        seen = {finding.code for finding in flatten(self.findings)}
        rules = [rule for rule in choose() if rule.depth != "static" or self.step == 0]
        context = Context(self.model, reading.measured.graph, reading.ledger)
        for finding in run_rules(rules, context, "run").findings:
            if finding.code not in seen:
                self._announce(finding)

    def _announce(self, finding: Finding) -> None:
        self.findings.append(finding)
        if self.store is not None:
            self._fuses.run("the run folder", self.store.add_finding, self.step, finding)
        if self.on_finding is not None:
            self._fuses.run("on_finding", self.on_finding, finding)


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
