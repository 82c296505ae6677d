"""The gradient noise scale: from which batch size on larger batches hardly help."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gainstage.data import Batch
from gainstage.program import Loss, run_loss, run_model, tensors_in
from gainstage.signal.untouched import untouched

PARTS = 8


def gradient_noise_scale(model: nn.Module, loss: Loss, batch: Batch) -> float | None:
    """B = tr(S) / |G|^2 in samples, with G the gradient and S the covariance of one sample's: a batch much smaller is mostly
    noise, one much larger wastes samples. Leaves no trace; costs about one step.

    Both are estimated without bias from the gradients of eight equal parts of the batch, drawn at random, whatever the loss's
    reduction. None
    where the batch is too small to be parted, where it is no nesting of tensors, where the gradient is not finite, and where
    the noise hides the gradient altogether: the scale is then too large to be told from these samples. Batch normalisation in
    training mode adds the noise of its small batches.

    Source: McCandlish et al. 2018, "An empirical model of large-batch training", B_simple.
    """
    samples = len(tensors_in(batch)[0])
    size = samples // PARTS
    if size < 2:
        return None
    drawn = torch.randperm(samples, generator=torch.Generator().manual_seed(0)).split(size)[:PARTS]
    parts = [_part(batch, samples, chosen) for chosen in drawn]
    if any(len(tensor) != size for part in parts for tensor in tensors_in(part) if tensor.ndim):
        return None
    modules = [model, *([loss] if isinstance(loss, nn.Module) else [])]
    with untouched(*modules), torch.enable_grad():
        return noise_scale((_gradient(model, loss, part) for part in parts), size)


def noise_scale(gradients: Any, size: int) -> float | None:
    """The same from the gradients (each a list of tensors) of several batches of `size` samples; one at a time is kept."""
    total: list[Tensor] = []
    squares = count = 0.0
    for gradient in gradients:
        squares += sum(float(g.detach().float().square().sum()) for g in gradient)
        total = (
            [a + g.float() for a, g in zip(total, gradient, strict=True)] if total else [g.float() for g in gradient]
        )
        count += 1
    mean = sum(float(t.square().sum()) for t in total) / count**2
    noise = size * (squares - count * mean) / (count - 1)
    signal = mean - noise / (size * count)
    return max(noise, 0.0) / signal if signal > 0 else None


def _gradient(model: nn.Module, loss: Loss, batch: Batch) -> list[Tensor]:
    """The gradient of every parameter; of one without it, zeros."""
    x, y = batch
    parameters = [p for p in model.parameters() if p.requires_grad]
    value = run_loss(loss, run_model(model, x), y)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def _part(value: Any, samples: int, chosen: Tensor) -> Any:
    """Some samples of a nesting of tensors."""
    if isinstance(value, Tensor):
        return value[chosen.to(value.device)] if value.ndim and len(value) == samples else value
    if type(value) in (tuple, list):
        return type(value)(_part(item, samples, chosen) for item in value)
    if isinstance(value, dict):
        return {key: _part(item, samples, chosen) for key, item in value.items()}
    return value
