"""The forward passes of one step of a user's training, and which of them the step is read from."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gainstage.monitor.compilation import run_eagerly
from gainstage.monitor.distributed import Team, replicating_group, sharding_group
from gainstage.monitor.fuses import Fuses
from gainstage.monitor.recomputation import in_backward
from gainstage.monitor.recording import Recording
from gainstage.monitor.scaling import Scaling, overflow_in, scaling_of
from gainstage.program import tensors_in
from gainstage.signal.replay import Script

MOST = 16  # passes that wait for their backward pass; older ones are given up


class _Mark:
    """A hook on what a pass puts out; it lives as long as the graph behind."""

    def __init__(self, reached: Callable[[], None]):
        self._reached = reached

    def __call__(self, _gradient: Tensor) -> None:
        self._reached()


class Pass:
    """One recorded forward pass. reached: a backward pass has come to it."""

    def __init__(self, recording: Recording):
        self.recording = recording
        self.reached = False
        self._marks: list[weakref.ref[_Mark]] = []
        self._handles: list[Any] = []

    def mark(self, output: Any, then: Callable[[Pass], None]) -> None:
        """Look out for the backward pass; `then` is called as it begins."""

        def reached() -> None:
            first, self.reached = not self.reached, True
            if first:
                self.recording.backward_begun()
                then(self)

        for tensor in tensors_in(output):
            if tensor.requires_grad:
                mark = _Mark(reached)
                self._handles.append(tensor.register_hook(mark))
                self._marks.append(weakref.ref(mark))

    @property
    def in_vain(self) -> bool:
        """No backward pass has reached it and none can: all that came of it is gone."""
        return not self.reached and bool(self._marks) and all(mark() is None for mark in self._marks)

    def abandon(self) -> None:
        """Take every hook off."""
        for handle in self._handles:
            handle.remove()
        self.recording.abandon()


class Passes:
    """The forward passes since the last step.

    The step is read from the last one that a backward pass reached: of micro-batches the last, of a validation in between
    none, of a discriminator the pass of its own step and not that of its generator's. Where the optimiser's step calls the
    loss itself (closures), it is read from the first one there, at the weights from which the step is taken.
    """

    def __init__(self, model: nn.Module, fuses: Fuses):
        self._model, self._fuses = model, fuses
        self._running: Recording | None = None
        self._script: Script | None = None  # of the latest pass
        self._within = 0  # calls of the model inside its own forward pass
        self._passes: list[Pass] = []
        self._overflow: Tensor | None = None  # whether the last backward pass did
        self._overflows: list[Tensor] = []  # of those that no step was taken from
        self._stepping: Optimizer | None = None
        self._settled = self._unscaled = False
        self.skipped = 0
        self.group: Any = sharding_group(
            model
        )  # of the processes that train it together; known at the latest in its forward
        self.team = Team()

    def begin(self, inputs: Any, anew: bool) -> None:
        """The model's forward pass is about to run on `inputs`; anew: it is traced, though it may go as the latest one did."""
        if self._running is not None:
            self._within += 1
        elif not self._settled and not (self._passes and in_backward()):  # the first may be all that there is
            self.group = self.group or replicating_group(self._model)
            if self.group is not None:
                self.team.join(self._model)
            script = None if anew else self._script
            self._running = Recording(self._model, inputs, self._fuses, script, self.group is not None)
            run_eagerly(self, True)  # nor is the tracer to be compiled with what the forward pass calls

    def end(self, output: Any) -> None:
        """The forward pass has ended; `output` is None where it raised."""
        if self._within:
            self._within -= 1
            return
        recording, self._running = self._running, None
        if recording is None:
            return
        run_eagerly(self, False)
        if output is None:
            recording.abandon()
        else:
            self._keep(recording, output)

    def _keep(self, recording: Recording, output: Any) -> None:
        try:
            seen = recording.forward_done(output)
        except Exception:
            self._script = None
            recording.abandon()
            raise
        self._script = recording.script
        if not seen:
            recording.abandon()
            return
        self._drop([each for each in self._passes if each.in_vain])
        self._drop(self._passes[: len(self._passes) + 1 - MOST])
        self._passes.append(Pass(recording))
        self._passes[-1].mark(output, self._reached)

    def _reached(self, latest: Pass) -> None:
        """No pass in front of it is needed any more."""
        with self._fuses.guard("the choice of a pass"):
            self._note_overflow()
            self._drop(self._passes[: self._passes.index(latest)])
            self._settled = self._stepping is not None
            if self._stepping is None and not latest.recording.probes.in_half:
                return
            complete = partial(self._complete, latest.recording, self._stepping)
            torch.autograd.Variable._execution_engine.queue_callback(complete)  # pyright: ignore

    def _complete(self, recording: Recording, stepping: Optimizer | None) -> None:
        """The backward pass is through. What a closure may clear before its step is over, and the user before a step that
        is skipped, is read now."""
        with self._fuses.guard("the reading of gradients"):
            if stepping is not None:
                recording.before_step(stepping, Scaling())
            if recording.probes.in_half:
                self._overflow = overflow_in(self._model.parameters())

    def _note_overflow(self) -> None:
        """What overflowed in the last backward pass and is gone now: a step was skipped."""
        if self._overflow is not None:
            self._overflows.append(self._overflow - overflow_in(self._model.parameters()))
            self._overflow = None

    def _drop(self, passes: list[Pass]) -> None:
        for each in passes:
            each.abandon()
            self._passes.remove(each)

    def before_step(self, optimizer: Optimizer) -> None:
        """An optimiser is about to take the step."""
        self._stepping = optimizer
        recording = self.chosen
        if recording is None:
            return
        scaling = scaling_of(optimizer)
        if not self._unscaled:
            recording.unscale(scaling.scale)
            self._count_skipped(scaling)
            self._unscaled = True
        if scaling.skipped:
            self.clear()
        else:
            recording.before_step(optimizer, scaling)

    def _count_skipped(self, scaling: Scaling) -> None:
        if scaling.scale != 1:
            self.skipped += sum(map(int, self._overflows)) + scaling.skipped
        self._overflows.clear()
        self._overflow = None

    def stepped(self) -> None:
        """An optimiser has taken its step."""
        self._stepping = None
        if (recording := self.chosen) is not None:
            recording.stepped()

    @property
    def chosen(self) -> Recording | None:
        """The recording that the step is read from; None where no forward pass was seen."""
        reached = [each for each in self._passes if each.reached]
        possible = reached or [each for each in self._passes if not each.in_vain]
        return possible[-1].recording if possible else None

    def clear(self) -> None:
        """The step is over: every hook comes off."""
        self._drop(list(self._passes))
        self._overflow = None
        self._overflows.clear()
        if self._running is not None:
            self._running.abandon()
            run_eagerly(self, False)
        self._running, self._within = None, 0
        self._stepping = None
        self._settled = self._unscaled = False
