"""Reentrant checkpoints: what ran without gradients in the forward pass runs again, with them, in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from gainstage.monitor.compilation import run_eagerly
from gainstage.monitor.fuses import Fuses
from gainstage.monitor.guarded import GuardedTracer
from gainstage.signal import Operation
from gainstage.signal.observer import Observer


def in_backward() -> bool:
    """True while a backward pass runs: a forward pass within it is one that checkpointing runs again."""
    return torch._C._current_graph_task_id() != -1


class _Again(Observer):
    """Hooks on the stages' outputs in a part that runs again. operations: what they are called in the whole; known only when
    the part has run to its end."""

    def __init__(self, told: Callable[[int, Tensor], None]):
        self.operations: Sequence[int] = ()
        self._told = told

    def stage_output(self, operation: int, stage: int, tensor: Tensor) -> None:
        if operation >= 0 and tensor.requires_grad:
            tensor.register_hook(lambda gradient: self._arrived(operation, gradient))  # gone with what ran again

    def _arrived(self, operation: int, gradient: Tensor) -> None:
        if self.operations:
            self._told(self.operations[operation], gradient)


class Recomputation:
    """Sees the gradients of operations that ran `blind`, without gradients, by tracing each module of theirs as it runs
    again; told: is called with an operation and its gradient. begun: the backward pass of these operations is under way;
    before, it is another forward pass's that run again."""

    def __init__(self, model: nn.Module, blind: Sequence[Operation], told: Callable[[int, Tensor], None], fuses: Fuses):
        self._blind, self._told, self._fuses = list(blind), told, fuses
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._running: tuple[nn.Module, GuardedTracer, _Again, ExitStack] | None = None
        self.begun = False
        self._handles: list[Any] = []
        for path, module in model.named_modules():
            if path and self._within(path):
                self._handles.append(module.register_forward_pre_hook(self._before))
                self._handles.append(module.register_forward_hook(self._after, always_call=True))

    def _within(self, path: str) -> list[Operation]:
        return [op for op in self._blind if op.module == path or op.module.startswith(f"{path}.")]

    def _before(self, module: nn.Module, inputs: Any) -> None:
        if self.begun and self._running is None and in_backward() and torch.is_grad_enabled():
            with self._fuses.guard("the tracing of checkpoints"):
                again, stack = _Again(self._told), ExitStack()
                tracer = GuardedTracer(module, again)
                run_eagerly(self, True)
                stack.enter_context(tracer.of(module, inputs))
                self._running = module, tracer, again, stack

    def _after(self, module: nn.Module, _inputs: Any, _output: Any) -> None:
        if self._running is None or self._running[0] is not module:
            return
        (_, tracer, again, stack), self._running = self._running, None
        with self._fuses.guard("the tracing of checkpoints"):
            stack.close()
            run_eagerly(self, False)
            if tracer.error is not None:
                raise tracer.error
            self._match(tracer.operations, again, self._paths[id(module)])

    def _match(self, operations: Sequence[Operation], again: _Again, path: str) -> None:
        """The last to run is the first to run again; what ran otherwise than before is not observed."""
        before = self._within(path)[-len(operations) :] if operations else []
        if [op.name for op in before] == [op.name for op in operations]:
            again.operations = [op.index for op in before]
            known = {op.index for op in before}
            self._blind = [op for op in self._blind if op.index not in known]

    def abandon(self) -> None:
        """Take every hook off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
