"""Max pooling and attention against torch's own, on many independent units."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gainstage.theory import field, pointwise
from gainstage.theory.composition import IDENTITY
from gainstage.theory.field import unknown
from gainstage.theory.pooling import LARGEST_WINDOW, slope_at_maximum, through_attention, through_maximum
from gainstage.theory.propagation import composed, through_function
from tests.theory.fields import PIXELS, agree, drawn, images, step

GAUSSIAN = replace(PIXELS, mean=0.7, gaussian=True)
UNITS = 8000
DRAWN = {"far": False, "slack": 0.03}  # the formula draws its windows: 1 % of a maximum, more of a difference
OVERLAPPING = DRAWN | {"slack": 0.12}  # windows that share positions are taken for as alike as their average positions
FUNCTIONS = {"identity": lambda z: z, "relu": F.relu, "gelu": F.gelu, "falling": lambda z: -z, "tanh": torch.tanh}


def behind(function, given=GAUSSIAN):
    return given if function == "identity" else through_function(given, pointwise(FUNCTIONS[function]))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 3), (3, 2)])
def test_the_largest_of_a_window_of_correlated_values(function, window, stride):
    values = F.max_pool1d(FUNCTIONS[function](drawn(GAUSSIAN, 4, (16,), UNITS)), window, stride)
    found = through_maximum(behind(function), (window,), stride)
    settings = DRAWN if window == stride else OVERLAPPING
    assert agree(values, found, **settings)
    assert not agree(values, behind(function), **settings), "not pooled"
    assert not agree(values, replace(found, mean=0.0), **settings), "mean ignored"
    assert not found.gaussian
    assert found.pre is None


@pytest.mark.parametrize("function", ["identity", "relu", "gelu", "falling"])
def test_a_real_maximum_rejects_wrong_windows_and_wrong_values(function):
    values = F.max_pool1d(FUNCTIONS[function](drawn(GAUSSIAN, 4, (16,), UNITS)), 3, 3)
    other = "gelu" if function != "gelu" else "relu"
    apart = replace(GAUSSIAN, gaps=np.where(GAUSSIAN.gaps == 0, 0, np.maximum(GAUSSIAN.gaps, 2.2)))
    wrong = [
        through_maximum(behind(function), (2,), 3),
        through_maximum(behind(function), (3, 3), 3),
        through_maximum(behind(function), (3,), 1),
        through_maximum(behind(other), (3,), 3),
        through_maximum(behind(function, replace(GAUSSIAN, mean=0.0)), (3,), 3),
        through_maximum(behind(function, apart), (3,), 3),
    ]
    assert not any(agree(values, mutant, **DRAWN) for mutant in wrong)


def test_max_pooling_of_two_dimensions():
    values = F.max_pool2d(F.relu(drawn(GAUSSIAN, 3, (6, 6), UNITS)), 2)
    assert agree(values, through_maximum(behind("relu"), (2, 2), 2), **DRAWN)
    assert not agree(values, through_maximum(behind("relu"), (2,), 2), **DRAWN), "one dimension"


def test_a_rising_function_may_come_before_or_behind():
    values = F.relu(F.max_pool1d(drawn(GAUSSIAN, 4, (16,), UNITS), 2))
    assert agree(values, through_maximum(behind("relu"), (2,), 2), **DRAWN)


def test_a_function_that_is_not_worked_out_yet_is_pooled_as_well():
    bare = composed(step(F.relu), [GAUSSIAN])
    one, other = through_maximum(bare, (2,), 2), through_maximum(behind("relu"), (2,), 2)
    assert (one.level, one.signal) == (other.level, other.signal)


def test_the_largest_of_equal_values_is_each_of_them():
    alike = images(3.0, [0, 0, 0, 0], [1.5, 1.5, 1.5, 1.5], gaussian=True)
    found = through_maximum(alike, (2, 2), 2)
    assert found.level == pytest.approx(3.0, rel=0.05)
    assert found.gaps[:, 0].tolist() == pytest.approx([0, 1.5], rel=0.05)


def test_of_a_maximum_only_what_is_a_function_of_a_gaussian_is_known():
    side = math.isqrt(LARGEST_WINDOW)
    nowhere = images(1.0, [0, math.nan], [0.5, math.nan], gaussian=True)
    for given, window in (
        (PIXELS, (2,)),
        (GAUSSIAN, (side, side + 1)),
        (nowhere, (2,)),
        (replace(unknown([], 5), gaussian=True), (2,)),
    ):
        assert not through_maximum(given, window, 2).known
        assert through_maximum(given, window, 2).origins == given.origins
    assert math.isnan(slope_at_maximum(nowhere, IDENTITY, (2,), 2))
    assert through_maximum(GAUSSIAN, (side, side), 2).known, "or this test could not fail"


@pytest.mark.parametrize("function", ["identity", "relu", "gelu", "falling"])
@pytest.mark.parametrize("window", [2, 3])
def test_the_slope_where_the_maximum_is(function, window):
    z = drawn(GAUSSIAN, 2, (12,), UNITS).requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.max_pool1d(FUNCTIONS[function](z), window).sum(), z)
    real = window * float(gradient.square().mean())
    found = slope_at_maximum(GAUSSIAN, pointwise(FUNCTIONS[function]), (window,), window)
    assert found == pytest.approx(real, rel=0.02)
    plain = float(torch.autograd.grad(FUNCTIONS[function](z).sum(), z)[0].square().mean())
    if function in ("relu", "gelu"):
        assert plain != pytest.approx(real, rel=0.02), "the slope elsewhere must be rejected"


TOKENS, WIDTH = 16, 4096
QUERY = images(1.5, [0, 1.5, 1.5], [1.5, 1.5, 1.5], origins=frozenset({(1,)}))
KEY = images(1.0, [0, 0.7, 0.7], [0.5, 0.9, 0.9], origins=frozenset({(2,)}))
VALUE = images(2.0, [0, 1.6, 1.6], [1.2, 1.8, 1.8], mean=0.3, origins=frozenset({(3,)}), gaussian=True)


def attended(scale, causal):
    """torch's attention over tokens, as (samples, units, tokens)."""
    query, key, value = (
        drawn(given, 4, (TOKENS,), units, seed).mT
        for seed, (given, units) in enumerate([(QUERY, WIDTH), (KEY, WIDTH), (VALUE, UNITS)])
    )
    return F.scaled_dot_product_attention(query, key, value, scale=scale, is_causal=causal).mT


def plainly(found):
    """Level, mean and signal alone."""
    return replace(found, gaps=found.gaps[:, [0, -1]])


def scale_for(spread):
    """The scale at which logits differ between tokens with this variance."""
    return math.sqrt(spread / (WIDTH * QUERY.level * 0.7))


@pytest.mark.parametrize("spread", [0.01, 0.3])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_near_uniform_weights_averages_tokens(spread, causal):
    values = attended(scale_for(spread), causal)
    found = through_attention(QUERY, KEY, VALUE, TOKENS, WIDTH, scale_for(spread), causal)
    assert agree(values, plainly(found), far=False, slack=0.02)
    assert found.gaussian
    for wrong in (
        through_attention(QUERY, KEY, VALUE, TOKENS, WIDTH, scale_for(spread), not causal),
        through_attention(QUERY, KEY, VALUE, 3 * TOKENS, WIDTH, scale_for(spread), causal),
        through_attention(QUERY, KEY, replace(VALUE, mean=0.0), TOKENS, WIDTH, scale_for(spread), causal),
        replace(VALUE, level=0.4 + 1.6 / TOKENS**2, gaps=VALUE.gaps / TOKENS),
    ):
        assert not agree(values, plainly(wrong), far=False, slack=0.02)


@pytest.mark.parametrize("causal", [False, True])
def test_any_two_tokens_see_much_the_same(causal):
    values = attended(scale_for(0.01), causal)
    found = through_attention(QUERY, KEY, VALUE, TOKENS, WIDTH, scale_for(0.01), causal)
    assert agree(values, replace(found, gaps=found.gaps[:, [0, -1]]), slack=0.03 if causal else 0.1)
    assert not agree(values, replace(found, gaps=VALUE.gaps[:, [0, -1]]), slack=0.1)


def test_weights_that_are_not_quite_uniform_average_less():
    values = attended(scale_for(0.5), False)
    found = through_attention(QUERY, KEY, VALUE, TOKENS, WIDTH, scale_for(0.5))
    uniform = through_attention(QUERY, KEY, VALUE, TOKENS, WIDTH, 0.0)
    assert agree(values, plainly(found), far=False, slack=0.03)
    assert not agree(values, plainly(uniform), far=False, slack=0.03)


def test_without_a_scale_it_is_that_of_the_width():
    quiet = replace(QUERY, level=0.9)
    one, other, third = (through_attention(quiet, KEY, VALUE, TOKENS, 64, scale) for scale in (None, 1 / 8, 1 / 16))
    assert (one.level, one.signal) == (other.level, other.signal)
    assert one.level > third.level * 1.01


def test_nothing_is_predicted_for_large_logits_or_common_origins_or_the_unknown():
    assert through_attention(QUERY, KEY, VALUE, TOKENS, WIDTH, scale_for(0.99)).known
    nothing = replace(unknown([], 3), origins=frozenset({(4,)}))
    for query, key, value, spread in (
        (QUERY, KEY, VALUE, 1.01),
        (QUERY, replace(KEY, origins=QUERY.origins), VALUE, 0.1),
        (QUERY, KEY, replace(VALUE, origins=KEY.origins), 0.1),
        (nothing, KEY, VALUE, 0.1),
        (QUERY, nothing, VALUE, 0.1),
        (QUERY, KEY, nothing, 0.1),
        (QUERY, images(1.0, [0, math.nan], [0.5, math.nan], origins=KEY.origins), VALUE, 0.1),
    ):
        found = through_attention(query, key, value, TOKENS, WIDTH, scale_for(spread))
        assert not found.known
        assert found.origins == query.origins | key.origins | value.origins


def test_what_comes_out_of_attention_is_made_of_all_three():
    found = through_attention(QUERY, KEY, VALUE, TOKENS, WIDTH, scale_for(0.1))
    assert found.origins == {(1,), (2,), (3,)}
    assert found.pre is None


def test_a_single_token_is_handed_on_whole():
    found = through_attention(QUERY, KEY, VALUE, 1, WIDTH, scale_for(0.5), causal=True)
    assert (found.level, found.signal, found.mean) == pytest.approx((VALUE.level, VALUE.signal, VALUE.mean))
    lonely = field(1.0, 1.0, columns=3, origins=frozenset({(3,)}))
    assert through_attention(QUERY, KEY, lonely, TOKENS, WIDTH, scale_for(0.5)).signal == pytest.approx(1.0)
