"""How many inputs feed a unit and how many outputs an input feeds, for every kind of weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Fans(NamedTuple):
    """fan_in: terms summed in one output unit; fan_out: output units that one input unit reaches."""

    fan_in: float
    fan_out: float

    @property
    def average(self) -> float:
        """(fan_in + fan_out) / 2, Glorot's compromise between forward and backward."""
        return (self.fan_in + self.fan_out) / 2


def linear_fans(shape: Sequence[int]) -> Fans:
    """Fans of a linear weight of shape (out, in)."""
    return Fans(shape[1], shape[0])


def convolution_fans(
    shape: Sequence[int], stride: Sequence[int] = (), groups: int = 1, transposed: bool = False
) -> Fans:
    """Fans of a convolution weight (out, in / groups, *kernel), or (in, out / groups, *kernel) when transposed.

    With a stride, one input position is seen by only prod(kernel) / prod(stride) output positions; a transposed
    convolution swaps the roles. Dilation spreads the taps but does not change their number. Padding is ignored.
    """
    taps, steps = math.prod(shape[2:]), math.prod(stride)
    if transposed:
        return Fans(shape[0] / groups * taps / steps, shape[1] * taps)
    return Fans(shape[1] * taps, shape[0] / groups * taps / steps)
