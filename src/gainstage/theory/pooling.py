"""Max pooling, whose moments are drawn, and attention, whose moments are those of nearly uniform weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from gainstage.theory.composition import IDENTITY, Composite
from gainstage.theory.field import FAR, Field, independent, unknown
from gainstage.theory.quadrature import derivative
from gainstage.theory.spatial import distances, windowed

DRAWS = 8192  # of each window: moments of a maximum are known to about 1 %
LARGEST_WINDOW = 64
MOST_LOGIT_POWER = 1.0  # up to which softmax weights are near enough to uniform


def through_maximum(field: Field, window: tuple[int, ...], stride: int) -> Field:
    """Behind max pooling of a function of a Gaussian field: pairs of windows of that field are drawn, with the mean gap
    between positions of a window and between the two windows."""
    columns, size = field.gaps.shape[1], math.prod(window)
    maxima = _maxima(field, window, stride)
    if maxima is None or field.source is None:
        return unknown([field], columns)
    pre, weights = field.source[0], windowed(window, stride, columns)
    gaps = np.zeros((2, columns))
    for column, distance in enumerate(distances(columns)):
        if distance > 0:
            gaps[:, column] = [maxima.gap(between := float(weights[column] @ pre.gaps[s]), between)[0] for s in (0, 1)]
    same = pre.signal
    others = (float(weights[0] @ pre.gaps[1]) * size - same) / max(size - 1, 1)
    gaps[1, 0], excess = maxima.gap(same, others)
    level, mean = maxima.moments()
    settled = {"pre": None, "function": IDENTITY, "gaussian": False, "variance": pre.inherited + excess / pre.units}
    return replace(field, level=level, gaps=gaps, mean=mean, **settled)


def slope_at_maximum(pre: Field, function: Composite, window: tuple[int, ...], stride: int) -> float:
    """E f'(z)^2 at the largest of the values f(z) in a window of a Gaussian field; NaN where theory has no answer."""
    maxima = _maxima(replace(pre, pre=pre, function=function), window, stride)
    return math.nan if maxima is None else maxima.slope()


def _maxima(field: Field, window: tuple[int, ...], stride: int) -> _Maxima | None:
    size = math.prod(window)
    if field.source is None or size > LARGEST_WINDOW:
        return None
    pre, function = field.source
    if not pre.known or np.isnan(pre.gaps).any():
        return None
    inside = float(windowed(window, stride, pre.gaps.shape[1])[0] @ pre.gaps[0]) * size / max(size - 1, 1)
    return _Maxima(function, pre.mean, size, max(pre.level - pre.mean**2, 0.0), inside)


@dataclass(frozen=True)
class _Maxima:
    """The maximum of function(z) over `size` values z of variance `power` around `mean`, any two of them with half mean
    squared difference `inside`."""

    function: Composite
    mean: float
    size: int
    power: float
    inside: float

    def gap(self, same: float, others: float) -> tuple[float, float]:
        """Half mean squared difference between the maxima of two windows, and the excess of its square.

        same: gap between values at one place of the two windows, others: at different places.
        """
        square = (self._window(0, same, others) - self._window(1, same, others)) ** 2
        second = float(square.mean())
        return second / 2, float((square**2).mean()) / second**2 - 1 if second > 0 else 0.0

    def moments(self) -> tuple[float, float]:
        """E max^2 and E max."""
        maximum = self._window(0, self.inside, self.inside)
        return float((maximum**2).mean()), float(maximum.mean())

    def slope(self) -> float:
        """E f'^2 where the maximum is."""
        z = self._values(0, self.inside, self.inside)
        at = z.gather(1, self.function(z).argmax(1, keepdim=True))
        return float(derivative(self.function, at).square().mean())

    def _window(self, which: int, same: float, others: float) -> Tensor:
        return self.function(self._values(which, same, others)).amax(1)

    def _values(self, which: int, same: float, others: float) -> Tensor:
        common, own, inner, fresh = _draws(self.size)
        alike = 1.0 if self.inside <= 0 else min(max((others - same) / self.inside, -1.0), 1.0)
        if which:
            inner = alike * inner + math.sqrt(1 - alike**2) * fresh
        z = (
            self.mean
            + math.sqrt(max(self.power - others, 0.0)) * common[:, None]
            + math.sqrt(max(self.inside, 0.0)) * inner
        )
        return z + math.sqrt(max(others - self.inside, 0.0)) * own[which][:, None]


@lru_cache(maxsize=16)
def _draws(size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Standard normal numbers, always the same: what windows have in common, each of two windows, each value, and anew."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")

    return normal(DRAWS), normal(2, DRAWS), normal(DRAWS, size), normal(DRAWS, size)


def through_attention(
    query: Field, key: Field, value: Field, tokens: int, width: int, scale: float | None = None, causal: bool = False
) -> Field:
    """Behind softmax(scale query . key) value over `tokens` tokens, for logits of small variance.

    Logits of independent queries and keys differ between tokens with variance s^2 = width scale^2 |query|^2 gap(key); the
    squares of the weights of their softmax over n tokens add up to about e / (n - 1 + e) with e = exp(s^2). No prediction for
    s^2 > 1, where single tokens win. causal: token i averages over the first i alone.
    """
    columns = value.gaps.shape[1]
    factor = 1 / width if scale is None else scale**2
    spread = width * factor * query.level * float(key.gaps[0, FAR])
    if not independent([query, key, value]) or not spread <= MOST_LOGIT_POWER:
        return unknown([query, key, value], columns)
    sharp, seen = math.exp(spread), range(1, tokens + 1) if causal else (tokens,)
    squares = sum(sharp / (n - 1 + sharp) for n in seen) / len(seen)
    weight = sum(1 / n for n in seen) / len(seen)
    # of two different positions: E 1 / (the later one's number)
    between = 2 / max(tokens - 1, 1) * (1 - weight) if causal else weight
    far, near = value.level - value.gaps[:, FAR], value.level - value.gaps[:, 0]
    level = float(far[0] + squares * (near[0] - far[0]))
    covariances = np.repeat((far + between * (near - far))[:, None], columns, axis=1)
    covariances[1, 0] = far[1] + weight * (near[1] - far[1])
    gaps = np.maximum(level - covariances, 0.0)
    gaps[0, 0] = 0.0
    origins = query.origins | key.origins | value.origins
    settled = {"pre": None, "function": IDENTITY, "gaussian": value.straight, "origins": origins}
    return replace(value, level=level, gaps=gaps, **settled)
