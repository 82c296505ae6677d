"""The scale of a GradScaler, found without a word from the user and without touching it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import FrameType

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer


@dataclass(frozen=True)
class Scaling:
    """How a step's gradients are scaled: by `scale` in the backward pass, by `left` still where the optimiser takes them
    (a fused one takes the scale out itself). skipped: the optimiser will not take the step, for they overflowed."""

    scale: float = 1.0
    left: float = 1.0
    skipped: bool = False


def scaling_of(optimizer: Optimizer) -> Scaling:
    """The scaling of the step that `optimizer` is about to take; to be called from within that step."""
    scaler = _scaler_above(sys._getframe(1))
    if scaler is None:
        return Scaling()
    left, overflow = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
    return Scaling(scaler.get_scale(), 1.0 if left is None else float(left), bool(overflow))


def overflow_in(parameters: Iterable[Tensor]) -> Tensor:
    """1 where a gradient that has come together is not finite, else 0; on the device of the gradients."""
    finite = [p.grad.isfinite().all() for p in parameters if p.grad is not None]
    return 1 - torch.stack([each.to(finite[0].device) for each in finite]).all().int() if finite else torch.tensor(0)


def _scaler_above(frame: FrameType | None) -> GradScaler | None:
    """The scaler whose `step(optimizer)` leads here: it is on the stack while the optimiser's step runs. Nothing else tells
    which of several scalers made the loss, or whether one did."""
    while frame is not None:
        if frame.f_code.co_name == "step" and isinstance(owner := frame.f_locals.get("self"), GradScaler):
            return owner
        frame = frame.f_back
    return None
