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
    signals, offset = unit_signals(x)
    return signals.mean(), offset


def unit_signals(x: Tensor) -> tuple[Tensor, Tensor]:
    """Signal power of every unit, of shape x.shape[1:], and the mean offset power."""
    x = x.detach().float()
    centre = x.mean(0)
    signals = (x - centre).square().sum(0) / (len(x) - 1)
    return signals, (centre.square().mean() - signals.mean() / len(x)).clamp_min(0)


def relative_variance(signals: Tensor, channel_dim: int, channels: int) -> Tensor:
    """Of the mean of the units' signal powers, if channels are independent draws: the variance of the channels' own mean
    powers, over their number and the squared mean. signals: they have no dimension of samples. channel_dim: where they had
    their channels in the layer's output; reshaped, the dimension with as many numbers as channels is taken, or a part. NaN
    for a single channel, and where nothing differs between samples."""
    powers = _by_channel(signals, channel_dim, channels).flatten(1).mean(1)
    if len(powers) < 2:
        return powers.new_tensor(torch.nan)
    return powers.var() / len(powers) / powers.mean().square()


def _by_channel(signals: Tensor, channel_dim: int, channels: int) -> Tensor:
    """The same with its channels in the first dimension and at least one behind it."""
    if signals.ndim == 1 and len(signals) % channels == 0:  # positions and channels in one
        return signals.reshape(channels, -1) if channel_dim == 0 else signals.reshape(-1, channels).T
    if signals.ndim > 1 and signals.shape[channel_dim] != channels and channels in signals.shape:
        channel_dim = list(signals.shape).index(channels)
    return signals.movedim(channel_dim, 0).unsqueeze(-1)


def far_gaps(x: Tensor) -> Tensor:
    """The last column of position_gaps alone."""
    x = x.detach().float()
    return x.square().mean() - _everywhere(x)


def position_gaps(x: Tensor, columns: int) -> Tensor:
    """Half mean squared differences between two values of a channel, shape (2, columns), of (samples, channels, *places).

    Row 0: in one sample, row 1: in two different ones; columns: at positions 0, 1, 2, 4, ... apart (the mean over the axes),
    and, last, at any two positions.
    """
    x = x.detach().float()
    level, axes = x.square().mean(), range(2, x.ndim)
    gaps = x.new_zeros(2, columns)
    for column in range(columns - 1):
        step = 2 ** (column - 1) if column else 0
        long = [axis for axis in axes if x.shape[axis] > step]
        products = [_products(x, axis, step) for axis in long] or [_products(x, 0, 0)]
        gaps[:, column] = level - torch.stack(products).mean(0)
    gaps[:, -1] = level - _everywhere(x)
    return gaps


def _products(x: Tensor, axis: int, step: int) -> Tensor:
    """Mean products of values `step` apart along an axis: in one sample, and in two different ones."""
    one, other = (
        (x, x) if step == 0 else (x.narrow(axis, 0, x.shape[axis] - step), x.narrow(axis, step, x.shape[axis] - step))
    )
    within = (one * other).mean()
    across = (one.mean(0) * other.mean(0)).mean()
    return torch.stack([within, (len(x) * across - within) / (len(x) - 1)])


def _everywhere(x: Tensor) -> Tensor:
    """The same for any two different positions."""
    values = x.flatten(2)
    places = values.shape[2]
    if places == 1:
        return _products(x, 0, 0)
    sums = values.sum(2)
    within = (sums.square().mean() - values.square().sum(2).mean()) / (places * (places - 1))
    across = sums.mean(0).square().mean() / places**2
    # all pairs of two samples' positions, equal positions included
    return torch.stack([within, (len(x) * across - sums.square().mean() / places**2) / (len(x) - 1)])


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
