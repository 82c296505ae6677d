"""How many inputs feed a unit and how many outputs an input feeds, for every kind of weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from gainstage.errors import BadInput
from gainstage.theory.checks import flag, shown, whole


class Fans(NamedTuple):
    """fan_in: terms summed in one output unit; fan_out: output units that one input unit reaches."""

    fan_in: float
    fan_out: float

    @property
    def average(self) -> float:
        """(fan_in + fan_out) / 2, Glorot's compromise between forward and backward."""
        return (self.fan_in + self.fan_out) / 2


def linear_fans(shape: Sequence[int]) -> Fans:
    """Fans of a linear weight of shape (out, in). Raises BadInput for a shape that is no pair of whole numbers."""
    sizes = _sizes(shape, "the shape of a linear weight", "(out, in)")
    if len(sizes) != 2:
        raise BadInput(f"a linear weight has the shape (out, in), got {sizes}")
    return Fans(sizes[1], sizes[0])


def convolution_fans(
    shape: Sequence[int], stride: Sequence[int] | int = (), groups: int = 1, transposed: bool = False
) -> Fans:
    """Fans of a convolution weight (out, in / groups, *kernel), or (in, out / groups, *kernel) when transposed.

    With a stride, one input position is seen by only prod(kernel) / prod(stride) output positions; a transposed
    convolution swaps the roles. A single stride counts for every dimension of the kernel. Dilation spreads the taps but does
    not change their number. Padding is ignored. Raises BadInput for sizes, strides and groups that are no whole numbers or
    do not fit each other.
    """
    first, second, *kernel = _weight_sizes(shape)
    groups, transposed = whole(groups, "the groups of a convolution"), flag(transposed, "transposed")
    if first % groups:
        raise BadInput(
            f"the channels of a convolution divide into its groups, got {first} channels and {groups} groups"
        )
    taps, steps = math.prod(kernel), math.prod(_strides(stride, len(kernel)))
    if transposed:
        return Fans(first / groups * taps / steps, second * taps)
    return Fans(second * taps, first / groups * taps / steps)


def _weight_sizes(shape: Sequence[int]) -> tuple[int, ...]:
    sizes = _sizes(shape, "the shape of a convolution's weight", "(out, in / groups, *kernel)")
    if len(sizes) < 2:
        raise BadInput(f"a convolution's weight has the shape (out, in / groups, *kernel), got {sizes}")
    return sizes


def _strides(stride: Sequence[int] | int, dimensions: int) -> tuple[int, ...]:
    strides = (stride,) if isinstance(stride, int) else _sizes(stride, "the stride of a convolution", "(2, 2)")
    strides = tuple(whole(step, "the stride of a convolution") for step in strides)
    if len(strides) not in (0, 1, dimensions):
        raise BadInput(f"a convolution has one stride, or one for each of its {dimensions} dimensions, got {strides}")
    return strides * dimensions if len(strides) == 1 else strides


def _sizes(values: Sequence[int], what: str, example: str) -> tuple[int, ...]:
    """Whole numbers from 0, which a layer without inputs, or a lazy one, has."""
    try:
        return tuple(whole(value, f"each number of {what}", 0) for value in values)
    except TypeError as error:
        raise BadInput(f"{what} is a list of whole numbers, such as {example}, got {shown(values)}") from error
