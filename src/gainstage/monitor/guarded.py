"""A tracer that cannot harm what it watches."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gainstage.signal.observer import Observer
from gainstage.signal.trace import Tracer


class GuardedTracer(Tracer):
    """A tracer whose own errors never reach the forward pass it watches: the first one is kept."""

    error: Exception | None = None
    blind: list[int]  # operations that ran without gradients
    _outcome: tuple[Any, Exception | None] | None = None

    def __init__(self, model: nn.Module, observer: Observer | None = None):
        super().__init__(model, observer)
        self.blind = []

    def _run(self, func, args, kwargs) -> Any:
        try:
            result = super()._run(func, args, kwargs)
        except Exception as error:
            self._outcome = None, error
            raise
        self._outcome = result, None
        return result

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self._outcome, before = None, len(self.operations)
        try:
            return super().__torch_function__(func, types, args, kwargs)
        except Exception as error:
            result, raised = self._outcome or (None, None)
            if raised is error:
                raise
            self.error = self.error or error
            return result if self._outcome is not None else func(*args, **(kwargs or {}))
        finally:
            self._outcome = None
            if not torch.is_grad_enabled():
                self.blind.extend(range(before, len(self.operations)))
