"""What the operations of a network do to fields on the way forward, and to the gradient's power on the way back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from gainstage.theory import pooling, propagation
from gainstage.theory.composition import Composite, Step
from gainstage.theory.field import Field, unknown


class Edge(NamedTuple):
    """The way back: power of the gradient at `node` = factor times the power where it comes from; variance of its
    logarithm from the finite width, an upper bound."""

    node: int
    factor: float
    variance: float = 0.0


class Operator(ABC):
    """What one operation of a network does to fields. forward gets the fields of its inputs; backward gives one factor on
    the gradient's power for each of them, per element, NaN where theory has no answer."""

    @abstractmethod
    def forward(self, fields: Sequence[Field]) -> Field: ...

    @abstractmethod
    def backward(self, fields: Sequence[Field]) -> Sequence[float]: ...

    def through(self, fields: Sequence[Field]) -> tuple[Field, list[Edge]]:
        """The field behind, and the ways back."""
        given = [propagation.evaluated(f) for f in fields]
        factors = self.backward(given)
        return self.forward(given), [way_back(f, factor) for f, factor in zip(fields, factors, strict=True)]


def way_back(field: Field, factor: float = 1.0, variance: float = 0.0) -> Edge:
    """To the node that made a field; through a function that was not worked out, to the Gaussian field in front of it."""
    if field.known or field.pre is None:
        return Edge(field.node, factor, variance)
    if not field.pre.known or math.isnan(field.pre.mean):
        return Edge(field.pre.node, math.nan)
    at = propagation.slopes(field.pre, field.function)
    # what arrives is Gaussian over the units, its fourth moment 3; the slope picks some of it
    picked = max(3 * (at.fourth / at.slope**2 - 1), 0.0) / field.pre.units if at.slope > 0 else 0.0  # rounding
    return Edge(field.pre.node, factor * at.slope, variance + picked)


@dataclass(frozen=True)
class Layer(Operator):
    """A linear layer or a convolution; powers are mean squares. coverage: see through_layer; fan_out counts it in."""

    fan_in: float
    fan_out: float
    weight_power: float
    bias_power: float = 0.0
    bias_mean: float = 0.0
    units: float = math.inf
    stride: int = 1
    upsampling: tuple[int, int] | None = None
    coverage: tuple[float, ...] = ()

    def forward(self, fields: Sequence[Field]) -> Field:
        return propagation.through_layer(
            fields[0],
            self.fan_in,
            self.weight_power,
            self.bias_power,
            self.bias_mean,
            self.units,
            self.stride,
            self.upsampling,
            self.coverage,
        )

    def backward(self, fields: Sequence[Field]) -> Sequence[float]:
        return [self.fan_out * self.weight_power]

    def through(self, fields: Sequence[Field]) -> tuple[Field, list[Edge]]:
        # one column of Gaussian weights an input unit: a chi^2 of one degree of freedom each
        edge = way_back(fields[0], self.fan_out * self.weight_power, 2 / fields[0].units)
        return self.forward([propagation.evaluated(fields[0])]), [edge]


@dataclass(frozen=True)
class Pointwise(Operator):
    """A function of one or several tensors, element by element. combine: what it is where those come from different layers.
    ratios: elements behind over elements of each input (above 1 where that is broadcast)."""

    call: Step
    combine: str = ""  # "sum", "product" or nothing
    ratios: tuple[float, ...] = ()

    def through(self, fields: Sequence[Field]) -> tuple[Field, list[Edge]]:
        try:
            inner = self.composed(fields)
            return super().through(fields) if inner is None else (propagation.evaluated(inner), [way_back(inner)])
        except (RuntimeError, TypeError, ValueError):  # it refuses some numbers: torch.where takes masks alone
            return Unknown().through(fields)

    def composed(self, fields: Sequence[Field]) -> Field | None:
        """What is behind where all fields are functions of one Gaussian field, not yet worked out."""
        return propagation.composed(self.call, fields)

    def forward(self, fields: Sequence[Field]) -> Field:
        if len(fields) == 1:
            return propagation.through_function(fields[0], Composite((self.call,), 1))
        if self.combine == "sum":
            return propagation.through_sum(fields, self._factors(len(fields)))
        return propagation.through_product(fields) if self.combine else unknown(fields, fields[0].gaps.shape[1])

    def backward(self, fields: Sequence[Field]) -> Sequence[float]:
        ratios = self.ratios or (1.0,) * len(fields)
        if len(fields) == 1:
            affine = Composite((self.call,), 1).affine
            return [affine[0] ** 2 if affine else math.nan]
        if self.combine == "sum":
            return [r * factor**2 for r, factor in zip(ratios, self._factors(len(fields)), strict=True)]
        total = math.prod(f.level for f in fields)
        return [
            total / f.level * r if self.combine and f.level else math.nan for f, r in zip(fields, ratios, strict=True)
        ]

    def _factors(self, count: int) -> list[float]:
        """What a sum multiplies each of its parts by: 1, -1, or what the call was given as alpha."""
        nothing = self.call(list(torch.zeros(count, dtype=torch.float64, device="cpu")))
        return [float(self.call(list(one)) - nothing) for one in torch.eye(count, dtype=torch.float64, device="cpu")]


@dataclass(frozen=True)
class Scale(Operator):
    """Every unit times a number of its own, of mean square `power`."""

    power: float

    def forward(self, fields: Sequence[Field]) -> Field:
        return propagation.through_scale(fields[0], self.power)

    def backward(self, fields: Sequence[Field]) -> Sequence[float]:
        return [self.power]


@dataclass(frozen=True)
class Shift(Operator):
    """A constant of every unit, or of every unit and position, added."""

    power: float
    mean: float = 0.0
    by_position: bool = False

    def forward(self, fields: Sequence[Field]) -> Field:
        return propagation.through_shift(fields[0], self.power, self.mean, self.by_position)

    def backward(self, fields: Sequence[Field]) -> Sequence[float]:
        return [1.0]


@dataclass(frozen=True)
class BatchNorm(Operator):
    """Batch normalisation in training; scale, shift: mean squares. samples: of the batch, by whose biased variance it
    divides; without positions the unbiased one, the signal, is then known."""

    scale: float = 1.0
    shift: float = 0.0
    mean: float = 0.0
    eps: float = 1e-5
    samples: float = math.inf

    def forward(self, fields: Sequence[Field]) -> Field:
        after = propagation.through_batch_norm(fields[0], self.scale, self.shift, self.mean, self.eps)
        if fields[0].gaps[0].any() or not 1 < self.samples < math.inf:
            return after
        return replace(after, gaps=after.gaps * self.samples / (self.samples - 1))

    def backward(self, fields: Sequence[Field]) -> Sequence[float]:
        return [self.scale * propagation.batch_norm_factor(fields[0], self.eps)]


@dataclass(frozen=True)
class GroupNorm(Operator):
    """Layer, group, instance or RMS normalisation; see through_group_norm."""

    group: float = math.inf
    over_positions: bool = False
    scale: float = 1.0
    shift: float = 0.0
    mean: float = 0.0
    eps: float = 1e-5
    centred: bool = True

    def forward(self, fields: Sequence[Field]) -> Field:
        settings = (self.group, self.over_positions, self.scale, self.shift, self.mean, self.eps, self.centred)
        return propagation.through_group_norm(fields[0], *settings)

    def backward(self, fields: Sequence[Field]) -> Sequence[float]:
        settings = (self.group, self.over_positions, self.eps, self.centred)
        return [self.scale * propagation.group_norm_factor(fields[0], *settings)]


@dataclass(frozen=True)
class Dropout(Operator):
    """Dropout in training."""

    rate: float
    alpha: bool = False
    whole_channels: bool = False

    def forward(self, fields: Sequence[Field]) -> Field:
        if self.alpha:
            return propagation.through_alpha_dropout(fields[0], self.rate, self.whole_channels)
        return propagation.through_dropout(fields[0], self.rate, self.whole_channels)

    def backward(self, fields: Sequence[Field]) -> Sequence[float]:
        if self.rate >= 1:
            return [0.0]
        kept = 1 - self.rate
        return [1 / (1 + self.rate * propagation.ALPHA_PRIME**2) if self.alpha else 1 / kept]


@dataclass(frozen=True)
class Pool(Operator):
    """Average or max pooling of a window, or the average of all positions. shrink: elements behind over elements before."""

    window: tuple[int, ...]
    stride: int
    shrink: float
    maximum: bool = False
    everywhere: bool = False

    def forward(self, fields: Sequence[Field]) -> Field:
        if self.maximum:
            return pooling.through_maximum(fields[0], self.window, self.stride)
        positions = math.prod(self.window) if self.everywhere else 0
        return propagation.through_average(fields[0], self.window, self.stride, positions)

    def backward(self, fields: Sequence[Field]) -> Sequence[float]:
        return [self.shrink if self.maximum else self.shrink / math.prod(self.window)]

    def through(self, fields: Sequence[Field]) -> tuple[Field, list[Edge]]:
        source = fields[0].source
        if not self.maximum or source is None or not source[0].known:
            return super().through(fields)
        # the largest of some values is not where the function's slope is what it is elsewhere
        pre, function = source
        slope = pooling.slope_at_maximum(pre, function, self.window, self.stride)
        edge = Edge(pre.node, self.shrink * slope, 2 / pre.units)
        return self.forward([propagation.evaluated(fields[0])]), [edge]


@dataclass(frozen=True)
class Padding(Operator):
    """Zeros around what was there, of which they leave `share`."""

    share: float

    def forward(self, fields: Sequence[Field]) -> Field:
        return propagation.through_padding(fields[0], self.share)

    def backward(self, fields: Sequence[Field]) -> Sequence[float]:
        return [1.0]


@dataclass(frozen=True)
class Concatenation(Operator):
    """Units side by side."""

    units: tuple[float, ...]

    def forward(self, fields: Sequence[Field]) -> Field:
        return propagation.through_concatenation(fields, self.units)

    def backward(self, fields: Sequence[Field]) -> Sequence[float]:
        return [1.0] * len(fields)


@dataclass(frozen=True)
class Attention(Operator):
    """softmax(scale query . key) value near uniform weights; the way back is not predicted."""

    tokens: int
    width: int
    scale: float | None = None
    causal: bool = False

    def forward(self, fields: Sequence[Field]) -> Field:
        query, key, value = fields
        return pooling.through_attention(query, key, value, self.tokens, self.width, self.scale, self.causal)

    def backward(self, fields: Sequence[Field]) -> Sequence[float]:
        return [math.nan] * 3


@dataclass(frozen=True)
class View(Operator):
    """The same numbers, or some of them, in another shape; ratio: elements behind over elements before."""

    ratio: float = 1.0

    def forward(self, fields: Sequence[Field]) -> Field:
        return fields[0]

    def backward(self, fields: Sequence[Field]) -> Sequence[float]:
        return [self.ratio]


@dataclass(frozen=True)
class Unknown(Operator):
    """An operation that theory does not know: no prediction past it."""

    def forward(self, fields: Sequence[Field]) -> Field:
        return unknown(fields, fields[0].gaps.shape[1])

    def backward(self, fields: Sequence[Field]) -> Sequence[float]:
        return [math.nan] * len(fields)
