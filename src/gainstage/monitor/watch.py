"""watch(): the same measuring, live, inside any training loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gainstage.errors import BadInput
from gainstage.monitor.sampling import Sampler
from gainstage.monitor.store import RunStore
from gainstage.rules import Context, Finding, choose, run_rules
from gainstage.signal import Graph, Ledger
from gainstage.signal.measure import Probes, make_ledger
from gainstage.signal.statistics import mean_square
from gainstage.signal.trace import Tracer


@dataclass(frozen=True)
class Reading:
    """The ledger of one sampled step."""

    step: int
    ledger: Ledger


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
    if not isinstance(model, nn.Module) or not isinstance(optimizer, Optimizer):
        raise BadInput("watch(model, optimizer) needs a torch.nn.Module and a torch.optim.Optimizer on its parameters")
    if every is not None and every < 1:
        raise BadInput(f"every must be at least 1 step, got {every}")
    if not 0 < budget < 1:
        raise BadInput(f"budget is the share of time that measuring may take, between 0 and 1, got {budget}")
    previous = _watching(model)
    if previous is not None:
        previous.close()
    return Monitor(
        model,
        optimizer,
        Sampler(every, budget),
        log,
        on_finding,
        None if folder is None else RunStore(folder),
    )


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
        self._recording: _Recording | None = None
        self._handles = [
            model.register_forward_pre_hook(self._before_forward),
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
        """Take every hook off; what was measured stays. May be called twice."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._recording is not None:
            self._recording.abandon()
            self._recording = None
        if self.store is not None:
            self.store.close()
            self.store = None

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_exception: Any) -> None:
        self.close()

    def __deepcopy__(self, _memo: Any) -> Monitor:
        return self  # a copied model is not watched: the hooks look which model calls them

    def __reduce__(self):
        return _Detached, ()

    # ---------------------------------------------------------------- hooks
    def _before_forward(self, module: nn.Module, inputs: Any) -> None:
        wanted = module is self.model and module.training and torch.is_grad_enabled()
        if wanted and self._recording is None and self.sampler.due(self.step):
            self._recording = self._guarded(lambda: _Recording(self.model, inputs))

    def _after_forward(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        recording = self._recording
        if module is not self.model or recording is None or recording.graph is not None:
            return
        if output is None:  # the user's forward raised
            recording.abandon()
            self._recording = None
        else:
            self._guarded(lambda: recording.finish(output))

    def _before_step(self, _optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        recording = self._recording
        if recording is not None:
            self._guarded(recording.before_step)

    def _after_step(self, _optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        recording, self._recording = self._recording, None
        if recording is not None:
            self._guarded(lambda: self._take(recording))
        self.sampler.stepped(self.step, recording is not None)
        self.step += 1

    def _guarded(self, action: Callable[[], Any]) -> Any:
        """An error of ours never stops a training: the monitor switches itself off with one warning."""
        try:
            return action()
        except Exception as error:
            self.close()
            warnings.warn(f"gainstage stopped watching: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=3)
            return None

    def _take(self, recording: _Recording) -> None:
        graph, ledger = recording.after_step()
        self.history.append(Reading(self.step, ledger))
        if self.log is not None:
            self.log(_scalars(self.step, ledger))
        if self.store is not None:
            self.store.add_readings(self.step, ledger.records())
        seen = {finding.code for finding in self.findings}
        rules = [rule for rule in choose() if rule.depth != "static" or self.step == 0]
        for finding in run_rules(rules, Context(self.model, graph, ledger), "run"):
            if finding.code not in seen:
                self._announce(finding)

    def _announce(self, finding: Finding) -> None:
        self.findings.append(finding)
        if self.store is not None:
            self.store.add_finding(self.step, finding)
        if self.on_finding is not None:
            self.on_finding(finding)


class _Recording:
    """One step under observation: forward, backward, update."""

    def __init__(self, model: nn.Module, inputs: Any):
        self.graph: Graph | None = None
        self.probes = Probes()
        self.tracer = Tracer(model, self.probes)
        self._stack = ExitStack()
        self._before: dict[int, Tensor] = {}
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        self.samples = len(tensors[0]) if tensors else 0
        for tensor in tensors:
            self.probes.stage_output(-1, tensor.detach())
        self._stack.enter_context(self.tracer.of(model, inputs))

    def finish(self, output: Any) -> None:
        self._stack.close()
        self.graph = self.tracer.finish(output)

    def before_step(self) -> None:
        weights = {stage: w for stage, w in self.probes.weights.items() if isinstance(w, nn.Parameter)}
        self.probes.weight_gradients({id(w): w.grad for w in weights.values() if w.grad is not None})
        self._before = {stage: w.detach().clone() for stage, w in weights.items()}

    def after_step(self) -> tuple[Graph, Ledger]:
        for stage, before in self._before.items():
            self.probes.values["update", stage] = mean_square(self.probes.weights[stage] - before)
        self.probes.detach()
        if self.graph is None:
            raise RuntimeError("the forward pass of this step was not seen")
        return self.graph, make_ledger(self.graph, self.probes.read(), self.probes.units, self.samples, None)

    def abandon(self) -> None:
        self._stack.close()
        self.probes.detach()


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
