"""Initialisers draw the variance they promise, as torch's own do, and wrong ones are told apart from sampling error."""

import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gainstage.errors import BadInput
from gainstage.nn import VarianceScaling, fans_of, fill, from_scheme, initializer
from gainstage.nn.initializers import DISTRIBUTIONS, PRESETS, truncated_std
from gainstage.theory import GLOROT, HE, LECUN, Fans, linear_fans
from tests.tools import generator, quiet

PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=30)
SCHEMES = {"glorot": GLOROT, "he": HE, "lecun": LECUN}
SEEDS, SIDES = st.integers(0, 2**31), st.integers(60, 300)


def has_variance(weight, variance, sigmas=5.0):
    """Mean 0 and mean square `variance`, each within `sigmas` standard errors of the sample itself."""
    values = weight.detach().double().flatten()
    return all(
        abs(float(draws.mean()) - expected) < sigmas * float(draws.std()) / values.numel() ** 0.5
        for draws, expected in ((values, 0.0), (values.square(), variance))
    )


@PROPERTY
@given(SIDES, SIDES, st.sampled_from(list(SCHEMES)), st.sampled_from(DISTRIBUTIONS), SEEDS)
def test_the_variance_over_random_shapes(rows, columns, name, distribution, seed):
    weight, fans = torch.empty(rows, columns), linear_fans((rows, columns))
    from_scheme(SCHEMES[name], distribution)(weight, fans, generator(seed))
    assert has_variance(weight, SCHEMES[name].variance(fans))


FANS = Fans(120, 480)


def drawn(distribution, mode="fan_in", scale=2.0):
    return VarianceScaling(scale, mode, distribution)(torch.empty(480, 120), FANS, generator(1))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(
    "wrong",
    [2 / FANS.fan_out, 2 / FANS.average, (2 / FANS.fan_in) ** 0.5, 1 / FANS.fan_in],
    ids=["fans swapped", "average fan", "std for variance", "scale forgotten"],
)
def test_a_wrong_variance_is_told_apart(distribution, wrong):
    assert has_variance(drawn(distribution), 2 / FANS.fan_in)
    assert not has_variance(drawn(distribution), wrong)


def test_a_truncated_normal_without_its_correction_is_told_apart():
    std = (2 / FANS.fan_in) ** 0.5
    plain = nn.init.trunc_normal_(torch.empty(480, 120), 0, std, -2 * std, 2 * std, generator=generator(1))
    assert not has_variance(plain, std**2)


def test_a_uniform_bounded_by_the_standard_deviation_is_told_apart():
    std = (2 / FANS.fan_in) ** 0.5
    assert not has_variance(torch.empty(480, 120).uniform_(-std, std, generator=generator(1)), std**2)


@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 120), ("fan_out", 480), ("fan_avg", 300)])
def test_the_mode_chooses_the_fan(mode, fan):
    assert VarianceScaling(3.0, mode).variance(FANS) == pytest.approx(3 / fan)
    assert has_variance(drawn("normal", mode, 3.0), 3 / fan)


@pytest.mark.parametrize(("distribution", "bound"), [("uniform", math.sqrt(3)), ("truncated_normal", 2 / 0.8796257)])
def test_bounded_distributions_reach_their_bound_and_stop_there(distribution, bound):
    largest = float(fill(torch.empty(200, 200), 4.0, distribution, generator()).abs().max()) / 2
    assert 0.99 * bound < largest <= bound * (1 + 1e-6)


@pytest.mark.parametrize(("cut", "expected"), [(2.0, 0.8796256610), (1.0, 0.5395600956), (8.0, 1.0)])
def test_the_standard_deviation_of_a_cut_normal(cut, expected):
    """Expected values by integration; scipy.stats.truncnorm gives the same."""
    assert truncated_std(cut) == pytest.approx(expected, abs=1e-8)


def test_the_standard_deviation_of_a_cut_normal_is_the_one_of_its_quantiles():
    normal, count = NormalDist(), 200_000
    low, high = normal.cdf(-2), normal.cdf(2)
    quantiles = (normal.inv_cdf(low + (high - low) * (i + 0.5) / count) for i in range(count))
    assert truncated_std() == pytest.approx(math.sqrt(sum(z * z for z in quantiles) / count), abs=1e-5)


TORCHS = {
    "he_normal": lambda w, g: nn.init.kaiming_normal_(w, nonlinearity="relu", generator=g),
    "he_uniform": lambda w, g: nn.init.kaiming_uniform_(w, nonlinearity="relu", generator=g),
    "glorot_normal": lambda w, g: nn.init.xavier_normal_(w, generator=g),
    "glorot_uniform": lambda w, g: nn.init.xavier_uniform_(w, generator=g),
    "lecun_normal": lambda w, g: nn.init.kaiming_normal_(w, nonlinearity="linear", generator=g),
    "lecun_uniform": lambda w, g: nn.init.kaiming_uniform_(w, nonlinearity="linear", generator=g),
}
SAME_AS = {"xavier_normal": "glorot_normal", "xavier_uniform": "glorot_uniform"}
SAME_AS |= {"kaiming_normal": "he_normal", "kaiming_uniform": "he_uniform"}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shape", [(50, 30), (20, 30)])
def test_a_preset_draws_the_same_numbers_as_torch(name, shape):
    ours = initializer(name)(torch.empty(shape), linear_fans(shape), generator(3))
    torchs = TORCHS[SAME_AS.get(name, name)](torch.empty(shape), generator(3))
    assert torch.allclose(ours, torchs, rtol=1e-5)


def test_without_settings_an_initialiser_is_lecuns_normal():
    assert VarianceScaling() == PRESETS["lecun_normal"]


def test_an_initialiser_fills_a_parameter_in_place_without_a_gradient():
    weight = nn.Parameter(torch.zeros(4, 6))
    assert VarianceScaling()(weight, Fans(6, 4), generator()) is weight
    assert weight.any()
    assert weight.requires_grad
    assert weight.grad_fn is None


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gets_the_numbers_of_single_precision_rounded(dtype, distribution):
    single = fill(torch.empty(300, 300), 0.01, distribution, generator())
    half = fill(torch.empty(300, 300, dtype=dtype), 0.01, distribution, generator())
    inside = single.to(dtype).abs() < 0.99 * single.abs().max()  # at the bound, rounding stops short of it
    assert torch.equal(half[inside], single.to(dtype)[inside])
    assert has_variance(half, 0.01)


BOUNDS = {"uniform": math.sqrt(3), "truncated_normal": 2 / truncated_std()}


@pytest.mark.parametrize("distribution", BOUNDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_no_rounding_leads_over_the_bound(dtype, distribution):
    over = 0
    for variance in (2e-10, 0.003, 0.01, 1 / 30, 0.3, 2 / 3, 1.0, 50.0):
        bound = BOUNDS[distribution] * math.sqrt(variance)
        weight = fill(torch.empty(200, 200, dtype=dtype), variance, distribution, generator())
        assert float(weight.double().abs().max()) <= bound
        assert float(weight.double().abs().max()) > 0.99 * bound or variance < 1e-9
        over += float(torch.tensor(bound, dtype=dtype)) > bound
    assert over or dtype == torch.float64, "somewhere plain rounding would have led over it"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_on_the_meta_device_there_is_nothing_to_draw(distribution, dtype):
    weight, draws = torch.empty(3, 4, dtype=dtype, device="meta"), generator()
    before = draws.get_state()
    assert fill(weight, 1.0, distribution, draws) is weight
    assert fill(weight, 1.0, distribution) is weight
    assert torch.equal(draws.get_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_generator_of_another_device_draws_what_it_would_have_drawn_there(distribution):
    there = fill(torch.empty(30, 30, device="cuda"), 1.0, distribution, generator())
    assert torch.equal(there.cpu(), fill(torch.empty(30, 30), 1.0, distribution, generator()))


def test_the_generator_decides_what_is_drawn():
    first, again, other = (fill(torch.empty(5, 5), 1.0, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_get_takes_an_initialiser_as_it_is_and_changes_its_distribution_on_request():
    own = VarianceScaling(0.5, "fan_out", "uniform")
    assert initializer(own) is own
    assert initializer("he_normal", "uniform") == PRESETS["he_uniform"]
    assert initializer(own, "truncated_normal") == VarianceScaling(0.5, "fan_out", "truncated_normal")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "fan_max"}, "no mode is called 'fan_max'; known are: fan_in, fan_out, fan_avg"),
        ({"distribution": "gauss"}, "no distribution is called 'gauss'; known are: normal, truncated_normal, uniform"),
        ({"scale": 0.0}, "scale must be positive and finite, got 0.0"),
        ({"scale": -1.0}, "scale must be positive and finite, got -1.0"),
        ({"scale": math.inf}, "scale must be positive and finite, got inf"),
        ({"scale": math.nan}, "scale must be positive and finite, got nan"),
    ],
    ids=str,
)
def test_a_setting_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(BadInput, match=message):
        VarianceScaling(**settings)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(BadInput, match="no initialiser is called 'he'") as caught:
        initializer("he")
    assert str(caught.value).split("known are: ")[1].split(", ") == list(PRESETS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 2), 1.0, "unifrom"), "no distribution is called 'unifrom'"),
        ((torch.zeros(2, 2), 0.0), "variance of weights must be positive and finite, got 0.0"),
        ((torch.zeros(2, 2), -1.0, "uniform"), "variance of weights must be positive and finite, got -1.0"),
        ((torch.zeros(2, 2), math.nan, "truncated_normal"), "variance of weights must be positive and finite, got nan"),
        ((torch.zeros(2, 2), math.inf), "variance of weights must be positive and finite, got inf"),
        ((torch.zeros(2, 2, dtype=torch.long), 1.0), "weights are floating-point numbers, got torch.int64"),
        ((torch.zeros(2, 2), 1.0, "normal", 3), "give a torch.Generator, such as .*, not 3"),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else value,
)
def test_fill_refuses_what_makes_no_sense_and_changes_nothing(arguments, message):
    with pytest.raises(BadInput, match=message):
        fill(*arguments)
    assert not arguments[0].any()


@pytest.mark.parametrize("fans", [Fans(0, 3), Fans(3, 0), Fans(-1, 3), Fans(math.nan, 3), Fans(3, math.inf)])
@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
def test_fans_that_no_weight_has_are_refused(fans, mode):
    with pytest.raises(BadInput, match="a weight needs fans of more than zero"):
        VarianceScaling(1.0, mode)(torch.empty(3, 3), fans, generator())


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: nn.Linear(6, 4), (6, 4)),
        (lambda: nn.Conv1d(6, 4, 3), (18, 12)),
        (lambda: nn.Conv2d(6, 4, 3, stride=2, groups=2), (27, 4.5)),
        (lambda: nn.Conv3d(1, 2, (1, 2, 3)), (6, 12)),
        (lambda: nn.ConvTranspose1d(6, 4, 3), (18, 12)),
        (lambda: nn.ConvTranspose2d(6, 4, 4, stride=2, groups=2), (12, 32)),
        (lambda: nn.ConvTranspose3d(3, 2, 2), (24, 16)),
    ],
)
def test_fans_of_modules(build, expected):
    assert fans_of(quiet(build)) == pytest.approx(expected)


@pytest.mark.parametrize("build", [nn.ReLU, lambda: nn.BatchNorm1d(3), lambda: nn.LSTM(3, 4)])
def test_a_layer_that_is_not_known_has_no_fans(build):
    assert fans_of(quiet(build)) is None
