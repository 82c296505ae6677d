"""Each statistic against the slow definition, written out in float64, and against mutants of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gainstage.signal import statistics
from gainstage.signal.statistics import Stack
from tests.tools import normal

SHAPES = [(16, 5), (8, 3, 4), (8, 2, 3, 3)]


def similarity(x):
    return Stack(x[None]).similarity[0]


def far_gaps(x):
    """Of (samples, channels, *places)."""
    return Stack(x[None], x.shape[1], 0).far_gaps[:, 0]


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


def test_a_step_through_all_units_meets_every_column():
    assert [statistics.coprime_step(step, 12) for step in (1, 2, 3, 5, 6, 12)] == [1, 5, 5, 5, 7, 13]


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
    assert float(similarity(x)) == pytest.approx(slow_similarity(x), abs=1e-5)


def test_similarity_of_equal_samples_is_one():
    assert float(similarity(normal(1, 9).expand(5, 9))) == pytest.approx(1.0, abs=1e-5)


def test_similarity_leaves_out_samples_of_all_zeros():
    x = normal(6, 9)
    with_zero = torch.cat([x, torch.zeros(2, 9)])
    assert float(similarity(with_zero)) == pytest.approx(float(similarity(x)), abs=1e-5)
    assert torch.isnan(similarity(torch.zeros(4, 9)))


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


def slow_levels(x, dim):
    """Mean square of each channel in float64, over samples and positions; dim: where the channels stand."""
    return x.double().movedim(dim, 0).flatten(1).square().mean(1)


CHANNELS = [
    ((16, 70), 1, -1),
    ((8, 3, 70), 2, -1),
    ((8, 70, 3, 3), 1, 0),
]  # shape, where the channels are, and as units


@pytest.mark.parametrize(("shape", "dim", "unit_dim"), CHANNELS)
def test_kurtosis_and_outliers_of_channels_match_the_definition(shape, dim, unit_dim):
    strong = torch.ones(shape[dim])
    strong[[3, 11]] = 30.0
    x = (normal(*shape).movedim(dim, -1) * strong + 0.5).movedim(-1, dim)
    stack, levels = Stack(x[None], 70, unit_dim), slow_levels(x, dim)
    assert float(stack.kurtosis) == pytest.approx(float((levels**2).mean() / levels.mean() ** 2), rel=1e-4)
    assert float(stack.outliers) == pytest.approx(2 / 70)
    wrong = Stack(x[None], shape[-1] if dim == 1 else shape[1], -1 - unit_dim)
    assert len(shape) == 2 or float(wrong.kurtosis) != pytest.approx(float(stack.kurtosis), rel=0.1)


def test_kurtosis_runs_from_one_to_the_number_of_channels():
    signs = normal(64, 100).sign()
    assert float(Stack(signs[None], 100).kurtosis) == pytest.approx(1)
    assert float(Stack((signs * (torch.arange(100) == 7))[None], 100).kurtosis) == pytest.approx(100)
    assert float(Stack(normal(1, 20_000).expand(4, -1)[None], 20_000).kurtosis) == pytest.approx(3, rel=0.1)
    assert torch.isnan(Stack(torch.zeros(1, 4, 100), 100).kurtosis).all()


@pytest.mark.parametrize("alike", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("function", [torch.relu, torch.nn.functional.gelu, lambda z: z])
def test_gaussian_channels_have_no_outliers_whatever_stands_behind_them(function, alike):
    """The worst rate of false alarms, 0.3 % of stages at 64 channels, would be 15 % by the upper quartile and 10^-3."""
    z = alike**0.5 * normal(500, 1, 64) + (1 - alike) ** 0.5 * normal(500, 16, 64, seed=1)
    assert float((Stack(function(z), 64).outliers > 0).float().mean()) <= 0.01


def test_outliers_are_not_told_among_few_channels_or_mostly_zeros():
    assert torch.isnan(Stack(normal(1, 8, 63), 63).outliers).all()
    assert torch.isnan(Stack(normal(1, 8, 100) * (torch.arange(100) < 5), 100).outliers).all()


def test_channels_that_are_the_same_on_every_sample():
    x = normal(50, 10)
    x[:, 0], x[:, 1], x[:, 2] = 0.1, 0.0, -1e4
    x[:, 3] = 1e4 + 0.01 * normal(50)  # ten times what float32 resolves there
    stack = Stack(x[None], 10)
    assert float(stack.still) == pytest.approx(0.3)
    assert float(stack.zero) == pytest.approx(0.1)


def test_a_channel_with_a_signal_at_one_position_is_not_still():
    x = normal(1, 6, 4, 4).expand(9, 6, 4, 4).clone()
    x[:, :2, 1, 2] = normal(9, 2)
    assert float(Stack(x[None], 6, 0).still) == pytest.approx(4 / 6)


def slow_rank(x):
    centred = x.double().flatten(1) - x.double().flatten(1).mean(0)
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred)
    return float(eigenvalues.sum() ** 2 / eigenvalues.square().sum())


@pytest.mark.parametrize("shape", [(16, 5), (60, 3, 4), (8, 2, 3, 3)])
def test_the_effective_rank_is_the_participation_ratio_of_the_covariance(shape):
    x = normal(*shape) * torch.arange(1.0, shape[-1] + 1) + 5
    assert float(Stack(x[None]).effective_rank) == pytest.approx(slow_rank(x), rel=1e-3)
    uncentred = (x - 5).flatten(1) + 5
    assert slow_rank(x) != pytest.approx(
        float((uncentred @ uncentred.T).trace() ** 2 / (uncentred @ uncentred.T).square().sum()), rel=0.05
    )


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e12])
def test_samples_on_a_line_have_rank_one_at_any_scale(scale):
    x = scale * (normal(40, 1) * normal(1, 30, seed=1))
    assert float(Stack(x[None]).effective_rank) == pytest.approx(1, rel=1e-4)
    assert torch.isnan(Stack(x[:1].expand(40, -1)[None] * 0).effective_rank).all()


def test_of_large_tensors_an_effective_rank_is_read_off_some_samples_and_units():
    x = (normal(64, 6) @ normal(6, 12_000, seed=1)).repeat_interleave(4, 0).unflatten(1, (3, 4000))
    read = Stack(x[None]).effective_rank
    # of 2048 units or more, whose products of six directions are known to sqrt(1 / 2048) = 2 %
    assert float(read) == pytest.approx(slow_rank(x[::4]), rel=0.05)
    assert float(read) != pytest.approx(slow_rank(x[:64]), rel=0.05), "evenly spread samples, not the first"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_underflow_is_the_share_of_faint_numbers_among_those_that_are_not_zero(dtype):
    least, most = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    numbers = [0.0, 0.0, least / 4, -least / 2, least, 1.0, -1.0, most / 2, most, -torch.inf, torch.nan, -least * 2]
    stack = Stack(torch.tensor(numbers, dtype=dtype).reshape(1, 3, 4))
    assert statistics.is_half(stack.values)
    assert float(stack.underflow) == pytest.approx(2 / 10)
    assert float(stack.overflow) == pytest.approx(3 / 12)
    assert torch.isnan(Stack(torch.zeros(1, 3, 4, dtype=dtype)).underflow).all()
    assert not statistics.is_half(torch.zeros(1))


def test_the_level_is_the_mean_square():
    x = normal(3, 7, 5) + 2
    assert Stack(x).level.tolist() == pytest.approx(x.double().square().mean((1, 2)).tolist(), rel=1e-5)


def slow_gaps(x, step, axis):
    """Half mean squared differences of values `step` apart along one axis, in one sample and over all pairs of two."""
    one, other = (
        (x, x) if step == 0 else (x.narrow(axis, 0, x.shape[axis] - step), x.narrow(axis, step, x.shape[axis] - step))
    )
    level = float(x.double().square().mean())
    pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
    within = float((one.double() * other.double()).mean())
    across = sum(float((one[i].double() * other[j].double()).mean()) for i, j in pairs) / len(pairs)
    return level - within, level - across


def test_gaps_of_positions_match_the_definition():
    x = normal(5, 3, 9).cumsum(2) + normal(1, 3, 9, seed=1)
    gaps = statistics.position_gaps(x, 5)
    for column, step in enumerate((0, 1, 2, 4)):
        assert gaps[:, column].tolist() == pytest.approx(slow_gaps(x, step, 2), rel=1e-4, abs=1e-4)


def test_gaps_are_the_mean_over_the_axes():
    x = normal(6, 2, 8, 8).cumsum(3)
    gaps = statistics.position_gaps(x, 3)
    mean = [sum(pair) / 2 for pair in zip(slow_gaps(x, 1, 2), slow_gaps(x, 1, 3), strict=True)]
    assert gaps[:, 1].tolist() == pytest.approx(mean, rel=1e-3)
    assert gaps[:, 1].tolist() != pytest.approx(slow_gaps(x, 1, 3), rel=0.1)


@pytest.mark.parametrize("shape", [(5, 3, 6), (4, 2, 3, 4)])
def test_gaps_of_any_two_positions_match_the_definition(shape):
    """Within a sample of any two different positions, across two samples of any two."""
    x = normal(*shape).cumsum(-1) + 1
    values, (n, places) = x.double().flatten(2), (shape[0], x.flatten(2).shape[2])
    level = float(values.square().mean())
    one = [
        (values[i, :, p] * values[i, :, q]).mean()
        for i in range(n)
        for p in range(places)
        for q in range(places)
        if p != q
    ]
    two = [(values[i].sum(1) * values[j].sum(1)).mean() / places**2 for i in range(n) for j in range(n) if i != j]
    expected = [level - float(sum(one)) / len(one), level - float(sum(two)) / len(two)]
    assert far_gaps(x).tolist() == pytest.approx(expected, rel=1e-3)
    assert statistics.position_gaps(x, 4)[:, -1].tolist() == pytest.approx(expected, rel=1e-3)
    all_pairs = level - float(sum(one) + (values.square().mean(1)).sum()) / (n * places**2)
    assert far_gaps(x)[0].item() != pytest.approx(all_pairs, rel=0.01), "with each position and itself"


def test_gaps_of_one_position_or_none_are_those_of_samples():
    for x in (normal(6, 4), normal(6, 4, 1, 1)):
        signal, _ = statistics.signal_and_offset(x)
        gaps = statistics.position_gaps(x if x.ndim > 2 else x[:, :, None], 3)
        assert gaps[0].tolist() == pytest.approx([0] * 3, abs=1e-6)
        assert gaps[1].tolist() == pytest.approx([float(signal)] * 3, rel=1e-4)


def spread(x, channels, channel_dim=-1):
    return float(Stack(x[None], channels, channel_dim).spread[0])


def test_the_spread_of_channels_is_the_sampling_variance_of_their_mean_power():
    """Of many draws of 40 channels, each with a power of its own: chi^2 of one degree of freedom, relative variance 2."""
    amplitudes = normal(500, 1, 40)
    found = Stack(amplitudes * normal(1, 400, 1, seed=1), 40).spread
    means = normal(4000, 40, seed=2).double().square().mean(1)
    # sampling: 4000 draws know a variance to sqrt(2/4000) = 2 %, and the estimates are biased by about 1/40 times ten
    assert float(found.mean()) == pytest.approx(float(means.var()), rel=0.15)
    assert float(means.var()) == pytest.approx(2 / 40, rel=0.1)


def test_positions_of_a_channel_are_averaged_before_channels_are_compared():
    amplitudes = normal(40)[:, None].expand(40, 25)
    x = amplitudes * normal(200, 40, 25, seed=1)
    powers = x.double().var(0).mean(1)
    one = float(powers.var() / 40 / powers.mean() ** 2)
    assert spread(x, 40, 0) == pytest.approx(one, rel=1e-3)
    assert spread(x.flatten(1), 40, 0) == pytest.approx(one, rel=1e-3)
    assert spread(x.movedim(2, 1), 40) == pytest.approx(one, rel=1e-3)
    assert spread(x.movedim(2, 1).flatten(1), 40) == pytest.approx(one, rel=1e-3)
    assert spread(x.flatten(1), 1000) < one / 10, "each position a draw"


@pytest.mark.parametrize(
    ("shape", "channels", "channel_dim"), [((16, 5), 5, -1), ((8, 3, 4), 4, -1), ((8, 3, 4, 4), 3, 0)]
)
def test_places_of_a_stack_do_not_meet(shape, channels, channel_dim):
    """Each place's numbers are those that it has alone."""
    x = torch.stack([normal(*shape, seed=seed) * (1 + seed) + seed for seed in range(3)])
    together = Stack(x, channels, channel_dim)
    for place in range(3):
        alone = Stack(x[place : place + 1], channels, channel_dim)
        for quantity in ("signal", "offset", "similarity", "spread", "still", "zero", "kurtosis", "effective_rank"):
            assert float(getattr(together, quantity)[place]) == pytest.approx(float(getattr(alone, quantity)), rel=1e-5)
        if alone.has_positions:
            assert together.far_gaps[:, place].tolist() == pytest.approx(alone.far_gaps[:, 0].tolist(), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_mean_squares_are_those_of_each_tensor(dtype):
    tensors = [normal(*shape, seed=seed).to(dtype) for seed, shape in enumerate([(3, 4), (100,), (2, 5, 5)])]
    expected = [float(t.double().square().mean()) for t in tensors]
    assert statistics.mean_squares(tensors).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_nothing_the_mean_square_is_zero(dtype):
    """The part of a sharded weight may be empty."""
    parts = [torch.empty(0, 3, dtype=dtype), torch.full((2, 3), 2.0, dtype=dtype)]
    assert statistics.mean_squares(parts).tolist() == pytest.approx([0, 4])
