"""The quantities a probe computes, in float32, from a tensor whose first dimension is the batch.

Each function takes a tensor of shape (samples, ...) and returns 0-dimensional tensors on its device; nothing is moved
and nothing is kept. Every position behind the first dimension counts as a unit.
"""

from __future__ import annotations

import torch
from torch import Tensor


def signal_and_offset(x: Tensor) -> tuple[Tensor, Tensor]:
    """(signal power, offset power), averaged over the units.

    signal: unbiased variance over the samples. offset: squared mean over the samples, less the share of the signal
    that a mean over n samples retains (variance / n), so that signal + offset is the plain mean square.
    """
    x = x.detach().flatten(1).float()
    centre = x.mean(0)
    signal = (x - centre).square().sum(0).mean() / (len(x) - 1)
    offset = (centre.square().mean() - signal / len(x)).clamp_min(0)
    return signal, offset


def similarity(x: Tensor) -> Tensor:
    """Mean cosine between different samples: (|sum of unit vectors|^2 - n) / (n (n - 1)); samples of all zeros are left
    out, and NaN says that fewer than two were left."""
    x = x.detach().flatten(1).float()
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    alive = (norms > 0).sum()
    total = (x / norms.clamp_min(torch.finfo(torch.float32).tiny)).sum(0).square().sum()
    return torch.where(alive > 1, (total - alive) / (alive * (alive - 1)), torch.nan)


def mean_square(x: Tensor) -> Tensor:
    """Mean of x^2 over everything."""
    return x.detach().float().square().mean()


def dead_share(x: Tensor, channel_dim: int) -> Tensor:
    """Share of units that are exactly zero on every sample (and, with channels, at every position)."""
    others = [d for d in range(x.ndim) if d != channel_dim % x.ndim]
    return (x.detach().abs().amax(dim=others) == 0).float().mean()


def saturated_share(before: Tensor, responsive: tuple[float, float]) -> Tensor:
    """Share of pre-activations outside the interval in which the activation still responds (derivative at least 5 % of
    its maximum)."""
    low, high = responsive
    before = before.detach()
    return ((before < low) | (before > high)).float().mean()
