"""The quantities a probe computes, in float32, from tensors whose first dimension is the batch.

Tensors of one shape from several places of a network are read together, as a Stack: a small network would otherwise spend
more time on calls than on numbers. Every position behind the dimension of samples counts as a unit. Nothing is moved from
its device and nothing is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import torch
from torch import Tensor

RANKED = 64  # samples that an effective rank is worked out from, at most
ENTRIES = 2**17  # numbers that an effective rank is worked out from, about
FEWEST = 64  # channels among which outliers are told
CHANCE = 1e-6  # that independent Gaussian channels have an outlier


@dataclass(frozen=True)
class Stack:
    """Tensors of one shape from several places, (places, samples, *units); samples at least 2.

    channels: how many the layer has that opens the stage; None where there is no layer. channel_dim: where they stand
    among the units in that layer's output, 0 or -1.
    """

    values: Tensor
    channels: int | None = None
    channel_dim: int = -1

    @property
    def samples(self) -> int:
        """Number of samples."""
        return self.values.shape[1]

    @cached_property
    def floats(self) -> Tensor:
        """The values in float32."""
        return self.values.detach().float()

    @cached_property
    def centre(self) -> Tensor:
        """Mean over the samples, (places, *units)."""
        return self.floats.mean(1)

    @cached_property
    def signals(self) -> Tensor:
        """Signal power of every unit, the unbiased variance over the samples: (places, *units)."""
        return (self.floats - self.centre.unsqueeze(1)).square_().sum(1) / (self.samples - 1)

    @cached_property
    def signal(self) -> Tensor:
        """Signal power, the mean over the units: (places,)."""
        return self.signals.flatten(1).mean(1)

    @cached_property
    def offset(self) -> Tensor:
        """Offset power, (places,): squared mean over the samples, less the share of the signal that a mean over n samples
        retains (variance / n), so that signal + offset is the plain mean square."""
        return (self.centre.square().flatten(1).mean(1) - self.signal / self.samples).clamp_min(0)

    @property
    def level(self) -> Tensor:
        """Mean square, (places,)."""
        return self.centre.square().flatten(1).mean(1) + self.signal * ((self.samples - 1) / self.samples)

    @cached_property
    def underflow(self) -> Tensor:
        """Share of what is not zero that is below the least normal number of its type, where numbers lose digits and then
        turn into zeros: (places,); NaN where all is zero."""
        sizes = self.floats.flatten(1).abs()
        faint = sizes < torch.finfo(self.values.dtype).smallest_normal
        nonzero = sizes > 0
        return (faint & nonzero).sum(1) / (nonzero | sizes.isnan()).sum(1)

    @cached_property
    def overflow(self) -> Tensor:
        """Share of numbers at the largest number of their type, beyond it or none at all: (places,)."""
        return 1 - (self.floats.flatten(1).abs() < torch.finfo(self.values.dtype).max).float().mean(1)

    @cached_property
    def similarity(self) -> Tensor:
        """Mean cosine between different samples, (places,): (|sum of unit vectors|^2 - n) / (n (n - 1)); samples of all
        zeros are left out, and NaN says that fewer than two were left."""
        x = self.floats.flatten(2)
        norms = torch.linalg.vector_norm(x, dim=2)
        alive = (norms > 0).sum(1)
        total = (norms.clamp_min(torch.finfo(torch.float32).tiny).reciprocal().unsqueeze(1) @ x).square().sum((1, 2))
        return torch.where(alive > 1, (total - alive) / (alive * (alive - 1)), torch.nan)

    @cached_property
    def spread(self) -> Tensor:
        """Of the mean of the units' signal powers, if channels are independent draws: the variance of the channels' own mean
        powers, over their number and the squared mean; (places,). Reshaped, the dimension with as many numbers as channels
        is taken for them, or a part. NaN for a single channel, and where nothing differs between samples."""
        powers = self.powers
        count = powers.shape[1]
        if count < 2:
            return self.signal.new_full((len(powers),), torch.nan)
        mean = powers.mean(1)
        return (powers - mean.unsqueeze(1)).square().sum(1) / (count - 1) / count / mean.square()

    @cached_property
    def powers(self) -> Tensor:
        """Signal power of every channel, the mean over its positions: (places, channels)."""
        return self._by_channel(self.signals).mean(2)

    @cached_property
    def levels(self) -> Tensor:
        """Mean square of every channel over samples and positions, (places, channels)."""
        means = self._by_channel(self.centre.square()).mean(2)
        return means.add_(self.powers, alpha=(self.samples - 1) / self.samples)

    @cached_property
    def still(self) -> Tensor:
        """Share of channels that are the same on every sample, at each of their positions: (places,). The same means here:
        to the rounding of float32, in which a mean over equal numbers need not be that number."""
        rounding = 4 * torch.finfo(torch.float32).eps
        return (self.powers <= rounding**2 * self.levels).float().mean(1)

    @cached_property
    def zero(self) -> Tensor:
        """Share of channels that are zero on every sample, at each of their positions: (places,)."""
        return (self.levels == 0).float().mean(1)

    @cached_property
    def kurtosis(self) -> Tensor:
        """Kurtosis of the channels' RMS about zero, (places,): mean of the levels' squares over the square of their mean. 1
        where all channels are equally strong, 3 for Gaussian channels that every sample finds alike, and the number of
        channels where one has everything. NaN where all is zero.

        Source: He, Noci, Paliotta, Schlag, Hofmann 2024, "Understanding and minimising outlier features".
        """
        return (self.levels / self.levels.mean(1, keepdim=True)).square().mean(1)

    @cached_property
    def outliers(self) -> Tensor:
        """Share of channels that are too strong to be of one kind with the others: (places,); NaN for fewer than 64 channels
        and where nine tenths are zero.

        Channels of one layer are at most as far apart as Gaussian numbers (where every sample finds them alike; otherwise
        less), rectified or not. Of these, the largest tenth begins at 1.28 sigma or more, and none of C is beyond the
        quantile of 1 - 10^-6 / 2C but once in a million times; for functions that bend, such as GELU, and with the error of
        the tenth, once in two hundred. For 768 channels that is 4.7 times where the largest tenth begins. A tenth of the
        channels can be outliers before the measure moves. Dettmers 2022 (LLM.int8) takes an absolute 6 instead, in networks
        whose other channels are below 1.
        """
        if self.levels.shape[1] < FEWEST:
            return self.levels.new_full((len(self.levels),), torch.nan)
        sizes = self.levels.sqrt()
        usual = sizes.kthvalue(math.ceil(0.9 * sizes.shape[1]), dim=1, keepdim=True).values
        farthest = NormalDist().inv_cdf(1 - CHANCE / 2 / sizes.shape[1]) / NormalDist().inv_cdf(0.9)
        share = (sizes > farthest * usual).float().mean(1)
        return torch.where(usual[:, 0] > 0, share, torch.nan)

    @cached_property
    def effective_rank(self) -> Tensor:
        """In how many directions samples differ, (places,): participation ratio tr(C)^2 / tr(C^2) of their covariance C; at
        most the number of samples less one. NaN where nothing differs.

        Of at most 64 samples, evenly spread, and so many evenly spread units that about 2^17 numbers come together.
        Source: Gao et al. 2017, "A theory of multineuronal dimensionality".
        """
        x = self.floats[:, :: math.ceil(self.samples / RANKED)].flatten(2)
        x = x[:, :, :: coprime_step(math.ceil(x[0].numel() / ENTRIES), x.shape[2])]
        x = x - x.mean(1, keepdim=True)
        products = x @ x.mT
        total = products.diagonal(dim1=1, dim2=2).sum(1)
        return (products / total[:, None, None]).square().sum((1, 2)).reciprocal()

    def _by_channel(self, numbers: Tensor) -> Tensor:
        """Numbers of the units, (places, *units), as (places, channels, positions)."""
        channels = self.channels or 1
        if numbers.ndim == 2 and numbers.shape[1] % channels == 0:  # positions and channels in one
            apart = (channels, -1) if self.channel_dim == 0 else (-1, channels)
            numbers = numbers.unflatten(1, apart)
            return numbers if self.channel_dim == 0 else numbers.transpose(1, 2)
        where = self.channel_dim % max(numbers.ndim - 1, 1)
        if numbers.ndim > 2 and numbers.shape[1 + where] != channels and channels in numbers.shape[1:]:
            where = list(numbers.shape[1:]).index(channels)
        return numbers.movedim(1 + where, 1).unsqueeze(-1).flatten(2)

    @property
    def has_positions(self) -> bool:
        """True where the channels have a dimension of their own beside one of positions."""
        return self.channels is not None and self.values.ndim > 3 and self._channels_last.shape[-1] == self.channels

    @property
    def _channels_last(self) -> Tensor:
        return self.floats.movedim(2, -1) if self.channel_dim == 0 else self.floats

    @cached_property
    def far_gaps(self) -> Tensor:
        """Half mean squared differences between two values of a channel at any two positions, (2, places): in one sample, and
        in two different ones."""
        x = self._channels_last.flatten(2, -2)
        samples, positions = x.shape[1:3]
        offset = self.centre.square().flatten(1).mean(1)
        level = offset + self.signal * (samples - 1) / samples
        return level - torch.stack(_products_everywhere(x.sum(2), level, offset, positions))


def _products_everywhere(sums: Tensor, level: Tensor, offset: Tensor, positions: int) -> tuple[Tensor, Tensor]:
    """Mean products of two values of a channel at any two positions, each (places,): in one sample (at different positions),
    and in two samples. sums: over positions, (places, samples, channels); level, offset: mean squares of the values and of
    their means over samples."""
    samples = sums.shape[1]
    if positions == 1:
        return level, (samples * offset - level) / (samples - 1)
    squared = sums.square().mean((1, 2))
    within = (squared - level * positions) / (positions * (positions - 1))
    across = (
        sums.mean(1).square().mean(1) / positions**2
    )  # all pairs of two samples' positions, equal positions included
    return within, (samples * across - squared / positions**2) / (samples - 1)


def coprime_step(step: int, size: int) -> int:
    """The least step from `step` on that has no factor in common with `size`, so that it does not meet the same columns in
    every row."""
    while math.gcd(step, size) > 1:
        step += 1
    return step


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
    gaps[:, -1] = Stack(x[None], x.shape[1], 0).far_gaps[:, 0]
    return gaps


def _products(x: Tensor, axis: int, step: int) -> Tensor:
    """Mean products of values `step` apart along an axis: in one sample, and in two different ones."""
    one, other = (
        (x, x) if step == 0 else (x.narrow(axis, 0, x.shape[axis] - step), x.narrow(axis, step, x.shape[axis] - step))
    )
    within = (one * other).mean()
    across = (one.mean(0) * other.mean(0)).mean()
    return torch.stack([within, (len(x) * across - within) / (len(x) - 1)])


def signal_and_offset(x: Tensor) -> tuple[Tensor, Tensor]:
    """(signal power, offset power) of one tensor (samples, *units), averaged over the units; without units it is one."""
    stack = Stack((x if x.ndim > 1 else x.unsqueeze(1))[None])
    return stack.signal[0], stack.offset[0]


def is_half(x: Tensor) -> bool:
    """True for numbers of 16 bits or fewer, whose range is an issue."""
    return torch.finfo(x.dtype).bits <= 16


def mean_square(x: Tensor) -> Tensor:
    """Mean of x^2 over everything; 0 of nothing."""
    return x.detach().float().square().sum() / max(x.numel(), 1)


def mean_squares(tensors: Sequence[Tensor]) -> Tensor:
    """Mean of x^2 of each tensor, (tensors,); they lie on one device."""
    if any(type(t) not in (Tensor, torch.nn.Parameter) or t.dtype != torch.float32 for t in tensors):
        return torch.stack([mean_square(t) for t in tensors])
    norms = torch._foreach_norm([t.detach() for t in tensors])  # pyright: ignore  (one call, as in clip_grad_norm_)
    return torch.stack(norms).square() / norms[0].new_tensor([max(t.numel(), 1) for t in tensors])


def dead_share(x: Tensor, channel_dim: int) -> Tensor:
    """Share of units that are exactly zero on every sample (and, with channels, at every position); x: (samples, *units),
    what a rectifier puts out."""
    others = [d for d in range(x.ndim) if d != channel_dim % x.ndim]
    return (x.detach().amax(dim=others) == 0).float().mean()


def saturated_share(before: Tensor, responsive: tuple[float, float]) -> Tensor:
    """Share of pre-activations outside the interval in which the activation still responds (derivative at least 5 % of
    its maximum)."""
    low, high = responsive
    before = before.detach()
    return ((before < low) | (before > high)).float().mean()
