"""Each statistic against the slow definition, written out in float64, and against mutants of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gainstage.signal import statistics
from tests.tools import normal

SHAPES = [(16, 5), (8, 3, 4), (8, 2, 3, 3)]


def slow_signal_and_offset(x):
    """Two passes over each unit: unbiased variance, and the squared mean less the variance that it retains."""
    units = x.double().flatten(1).T
    variances = [sum((v - u.mean()) ** 2 for v in u) / (len(u) - 1) for u in units]
    means = [u.mean() ** 2 for u in units]
    signal = sum(variances) / len(variances)
    return float(signal), max(float(sum(means) / len(means) - signal / len(x)), 0.0)


def slow_similarity(x):
    rows = x.double().flatten(1)
    pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if i != j]
    return float(sum(torch.cosine_similarity(rows[i], rows[j], dim=0) for i, j in pairs) / len(pairs))


@pytest.mark.parametrize("shape", SHAPES)
def test_signal_and_offset_match_the_definition(shape):
    x = 3 * normal(*shape) + 2
    signal, offset = statistics.signal_and_offset(x)
    assert (float(signal), float(offset)) == pytest.approx(slow_signal_and_offset(x), rel=1e-5)


def test_a_biased_variance_would_be_noticed():
    x = normal(16, 5)
    biased = float(x.var(0, unbiased=False).mean())
    assert float(statistics.signal_and_offset(x)[0]) != pytest.approx(biased, rel=1e-3)


@given(st.integers(2, 40), st.integers(1, 20), st.floats(-50, 50), st.floats(0.01, 100), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_signal_and_offset_add_up_to_the_plain_mean_square(samples, units, shift, scale, seed):
    x = shift + scale * normal(samples, units, seed=seed)
    signal, offset = statistics.signal_and_offset(x)
    if offset > 0:  # an offset below its own sampling error is reported as zero
        assert float(signal + offset) == pytest.approx(float(x.square().mean()), rel=1e-4)


def test_what_all_samples_share_is_no_signal():
    x = normal(1, 7).expand(16, 7)
    signal, offset = statistics.signal_and_offset(x)
    assert float(signal) == 0
    assert float(offset) == pytest.approx(float(x.square().mean()))


@pytest.mark.parametrize("shape", SHAPES)
def test_similarity_matches_the_mean_over_pairs(shape):
    x = normal(*shape) + 0.5
    assert float(statistics.similarity(x)) == pytest.approx(slow_similarity(x), abs=1e-5)


def test_similarity_of_equal_samples_is_one():
    assert float(statistics.similarity(normal(1, 9).expand(5, 9))) == pytest.approx(1.0, abs=1e-5)


def test_similarity_leaves_out_samples_of_all_zeros():
    x = normal(6, 9)
    with_zero = torch.cat([x, torch.zeros(2, 9)])
    assert float(statistics.similarity(with_zero)) == pytest.approx(float(statistics.similarity(x)), abs=1e-5)
    assert torch.isnan(statistics.similarity(torch.zeros(4, 9)))


def test_mean_square_of_half_precision_does_not_overflow():
    x = torch.full((4, 4), 300.0, dtype=torch.float16)
    assert float(statistics.mean_square(x)) == pytest.approx(90_000, rel=1e-3)
    assert not torch.isfinite((x * x).mean())  # what a plain mean in half precision gives


def test_dead_is_a_unit_that_is_zero_on_every_sample_not_a_share_of_zeros():
    x = torch.zeros(100, 4)
    x[7, 0] = 1.0  # one sample in a hundred is enough
    x[:, 1] = normal(100).relu()
    assert float(statistics.dead_share(x, -1)) == 0.5
    assert float((x == 0).float().mean()) > 0.8


def test_a_channel_is_dead_when_it_is_zero_at_every_position():
    x = normal(5, 4, 3, 3).abs()
    x[:, 2] = 0
    x[:, 3, 1, 1] = 0
    assert float(statistics.dead_share(x, 1)) == 0.25


def test_saturated_share_counts_both_flat_sides():
    before = torch.tensor([[-5.0, -1.0, 0.0, 2.0], [3.0, 0.5, -3.0, 1.0]])
    assert float(statistics.saturated_share(before, (-2.0, 2.5))) == pytest.approx(3 / 8)
