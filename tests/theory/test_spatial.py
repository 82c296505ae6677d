"""Positions, exactly: whole covariance matrices through real strides, windows and kernels, and taps counted one by one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gainstage.theory.field import FAR
from gainstage.theory.spatial import (
    WINDOW_LIMIT,
    Axis,
    columns_for,
    coverage,
    distances,
    everywhere,
    interpolated,
    spread,
    strided,
    windowed,
)
from tests.theory.fields import PIXELS, SWAPPABLE, covariance, gap, images

PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=60)
COLUMNS = PIXELS.gaps.shape[1]
WIDE = images(3.0, [0, 0.4, 0.7, 0.9, 1.0, 1.0], [1.5, 1.6, 1.7, 1.8, 1.9, 1.9])


@pytest.mark.parametrize(
    ("size", "expected"), [(1, [0]), (2, [0, 1]), (3, [0, 1]), (4, [0, 1, 2]), (8, [0, 1, 2, 4]), (9, [0, 1, 2, 4])]
)
def test_columns_reach_to_half_of_the_positions(size, expected):
    assert distances(columns_for(size)) == [*expected, math.inf]


@PROPERTY
@given(st.one_of(st.just(math.inf), st.floats(0, 100)), st.integers(2, 8))
def test_interpolation_weighs_at_most_two_neighbouring_columns(distance, columns):
    weights = interpolated(distance, columns)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    assert np.ptp(weights.nonzero()[0]) <= 1


@PROPERTY
@given(st.floats(1, 60), st.integers(2, 8))
def test_interpolation_is_straight_over_the_logarithm_of_the_distance(distance, columns):
    known = images(9.0, np.arange(columns) ** 1.5, np.arange(columns) ** 1.5)
    assert known.gaps[0] @ interpolated(distance, columns) == pytest.approx(gap(known, 0, distance))


@pytest.mark.parametrize("columns", [2, 3, 5])
def test_known_distances_are_not_interpolated(columns):
    for column, distance in enumerate(distances(columns)):
        assert interpolated(distance, columns).tolist() == np.eye(columns)[column].tolist()


def average_matrix(window, stride, sides):
    """Rows of average pooling as a matrix on flat positions; the places behind are along the last axis alone."""
    eye = torch.eye(math.prod(sides), dtype=torch.float64).reshape(-1, 1, *sides)
    pool = F.avg_pool1d if len(sides) == 1 else F.avg_pool2d
    pooled = pool(eye, window, stride)
    return pooled.reshape(len(eye), -1, pooled.shape[-1])[:, 0].T


@pytest.mark.parametrize(
    ("window", "stride", "sides"),
    [((2,), 2, (16,)), ((3,), 1, (16,)), ((3,), 2, (19,)), ((2, 2), 2, (2, 10)), ((2, 3), 2, (2, 11))],
    ids=str,
)
def test_windows_are_averaged_pair_by_pair(window, stride, sides):
    real = covariance(WIDE, sides=sides)
    averaging = average_matrix(window, stride, sides)
    pooled = averaging @ real @ averaging.T
    columns = WIDE.gaps.shape[1]
    rows = windowed(window, stride, columns)
    assert rows.sum(1) == pytest.approx(1)

    def right(weights):
        found = WIDE.level - weights @ WIDE.gaps[0]
        near = [d for d in distances(columns) if d < min(len(pooled), 5)]
        return all(found[i] == pytest.approx(float(pooled[0, int(d)])) for i, d in enumerate(near))

    assert right(rows)
    assert not right(windowed(window, stride + 1, columns)), "another stride"
    assert not right(windowed((*window[:-1], window[-1] + 1), stride, columns)), "another window"
    assert not right(np.eye(columns)), "no window"


def test_far_windows_and_large_ones_see_any_two_positions():
    rows = windowed((3,), 2, COLUMNS)
    assert rows[FAR].tolist() == [0, 0, 0, 0, 1]
    large = windowed((WINDOW_LIMIT + 1,), 5, COLUMNS)
    assert (large[1:, FAR] == 1).all()
    assert large[0] == pytest.approx(everywhere(WINDOW_LIMIT + 1, COLUMNS))


@pytest.mark.parametrize("positions", [1, 2, 7])
def test_the_mean_over_all_positions_counts_each_with_itself(positions):
    real = covariance(SWAPPABLE, sides=(positions,))
    mean_gap = everywhere(positions, COLUMNS) @ SWAPPABLE.gaps[0]
    assert SWAPPABLE.level - mean_gap == pytest.approx(float(real.mean()))
    assert positions == 1 or SWAPPABLE.level - SWAPPABLE.gaps[0, FAR] != pytest.approx(float(real.mean()))


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_strides_take_every_so_manieth_position(stride):
    for row in (0, 1):
        every = [gap(WIDE, row, stride * distance) for distance in distances(6)]
        assert strided(WIDE.gaps, stride)[row] == pytest.approx(every)
    assert stride == 1 or strided(WIDE.gaps, stride) != pytest.approx(WIDE.gaps)


def transposed(kernel, stride, sides):
    """Covariance behind a transposed convolution with independent taps of variance 1 over the number of terms of an output:
    one tap at a time is a linear map of the positions."""
    eye = torch.eye(math.prod(sides), dtype=torch.float64).reshape(-1, 1, *sides)
    taps = torch.eye(kernel ** len(sides), dtype=torch.float64).reshape(1, -1, *(kernel for _ in sides))
    convolve = F.conv_transpose1d if len(sides) == 1 else F.conv_transpose2d
    reached = convolve(eye, taps, stride=stride)
    lost = kernel - stride  # where the kernel overlaps, the border sees fewer taps
    for axis in range(2, reached.ndim):
        reached = reached.narrow(axis, lost, (reached.shape[axis] - 2 * lost) // stride * stride)
    by_tap = reached.flatten(2).movedim(0, 2)  # (taps, positions behind, positions)
    terms = (kernel / stride) ** len(sides)
    return (by_tap @ covariance(WIDE, sides=sides) @ by_tap.mT).sum(0) / terms, reached.shape[2:]


def along(known, shape, distance):
    """Mean product of values `distance` apart along the axes."""
    places = torch.arange(math.prod(shape)).reshape(shape)
    pairs = [
        (places.narrow(axis, 0, size - distance).flatten(), places.narrow(axis, distance, size - distance).flatten())
        for axis, size in enumerate(shape)
    ]
    return float(torch.stack([known[a, b].mean() for a, b in pairs]).mean())


@pytest.mark.parametrize(
    ("kernel", "stride", "sides"),
    [(2, 2, (12,)), (4, 2, (12,)), (3, 2, (13,)), (3, 3, (8,)), (4, 4, (6,)), (2, 2, (4, 4))],
    ids=str,
)
def test_transposed_convolutions_share_taps_at_multiples_of_their_stride(kernel, stride, sides):
    known, shape = transposed(kernel, stride, sides)
    assert float(known.diagonal().mean()) == pytest.approx(WIDE.level)

    def right(gaps):
        near = [(i, int(d)) for i, d in enumerate(distances(6)) if d < 5]
        return all(WIDE.level - gaps[0, i] == pytest.approx(along(known, shape, d), abs=1e-9) for i, d in near)

    assert right(spread(WIDE.level, WIDE.gaps, stride, len(sides)))
    assert not right(WIDE.gaps), "not transposed"
    assert not right(spread(WIDE.level, WIDE.gaps, stride + 1, len(sides))), "another stride"


@pytest.mark.parametrize(("stride", "dimensions"), [(2, 1), (2, 2), (3, 2)])
def test_any_two_positions_behind_a_transposed_convolution_seldom_share_taps(stride, dimensions):
    found = spread(3.0, PIXELS.gaps, stride, dimensions)
    sharing = [a % stride == b % stride for a in range(30) for b in range(30)]
    share = (sum(sharing) / len(sharing)) ** dimensions
    assert 3.0 - found[:, FAR] == pytest.approx(share * (3.0 - PIXELS.gaps[:, FAR]))


def seen(axes):
    """(taps, *positions behind): 1 where a tap falls on the input, by a convolution of ones with one-hot kernels."""
    sizes, taps = [axis.size for axis in axes], [axis.taps for axis in axes]
    kernel = torch.eye(math.prod(taps)).reshape(-1, 1, *taps)
    convolve = F.conv1d if len(axes) == 1 else F.conv2d
    options = {name: tuple(getattr(axis, name) for axis in axes) for name in ("stride", "padding", "dilation")}
    return convolve(torch.ones(1, 1, *sizes), kernel, **options)[0]


def counted(axes, columns):
    """Share of taps that are inside at both of two positions, by counting."""
    inside = seen(axes).double()
    assert tuple(inside.shape[1:]) == tuple(axis.positions for axis in axes)
    shares = []
    for distance in [int(d) for d in distances(columns)[:-1]]:
        products = [
            inside.narrow(i, 0, inside.shape[i] - distance) * inside.narrow(i, distance, inside.shape[i] - distance)
            for i in range(1, inside.ndim)
        ]
        shares.append(sum(float(p.mean()) for p in products) / len(products))
    return [*shares, float(inside.flatten(1).mean(1).square().mean())]


AXES = [
    (Axis(12, 12, 3, 1, 1, 1),),
    (Axis(12, 6, 3, 2, 1, 1),),
    (Axis(12, 12, 5, 1, 2, 1),),
    (Axis(12, 12, 3, 1, 2, 2),),
    (Axis(12, 6, 4, 2, 1, 1),),
    (Axis(9, 9, 3, 1, 1, 1), Axis(7, 7, 5, 1, 2, 1)),
    (Axis(12, 6, 3, 2, 1, 1), Axis(12, 10, 3, 1, 0, 1)),
    (Axis(12, 10, 3, 1, 0, 1),),
]


@pytest.mark.parametrize("axes", AXES, ids=str)
def test_coverage_counts_the_taps_that_fall_on_the_input(axes):
    assert coverage(axes, 4) == pytest.approx(counted(axes, 4))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda axis: axis._replace(padding=0),
        lambda axis: axis._replace(stride=axis.stride + 1),
        lambda axis: axis._replace(dilation=axis.dilation + 1),
        lambda axis: axis._replace(size=axis.size + 1),
    ],
    ids=["no padding", "stride", "dilation", "size"],
)
def test_the_count_rejects_another_kernel(wrong):
    assert not all(coverage(tuple(map(wrong, axes)), 4) == pytest.approx(counted(axes, 4)) for axes in AXES)


def test_two_positions_share_fewer_taps_than_one_has():
    alone, near, *_, far = coverage(AXES[0], 4)
    assert far < near < alone < 1
    assert coverage(AXES[-1], 4) == (1, 1, 1, 1)


def test_positions_further_apart_than_the_image_is_wide_are_any_two():
    axes = (Axis(3, 3, 3, 1, 1, 1),)
    assert coverage(axes, 6)[3:] == pytest.approx([coverage(axes, 6)[FAR]] * 3)
