"""Standardised or not: deviations in standard errors, with few false alarms and with the power that n gives."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from gainstage.nn.sample_moments import SIGMAS, SampleMoments
from tests.tools import generator, normal

WIDE = (0.8, 1.5)


def uniform(*shape, seed=0):
    return (torch.rand(*shape, generator=generator(seed)) - 0.5) * math.sqrt(12)


def exponential(*shape, seed=0):
    return -torch.rand(*shape, generator=generator(seed)).clamp_min(1e-9).log() - 1


def test_moments_are_those_of_the_columns():
    found = SampleMoments.of(torch.tensor([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [6.0, 5.0]]), 4)
    assert found.mean.tolist() == [3.0, 5.0]
    assert found.variance.tolist() == pytest.approx([14 / 3, 0.0])
    assert found.kurtosis.tolist() == pytest.approx([(16 + 1 + 0 + 81) / 4 / 3.5**2, 3.0])
    assert found.samples.tolist() == [4, 4]


def test_a_constant_column_has_no_variance_whatever_the_rounding():
    assert SampleMoments.of(torch.full((3, 1), 0.1, dtype=torch.float64), 3).variance.item() == 0


def test_joined_parts_are_one_behind_the_other():
    parts = [SampleMoments.of(normal(9, 2), 9), SampleMoments.of(normal(5, 1), 5)]
    found = SampleMoments.joined(parts)
    assert found.samples.tolist() == [9, 9, 5]
    assert found.mean[:2].equal(parts[0].mean)


def test_pooled_columns_are_one():
    columns = [normal(9, 1, seed=1), normal(400, 1, seed=2) + 3, normal(2000, 1, seed=3)]
    parts = SampleMoments.joined([SampleMoments.of(column, len(column)) for column in columns])
    found, expected = parts.pooled(), SampleMoments.of(torch.cat(columns), 2409)
    assert found.mean.item() == pytest.approx(expected.mean.item())
    assert found.variance.item() == pytest.approx(expected.variance.item(), rel=2e-3)
    assert found.kurtosis.item() == pytest.approx(3, abs=0.2)
    assert found.samples.tolist() == [2409]


def spread_of(sigmas):
    """Mean and standard deviation of what should be standard normal."""
    return float(sigmas.mean()), float(sigmas.std())


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_deviations_of_standardised_columns_are_standard_normal(n):
    found = SampleMoments.of(normal(n, 5000), n)
    for sigmas in (found.mean_sigmas, found.variance_sigmas):
        centre, spread = spread_of(sigmas)
        assert abs(centre) < 0.07
        assert spread == pytest.approx(1, abs=0.12)
    forgotten = replace(found, samples=torch.ones_like(found.samples) * 2)
    assert spread_of(forgotten.mean_sigmas)[1] < 0.5, "without n they are not"
    assert spread_of(forgotten.variance_sigmas)[1] < 0.6


def test_the_kurtosis_of_normal_columns_is_three_within_its_error():
    centre, spread = spread_of(SampleMoments.of(normal(4000, 2000), 4000).kurtosis_sigmas)
    assert abs(centre) < 0.15
    assert spread == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("draw", [normal, uniform, exponential])
@pytest.mark.parametrize(("n", "columns"), [(10, 20), (64, 200), (1000, 50)])
def test_standardised_columns_of_any_shape_are_not_suspected(draw, n, columns):
    alarms = 0
    for seed in range(50):
        found = SampleMoments.of(draw(n, columns, seed=seed), n)
        alarms += int((found.shifted(0.1) | found.rescaled(*WIDE)).sum())
    assert alarms <= 50 * columns * 1e-3, "one column in a thousand, for ten numbers of an exponential distribution"
    if draw is not exponential or n > 10:
        assert alarms == 0


def test_numbers_that_are_not_independent_do_not_count():
    copies = normal(20, 50).repeat_interleave(400, 0)
    assert not SampleMoments.of(copies, 20).rescaled(0.99, 1.01).any()
    assert SampleMoments.of(copies, 8000).rescaled(0.99, 1.01).any(), "or the test could not fail"


@pytest.mark.parametrize(("shift", "scale"), [(0.3, 1.0), (-0.3, 1.0), (0.0, 1.4), (0.0, 0.7)])
def test_the_same_deviation_is_found_in_a_large_sample_alone(shift, scale):
    def found(n):
        off = SampleMoments.of(normal(n, 50) * scale + shift, n)
        return off.shifted(0.1) | off.rescaled(*WIDE)

    assert found(1000).all()
    assert not found(12).any()


def test_a_deviation_that_does_not_matter_is_none_however_certain():
    found = SampleMoments.of(normal(100_000, 1) * 1.1 + 0.05, 100_000)
    assert float(found.mean_sigmas) > SIGMAS
    assert float(found.variance_sigmas) > SIGMAS
    assert not found.shifted(0.1)
    assert not found.rescaled(*WIDE)


def test_a_uniform_distribution_is_told_from_a_normal_one():
    assert SampleMoments.of(uniform(500, 20), 500).unlike_normal(2.0, 3.9).all()
    assert not SampleMoments.of(normal(500, 20), 500).unlike_normal(2.0, 3.9).any()
    assert not SampleMoments.of(uniform(30, 20), 30).unlike_normal(2.0, 3.9).any(), "thirty numbers do not tell"
    assert SampleMoments.of(normal(500, 20) ** 3, 500).unlike_normal(2.0, 3.9).all()


def test_nan_is_never_standardised():
    found = SampleMoments.of(torch.full((100, 1), math.nan), 100)
    assert found.shifted(0.1)
    assert found.rescaled(*WIDE)


def test_zeros_are_found_to_have_no_variance_even_if_few():
    assert SampleMoments.of(torch.zeros(16, 1), 16).rescaled(*WIDE)
