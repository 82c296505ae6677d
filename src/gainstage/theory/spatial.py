"""Positions: how covariances between the pixels of an image, or the tokens of a text, pass strides and windows.

A field knows its gaps at distances 0, 1, 2, 4, ... and for any two positions; between two of these they are interpolated
along the logarithm of the distance.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

WINDOW_LIMIT = 16  # positions a side: a larger window is taken as "any two positions"


def distances(columns: int) -> list[float]:
    """Distance that each column of gaps stands for; infinity for any two positions."""
    return [0.0, *(2.0**i for i in range(columns - 2)), math.inf]


def columns_for(size: int) -> int:
    """Columns of gaps for `size` positions a side: up to half of them, and any two."""
    return 2 + max(int(math.log2(size)), 0) if size > 1 else 2


def interpolated(distance: float, columns: int) -> NDArray[np.float64]:
    """Weights (columns,) that turn gaps into the gap at a distance."""
    weights = np.zeros(columns)
    if distance == 0:
        weights[0] = 1
    elif columns == 2 or distance > 2.0 ** (columns - 3):
        weights[-1] = 1
    else:
        place = 1 + math.log2(max(distance, 1.0))
        low = int(place)
        weights[low] = 1 - (place - low)
        if place > low:
            weights[low + 1] = place - low
    return weights


@lru_cache(maxsize=256)
def windowed(window: tuple[int, ...], stride: int, columns: int) -> NDArray[np.float64]:
    """Weights (columns, columns): row d gives the mean gap between a position of one window and a position of another,
    for windows whose places are distance d apart. Row 0: of a window with itself."""
    rows = []
    for distance in distances(columns):
        if math.isinf(distance) or max(window) > WINDOW_LIMIT:
            row = np.zeros(columns)
            row[-1] = 1
            rows.append(row)
        else:
            rows.append(_between(window, distance * stride, columns))
    if max(window) > WINDOW_LIMIT:
        rows[0] = everywhere(math.prod(window), columns)
    return np.stack(rows)


def everywhere(positions: int, columns: int) -> NDArray[np.float64]:
    """Weights (columns,) of the mean gap between two positions drawn from `positions`, which may be the same."""
    weights = np.zeros(columns)
    weights[-1] = 1 - 1 / positions
    weights[0] += 1 / positions
    return weights


def _between(window: tuple[int, ...], apart: float, columns: int) -> NDArray[np.float64]:
    places = list(product(*(range(size) for size in window)))
    total = np.zeros(columns)
    for a in places:
        for b in places:
            steps: list[float] = [x - y for x, y in zip(a, b, strict=True)]
            steps[-1] += apart
            total += interpolated(math.hypot(*steps), columns)
    return total / len(places) ** 2


def strided(gaps: NDArray[np.float64], stride: float) -> NDArray[np.float64]:
    """Gaps (2, columns) between every stride-th position."""
    columns = gaps.shape[1]
    if stride == 1:
        return gaps
    return np.stack([gaps @ interpolated(distance * stride, columns) for distance in distances(columns)], axis=1)


def spread(level: float, gaps: NDArray[Any], stride: int, dimensions: int) -> NDArray[Any]:
    """Gaps behind a transposed convolution: positions that no tap of the kernel shares are uncorrelated. Those whose
    distance is a multiple of the stride share one."""
    columns = gaps.shape[1]
    shared = 1 / stride**dimensions  # of any two positions
    behind: NDArray[Any] = np.full(gaps.shape, level, dtype=np.float64)
    for column, distance in enumerate(distances(columns)):
        if math.isinf(distance):
            behind[:, column] = level - shared * (level - gaps[:, -1])
        elif distance % stride == 0:
            behind[:, column] = gaps @ interpolated(distance / stride, columns)
    return behind


class Axis(NamedTuple):
    """One axis of a convolution: positions in front and behind, and how its kernel steps over them."""

    size: int
    positions: int
    taps: int
    stride: int
    padding: int
    dilation: int


@lru_cache(maxsize=1024)
def coverage(axes: tuple[Axis, ...], columns: int) -> tuple[float, ...]:
    """By column of gaps: share of a convolution's taps that fall on the input, and not on the padding around it, at both of
    two output positions that far apart along one of the axes (the mean over the axes)."""
    inside = [_inside(axis) for axis in axes]
    alone = [float(mask.mean()) for mask in inside]
    shares = []
    for distance in distances(columns)[:-1]:
        along = [_both(mask, int(distance)) * math.prod(alone[:i] + alone[i + 1 :]) for i, mask in enumerate(inside)]
        shares.append(sum(along) / len(along))
    far = math.prod(float((mask.mean(0) ** 2).mean()) for mask in inside)
    return (*shares, far)


def _inside(axis: Axis) -> NDArray[np.float64]:
    """(positions behind, taps): 1 where the tap falls on the input."""
    first = np.arange(axis.positions)[:, None] * axis.stride - axis.padding
    place = first + np.arange(axis.taps)[None, :] * axis.dilation
    return ((place >= 0) & (place < axis.size)).astype(np.float64)


def _both(mask: NDArray[np.float64], distance: int) -> float:
    if distance >= len(mask):
        return float((mask.mean(0) ** 2).mean())
    return float((mask[distance:] * mask[: len(mask) - distance]).mean())
