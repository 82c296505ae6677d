"""Is a sample standardised? Mean, variance and kurtosis with their standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

SIGMAS = 5.0


@dataclass(frozen=True)
class SampleMoments:
    """Moments of the columns of a table that should have mean 0 and variance 1, one entry a column.

    variance: unbiased, 0 exactly for a constant column. kurtosis: fourth moment over squared variance, 3 for a normal
    distribution and for constants. samples: how many of a column's numbers are independent.
    """

    mean: Tensor
    variance: Tensor
    kurtosis: Tensor
    samples: Tensor

    @classmethod
    def of(cls, columns: Tensor, samples: int) -> SampleMoments:
        """Of a tensor of shape (at least 2 numbers, columns)."""
        columns = columns.detach().cpu().double()
        mean, constant = columns.mean(0), (columns == columns[0]).all(0)
        power = (columns - mean).square()
        variance = power.sum(0) / (len(columns) - 1)
        kurtosis = power.square().mean(0) / power.mean(0).square()
        return cls(
            mean,
            variance.masked_fill(constant, 0.0),
            kurtosis.masked_fill(constant, 3.0),
            torch.full_like(mean, samples),
        )

    @classmethod
    def joined(cls, parts: Sequence[SampleMoments]) -> SampleMoments:
        """The columns of all parts, one behind the other."""
        return cls(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)))

    def pooled(self) -> SampleMoments:
        """All columns as one, with the mean of their kurtosis: that of columns of equal variance."""
        share = self.samples / self.samples.sum()
        mean = (share * self.mean).sum()
        variance = (share * (self.variance + (self.mean - mean).square())).sum()
        return SampleMoments(
            *(x.reshape(1) for x in (mean, variance, (share * self.kurtosis).sum(), self.samples.sum()))
        )

    @property
    def mean_sigmas(self) -> Tensor:
        """Deviation of the mean from 0 in standard errors, those of a variance of 1."""
        return self.mean * self.samples.sqrt()

    @property
    def variance_sigmas(self) -> Tensor:
        """Deviation of the variance from 1 in standard errors.

        The cube root of a sample variance is nearly normal even for ten numbers (Wilson & Hilferty 1931). The squared
        standard error of the variance is (kurtosis - 1) / (n - 1). A small sample easily shows too small a kurtosis: it
        counts as 3 at least, and as that of the columns' median.
        """
        kurtosis = self.kurtosis.clamp_min(max(3.0, float(self.kurtosis.median())))
        error = (kurtosis - 1) / (9 * (self.samples - 1))
        return (self.variance ** (1 / 3) - 1 + error) / error.sqrt()

    @property
    def kurtosis_sigmas(self) -> Tensor:
        """Deviation of the kurtosis from 3 in standard errors sqrt(24 / n), on the scale of its reciprocal: there its
        distribution has no long tail."""
        return (1 - 3 / self.kurtosis) * 3 / (24 / self.samples).sqrt()

    def shifted(self, most: Tensor | float) -> Tensor:
        """Columns whose mean is not 0: beyond the sampling error, and beyond `most`. NaN is not 0 either, here and below."""
        return ~((self.mean.abs() <= most) | (self.mean_sigmas.abs() <= SIGMAS))

    def rescaled(self, low: float, high: float) -> Tensor:
        """Columns whose variance is not 1: beyond the sampling error, and outside of `low` to `high`."""
        return ~(_within(self.variance, low, high) | (self.variance_sigmas.abs() <= SIGMAS))

    def unlike_normal(self, low: float, high: float) -> Tensor:
        """Columns whose kurtosis is not 3: beyond the sampling error, and outside of `low` to `high`."""
        return ~(_within(self.kurtosis, low, high) | (self.kurtosis_sigmas.abs() <= SIGMAS))


def _within(values: Tensor, low: float, high: float) -> Tensor:
    return (values >= low) & (values <= high)
