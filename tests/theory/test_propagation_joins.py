"""Fields that are added, multiplied, put side by side, averaged and padded, against tensors of many independent units; and
that nothing is predicted where nothing can be."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gainstage.theory import field, pointwise
from gainstage.theory import propagation as theory
from gainstage.theory.field import unknown
from gainstage.theory.propagation import (
    through_average,
    through_concatenation,
    through_padding,
    through_product,
    through_sum,
)
from tests.theory.fields import PIXELS, SWAPPABLE, agree, drawn, exact, images
from tests.tools import normal

PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=40)
SIDES, UNITS = (8,), 12_000


def from_layer(number, given, **changes):
    return replace(given, origins=frozenset({(number,)}), **changes)


ONE = from_layer(1, PIXELS, mean=0.7)
OTHER = from_layer(2, images(1.2, [0, 0.3, 0.5, 0.6, 0.6], [0.8, 0.9, 1.0, 1.0, 1.0], mean=-0.3))
THIRD = from_layer(3, images(0.5, [0, 0.1, 0.1, 0.1, 0.1], [0.3, 0.3, 0.3, 0.3, 0.3], mean=0.2))
FIELDS = (ONE, OTHER, THIRD)


def tensors(count, units=UNITS):
    return [drawn(given, 4, SIDES, units, seed) for seed, given in enumerate(FIELDS[:count])]


@pytest.mark.parametrize("count", [2, 3])
def test_independent_fields_add_their_gaps_and_their_levels_but_for_the_means(count):
    values, fields = sum(tensors(count)), FIELDS[:count]
    assert agree(values, through_sum(fields), far=False)
    assert not agree(values, through_sum([replace(f, mean=0.0) for f in fields]), far=False), "means ignored"
    assert not agree(values, through_sum([*fields, THIRD] if count == 2 else fields[:2]), far=False), "another summand"


@pytest.mark.parametrize("count", [2, 3])
def test_independent_fields_multiply_their_covariances(count):
    values, fields = math.prod(tensors(count)), FIELDS[:count]
    found = through_product(fields)
    assert agree(values, found, far=False)
    levels = math.prod(f.gaps for f in fields)
    assert not agree(values, replace(found, gaps=levels), far=False), "gaps multiplied"
    assert not agree(values, replace(found, mean=0.0), far=False), "means ignored"
    assert not found.gaussian


@pytest.mark.parametrize("units", [(8000, 8000), (12_000, 3000)])
def test_units_side_by_side_are_averaged_by_their_number(units):
    values = torch.cat([drawn(f, 4, SIDES, n, i) for i, (f, n) in enumerate(zip(FIELDS, units, strict=False))], 1)
    assert agree(values, through_concatenation(FIELDS[:2], units), far=False)
    assert not agree(values, through_concatenation(FIELDS[:2], units[::-1]), far=False) or units[0] == units[1]
    assert not agree(values, through_concatenation(FIELDS[:2], (1, 0)), far=False)


def test_a_residual_sum_is_what_a_real_layer_makes_of_it():
    """x + W x, whose parts are uncorrelated because the weights are new."""
    x = exact(field(1.0, 2.0), channels=4000)
    values = x + F.linear(x, (0.5 / 4000) ** 0.5 * normal(4000, 4000, seed=4).double())
    parts = [from_layer(1, field(1.0, 2.0)), from_layer(2, field(0.5, 1.0))]
    assert agree(values, through_sum(parts))
    assert not agree(values, through_sum([parts[0], from_layer(2, field(0.5**0.5, 2**0.5))])), "amplitudes added"


@pytest.mark.parametrize("through", [through_sum, through_product])
def test_nothing_is_predicted_for_fields_with_a_common_origin(through):
    both = replace(OTHER, origins=OTHER.origins | ONE.origins)
    for fields in ([ONE, ONE], [ONE, both], [ONE, replace(OTHER, origins=frozenset({(1, 0)}))]):
        found = through(fields)
        assert not found.known
        assert found.origins == fields[0].origins | fields[1].origins
        assert found.source is None
    halves = [replace(ONE, origins=frozenset({(1, part)})) for part in (0, 1)]
    assert through(halves).known, "parts of one layer have units of their own"


def test_what_is_joined_comes_from_all_origins():
    for joined in (through_sum(FIELDS), through_product(FIELDS), through_concatenation(FIELDS, (1, 1, 1))):
        assert joined.origins == {(1,), (2,), (3,)}


def test_sums_stay_gaussian_with_one_gaussian_part_and_lists_with_all():
    gaussian = replace(OTHER, gaussian=True)
    assert through_sum([ONE, gaussian]).gaussian
    assert not through_sum([ONE, OTHER]).gaussian
    assert not through_concatenation([ONE, gaussian], (1, 1)).gaussian
    assert through_concatenation([from_layer(1, gaussian), gaussian], (1, 1)).gaussian
    line = theory.through_function(gaussian, pointwise(lambda z: 2 * z + 1))
    assert through_sum([ONE, line]).gaussian, "an affine function of a Gaussian is one"


POWERS = st.floats(0.01, 100)


@PROPERTY
@given(st.lists(st.tuples(POWERS, POWERS, st.floats(-1, 1)), min_size=2, max_size=4), st.permutations(range(4)))
def test_the_order_of_what_is_joined_does_not_matter(powers, order):
    fields = [
        from_layer(i, field(signal, offset + mean**2, mean=mean)) for i, (signal, offset, mean) in enumerate(powers)
    ]
    shuffled = [fields[i] for i in order if i < len(fields)]
    for through in (through_sum, through_product):
        one, other = through(fields), through(shuffled)
        assert (one.level, one.signal, one.mean) == pytest.approx((other.level, other.signal, other.mean), rel=1e-9)
        assert one.signal <= one.level * (1 + 1e-9)


@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 1), (2, 1), (3, 2)])
def test_average_pooling_keeps_what_the_positions_of_a_window_share(window, stride):
    values = F.avg_pool1d(drawn(ONE, 4, (16,)), window, stride)
    assert agree(values, through_average(ONE, (window,), stride), far=False)
    assert not agree(values, through_average(ONE, (window + 1,), stride), far=False), "another window"
    assert not agree(values, through_average(ONE, (window,), stride + 1), far=False), "another stride"
    apart = replace(ONE, level=ONE.level / window, gaps=ONE.gaps / window)
    assert not agree(values, apart, far=False), "as if positions were independent"


def test_average_pooling_of_two_dimensions():
    values = F.avg_pool2d(drawn(ONE, 3, (6, 6), UNITS), 2, 2)
    assert agree(values, through_average(ONE, (2, 2), 2), far=False)
    assert not agree(values, through_average(ONE, (2,), 2), far=False), "one dimension"
    assert not agree(values, through_average(ONE, (4,), 2), far=False), "four in a row"


@pytest.mark.parametrize("positions", [4, 16])
def test_the_average_of_all_positions_keeps_what_they_share(positions):
    given = replace(SWAPPABLE, mean=0.7)
    values = drawn(given, 4, (positions,)).mean(-1)
    found = through_average(given, (positions,), 1, positions)
    assert agree(values, found)
    assert (found.gaps[0] == 0).all(), "no positions are left"
    assert not agree(values, through_average(given, (10_000,), 1, 10_000)), "each position with itself forgotten"
    assert not agree(values, replace(given, level=given.level / positions, gaps=given.gaps / positions))


def test_windows_that_are_too_large_to_count_are_taken_as_any_positions():
    values = F.avg_pool1d(drawn(SWAPPABLE, 4, (40,), UNITS), 20)
    assert agree(values, through_average(SWAPPABLE, (20,), 20))
    assert not agree(values, through_average(SWAPPABLE, (2,), 20))


def test_padding_thins_every_power_out():
    """At the seam two positions differ more often than the formula, which looks along one axis, thinks."""
    share = 24 / 26
    values = F.pad(drawn(replace(SWAPPABLE, mean=0.7), 4, (24,), UNITS), (1, 1))
    found = through_padding(replace(SWAPPABLE, mean=0.7), share)
    first = replace(found, gaps=found.gaps[:, [0, -1]])
    assert agree(values, first, slack=0.005)
    assert not agree(values, replace(first, gaps=share * SWAPPABLE.gaps[:, [0, -1]]), slack=0.005), "far as near"
    assert not agree(values, replace(first, mean=0.7), slack=0.005)
    assert not agree(values, replace(first, level=SWAPPABLE.level), slack=0.005)
    assert agree(values, found, far=False, slack=0.2)


NOTHING = replace(unknown([], 5), origins=frozenset({(9,)}))
HALF = replace(PIXELS, gaps=PIXELS.gaps * [[1], [math.nan]])
OPERATIONS = {
    "layer": lambda f: theory.through_layer(f, 10, 0.1, 0.3),
    "padded layer": lambda f: theory.through_layer(f, 10, 0.1, 0.3, coverage=(0.9, 0.8, 0.7, 0.7, 0.7)),
    "strided layer": lambda f: theory.through_layer(f, 10, 0.1, 0.3, stride=2),
    "transposed layer": lambda f: theory.through_layer(f, 10, 0.1, 0.3, upsampling=(2, 2)),
    "affine": lambda f: theory.through_function(f, pointwise(lambda z: 0 * z + 1)),
    "function": lambda f: theory.through_function(replace(f, gaussian=True), pointwise(torch.tanh)),
    "scale": lambda f: theory.through_scale(f, 0.0),
    "shift": lambda f: theory.through_shift(f, 1.0, 0.5, True),
    "batch norm": lambda f: theory.through_batch_norm(f, 0.0, 1.0),
    "layer norm": lambda f: theory.through_group_norm(f),
    "instance norm": lambda f: theory.through_group_norm(f, 1, True, 0.0, 1.0),
    "dropout": lambda f: theory.through_dropout(f, 0.5),
    "channel dropout": lambda f: theory.through_dropout(f, 0.5, True),
    "alpha dropout": lambda f: theory.through_alpha_dropout(f, 0.5),
    "sum": lambda f: through_sum([ONE, f]),
    "product": lambda f: through_product([f, from_layer(1, field(0.0, columns=5))]),
    "concatenation": lambda f: through_concatenation([ONE, f], (1, 0)),
    "average": lambda f: through_average(f, (2,), 2),
    "global average": lambda f: through_average(f, (8,), 1, 8),
    "padding": lambda f: through_padding(f, 0.5),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_prediction_never_turns_into_a_number(name):
    for before in (NOTHING, replace(NOTHING, mean=0.0), HALF):
        assert not OPERATIONS[name](before).known
    assert OPERATIONS[name](from_layer(9, PIXELS)).known, "or this test could not fail"


def test_the_factor_of_batch_normalisation_of_nothing_known_is_not_known():
    assert math.isnan(theory.batch_norm_factor(NOTHING, 1e-5))
    assert math.isnan(theory.batch_norm_factor(images(1.0, [0, math.nan], [0.5, math.nan]), 1e-5))
    assert theory.batch_norm_factor(field(0.0, 1.0)) == 0.0
