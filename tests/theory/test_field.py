"""A field's own properties, and that the tensors which stand for fields in these tests have the moments they should."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gainstage.theory import Field, field, pointwise
from gainstage.theory.composition import IDENTITY
from gainstage.theory.field import FAR, independent, shared_source, unknown
from gainstage.theory.propagation import through_function
from tests.theory.fields import FLAT, PIXELS, SWAPPABLE, agree, drawn, exact, images

PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=60)
POWERS = st.floats(0, 1e6)
GAUSSIAN = replace(PIXELS, gaussian=True)
RELU, DOUBLED = pointwise(F.relu), pointwise(lambda z: 2 * z)
NOTHING = unknown([], 5)


@PROPERTY
@given(POWERS, POWERS)
def test_a_field_of_signal_and_offset_has_just_these(signal, offset):
    found = field(signal, offset, columns=4)
    assert (found.signal, found.offset) == pytest.approx((signal, offset), rel=1e-9, abs=1e-9 * (signal + offset))
    assert found.gaps.shape == (2, 4)
    assert not found.gaps[0].any(), "it has no positions"
    assert found.known
    if signal + offset > 0:
        assert found.similarity == pytest.approx(offset / (signal + offset), abs=1e-9)


def test_similarity_is_the_cosine_between_two_samples():
    x = exact(FLAT)
    assert float(torch.cosine_similarity(x[0], x[1], dim=0)) == pytest.approx(FLAT.similarity)
    assert math.isnan(field(0.0, 0.0).similarity)


@pytest.mark.parametrize(
    "settings",
    [
        {"level": 3.1},
        {"mean": 0.1},
        {"gaps": PIXELS.gaps * 1.05},
        {"gaps": PIXELS.gaps[::-1].copy()},
        {"gaps": np.where(PIXELS.gaps == 0.8, 0.7, PIXELS.gaps)},
    ],
    ids=["level", "mean", "all gaps", "samples and positions swapped", "one gap"],
)
def test_drawn_tensors_have_the_moments_of_their_field_and_reject_others(settings):
    assert agree(drawn(PIXELS, sides=(8,)), PIXELS, far=False)
    assert not agree(drawn(PIXELS, sides=(8,)), replace(PIXELS, **settings), far=False)


@pytest.mark.parametrize("given", [FLAT, field(2.0, 1.0, mean=-0.4), SWAPPABLE, replace(SWAPPABLE, mean=0.7)])
def test_drawn_tensors_have_means_and_far_gaps_too(given):
    assert agree(drawn(given, sides=(6,)), given)
    assert agree(drawn(given, sides=(3, 3)), given)
    assert not agree(drawn(given, sides=(6,)), replace(given, mean=given.mean + 0.1))


def test_no_prediction_agrees_with_no_tensor():
    assert not agree(drawn(FLAT), unknown([], 2))


def test_what_has_no_level_or_no_signal_is_not_known():
    assert not NOTHING.known
    assert math.isnan(NOTHING.offset)
    assert math.isnan(NOTHING.similarity)
    assert not replace(PIXELS, level=math.nan).known
    assert not field(math.nan, 1.0).known
    assert not field(math.inf, 1.0).known
    assert images(1.0, [0, math.nan], [0.5, math.nan]).known, "positions alone may be unknown"


def test_unknown_keeps_what_it_is_made_of():
    found = unknown([field(1.0, origins=frozenset({(1,)})), field(2.0, origins=frozenset({(2, 0)}))], 3)
    assert found.origins == {(1,), (2, 0)}
    assert found.gaps.shape == (2, 3)
    assert np.isnan([found.level, found.mean, *found.gaps.ravel()]).all()
    assert found.source is None


def test_flat_counts_positions_as_units():
    flat = replace(PIXELS, mean=0.7).flat
    values = drawn(replace(PIXELS, mean=0.7), sides=(8,))
    assert all(agree(values[..., i], flat) for i in range(8)), "every position has the level, signal and mean"
    assert not flat.gaps[0].any()
    assert (flat.gaps[1] == PIXELS.signal).all()
    assert flat.flat is flat
    assert FLAT.flat is FLAT


def test_flat_needs_to_know_nothing_of_the_positions():
    found = images(1.0, [0, math.nan], [0.5, math.nan]).flat
    assert found.gaps.tolist() == [[0, 0], [0.5, 0.5]]


def test_a_source_is_the_gaussian_field_behind_a_function():
    behind = through_function(GAUSSIAN, RELU)
    assert GAUSSIAN.source == (GAUSSIAN, IDENTITY)
    assert behind.source == (GAUSSIAN, RELU)
    assert PIXELS.source is None


def test_only_gaussian_fields_and_affine_functions_of_them_are_straight():
    assert GAUSSIAN.straight
    assert through_function(GAUSSIAN, DOUBLED).straight
    assert not through_function(GAUSSIAN, RELU).straight
    assert not PIXELS.straight


def test_fields_share_a_source_only_where_it_is_the_same_object():
    twin = replace(GAUSSIAN)
    behind = through_function(GAUSSIAN, RELU)
    assert shared_source([GAUSSIAN, behind, through_function(GAUSSIAN, DOUBLED)]) is GAUSSIAN
    assert shared_source([GAUSSIAN, twin]) is None, "equal numbers are not the same values"
    assert shared_source([behind, PIXELS]) is None
    assert shared_source([]) is None


def made_of(*origins):
    return field(1.0, origins=frozenset(origins))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([made_of((1,)), made_of((2,))], True),
        ([made_of((1,)), made_of((1,))], False),
        ([made_of((1,), (2,)), made_of((3,), (2,))], False),
        ([made_of((1,)), made_of((2,)), made_of((3,))], True),
        ([made_of((1,)), made_of((2,)), made_of((1,))], False),
        ([made_of((1, 0)), made_of((1, 1))], True),
        ([made_of((1, 0)), made_of((1,))], False),
        ([made_of((1,)), made_of((1, 0))], False),
        ([made_of((1, 0, 2)), made_of((1, 0))], False),
        ([made_of((1, 0, 2)), made_of((1, 1))], True),
        ([made_of((1,))], True),
    ],
)
def test_fields_are_independent_where_no_origin_and_no_part_of_one_is_shared(fields, expected):
    assert independent(fields) is expected


ORIGINS = st.frozensets(st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple), min_size=1, max_size=3)


@PROPERTY
@given(ORIGINS, ORIGINS)
def test_independence_is_mutual_and_nothing_is_independent_of_itself(one, other):
    first, second = made_of(*one), made_of(*other)
    assert independent([first, second]) == independent([second, first])
    assert not independent([first, first])
    assert independent([first, second]) <= one.isdisjoint(other)


def test_measured_has_the_level_and_signal_measured_and_the_proportions_predicted():
    before = replace(PIXELS, mean=0.6, variance=0.3, inherited=0.2, units=8, origins=frozenset({(3,)}))
    found = before.measured(12.0, 6.0, node=7)
    assert (found.level, found.signal, found.node) == (12.0, 6.0, 7)
    assert found.gaps == pytest.approx(4 * PIXELS.gaps)
    assert found.mean == pytest.approx(1.2)
    assert (found.variance, found.inherited, found.units) == (0.0, 0.0, 8)
    assert found.origins == before.origins


def test_measured_knows_nothing_of_positions_where_nothing_was_predicted():
    for before in (NOTHING, field(0.0, 1.0, columns=5)):
        found = before.measured(2.0, 1.0, node=3)
        assert (found.level, found.signal, found.gaps[0, 0]) == (2.0, 1.0, 0.0)
        assert np.isnan(found.gaps[:, 1:]).all()
        assert found.gaps.shape == (2, 5)
    assert not GAUSSIAN.measured(math.nan, math.nan, node=3).known


def test_measured_takes_the_gaps_of_any_two_positions_where_they_are_known():
    found = PIXELS.measured(12.0, 6.0, 7, (1.5, 7.5))
    assert found.gaps[:, FAR].tolist() == [1.5, 7.5]
    assert found.gaps[:, :FAR] == pytest.approx(4 * PIXELS.gaps[:, :FAR])
    assert NOTHING.measured(2.0, 1.0, 3, (0.4, 1.2)).gaps[:, FAR].tolist() == [0.4, 1.2]


def test_measured_stays_gaussian_where_it_was_so_but_is_a_function_of_nothing():
    assert GAUSSIAN.measured(2.0, 1.0, 3).source is not None
    assert through_function(GAUSSIAN, DOUBLED).measured(2.0, 1.0, 3).gaussian
    behind = through_function(GAUSSIAN, RELU).measured(2.0, 1.0, 3)
    assert behind.source is None
    assert behind.pre is None


def test_the_last_column_means_any_two_positions():
    assert PIXELS.gaps[:, FAR].tolist() == [1.0, 1.9]


def test_fields_are_told_apart_by_identity():
    assert field(1.0) != field(1.0)
    assert Field(1.0, np.zeros((2, 2))).units == math.inf


def test_of_what_was_not_predicted_a_measurement_tells_no_mean():
    found = unknown([], 3).measured(2.0, 1.5, node=4)
    assert (found.level, found.signal) == (2.0, 1.5)
    assert math.isnan(found.mean)
