"""Fixed points, correlation maps and depth scales against closed forms, published values and real wide networks."""

import math

import pytest
import torch

from gainstage.errors import BadInput
from gainstage.theory import expectation, leaky_relu, lookup, moments, selu_constants
from gainstage.theory.meanfield import (
    DEGREES,
    FARTHEST,
    RUNAWAY,
    composed,
    correlation_map,
    depth_for_power,
    edge_of_chaos,
    keeps_gradient,
    keeps_level,
    keeps_signal,
    leaky_correlation,
    level_exponent,
    level_keeping,
    phase,
    power_for_depth,
    similarity_series,
    tailored_leaky_relu,
    tailored_slope,
)
from gainstage.theory.quadrature import derivative
from tests.tools import normal

TANH, RELU, SELU, GELU, ELU = (lookup(name) for name in ("tanh", "relu", "selu", "gelu", "elu"))
ALPHA, SCALE = selu_constants()


def square_less_one(z):
    return z * z - 1


def test_selu_with_lecun_weights_stays_at_variance_one():
    assert phase(SELU, 1.0).q == pytest.approx(1.0, abs=1e-9)


def test_relu_with_he_weights_is_critical_and_with_torchs_default_ordered():
    assert phase(RELU, 2.0).name == "critical"
    default = phase(RELU, 1 / 3)
    assert default.name == "ordered"
    assert default.chi == pytest.approx(1 / 6)
    assert default.trainable_depth == pytest.approx(6 / math.log(6), rel=1e-6)


@pytest.mark.parametrize(("weight_power", "name"), [(0.5, "ordered"), (1.0, "critical"), (2.78, "chaotic")])
def test_tanh_without_bias_changes_phase_at_one(weight_power, name):
    assert phase(TANH, weight_power).name == name


def test_the_ordered_phase_makes_samples_alike_and_the_chaotic_one_keeps_them_apart():
    assert phase(TANH, 1.5, 0.3).correlation == 1.0
    assert phase(TANH, 3.0, 0.05).correlation < 0.9


@pytest.mark.parametrize("activation", [TANH, SELU, GELU, ELU])
def test_the_edge_of_chaos_is_a_fixed_point_with_chi_one(activation):
    weight_power, bias_power = edge_of_chaos(activation, 1.0)
    at = moments(activation, 1.0)
    assert weight_power * at.slope == pytest.approx(1.0)
    assert weight_power * at.second + bias_power == pytest.approx(1.0)
    assert weight_power * at.slope != pytest.approx(1.0 * at.slope / at.second), "keeping the level is something else"


def test_there_is_no_edge_of_chaos_for_the_logistic_function():
    with pytest.raises(BadInput, match="logistic has no edge of chaos"):
        edge_of_chaos(lookup("logistic"))


@pytest.mark.parametrize(("weight_power", "bias_power"), [(0.0, 0.0), (-1.0, 0.0), (1.0, -0.1), (math.inf, 0.0)])
def test_impossible_powers_get_one_sentence(weight_power, bias_power):
    with pytest.raises(BadInput, match=r"a (weight power must be positive|bias power must be zero or more)"):
        phase(TANH, weight_power, bias_power)


@pytest.mark.parametrize("slope", [0.0, 0.1, 0.3, 0.9])
@pytest.mark.parametrize("c", [0.0, 0.3, 0.9, 0.999])
def test_the_correlation_map_of_a_leaky_relu_has_a_closed_form(slope, c):
    by_quadrature = correlation_map(leaky_relu(slope), 2 / (1 + slope**2), 0.0, 1.0, c)
    assert leaky_correlation(slope, c) == pytest.approx(by_quadrature, abs=1e-4)


@pytest.mark.parametrize(
    ("activation", "weight_power", "bias_power", "chi"),
    [
        (RELU, 2.0, 0.1, 1.0),  # grows by the bias alone
        (RELU, 2.0, 1e-7, 1.0),
        (RELU, 3.0, 0.0, 1.5),
        (leaky_relu(0.5), 3.0, 0.2, 3 * (1 + 0.5**2) / 2),
        (lookup("identity"), 1.0, 0.1, 1.0),
        (GELU, 4.0, 0.0, 2.0),
        (SELU, 2.0, 0.0, SCALE**2),
    ],
)
def test_a_level_that_grows_without_end_has_the_slopes_at_infinity(activation, weight_power, bias_power, chi):
    found = phase(activation, weight_power, bias_power)
    assert found.q == math.inf
    assert found.chi == pytest.approx(chi, rel=1e-12)
    assert (found.correlation, found.correlation_scale) == (1.0, math.inf)
    assert found.level_scale == (math.inf if chi == 1 else pytest.approx(1 / math.log(chi)))
    assert found.trainable_depth == 6 * found.level_scale


@pytest.mark.parametrize(
    ("activation", "weight_power", "chi"),
    [
        (TANH, 1.0, 1.0),  # falls like 1 / (2 layers)
        (TANH, 0.5, 0.5),
        (RELU, 1 / 3, 1 / 6),
        (ELU, 1.0, 1.0),
        (GELU, 2.0, 0.5),
        (SELU, 0.3, 0.3 * SCALE**2 * (1 + ALPHA**2) / 2),
    ],
)
def test_a_level_that_falls_to_nothing_has_the_slopes_at_zero(activation, weight_power, chi):
    found = phase(activation, weight_power)
    assert found.q == 0.0
    assert found.chi == pytest.approx(chi, rel=1e-8)
    assert (found.correlation, found.correlation_scale) == (1.0, math.inf)
    assert found.level_scale == (math.inf if chi == 1 else pytest.approx(1 / abs(math.log(chi))))


@pytest.mark.parametrize(
    ("activation", "weight_power", "bias_power"),
    [(TANH, 1.0001, 0.0), (TANH, 1.0, 1e-12), (TANH, 0.5, 1e-14), (GELU, 2.0, 0.1), (SELU, 0.9, 0.05)],
)
def test_the_level_is_a_fixed_point_however_slowly_it_is_approached(activation, weight_power, bias_power):
    q = phase(activation, weight_power, bias_power).q
    assert weight_power * moments(activation, q).second + bias_power == pytest.approx(q, rel=1e-9)


@pytest.mark.parametrize("deficit", [1e-2, 1e-4, 1e-6])
def test_a_relu_near_the_weights_that_keep_its_level_ends_where_the_geometric_series_does(deficit):
    found = phase(RELU, 2 * (1 - deficit), 0.1)
    assert found.q == pytest.approx(0.1 / deficit, rel=1e-5)
    assert found.level_scale == pytest.approx(1 / deficit, rel=1e-2)


@pytest.mark.parametrize("weight_power", [1.5, 2.78])
def test_of_two_fixed_points_the_level_takes_the_one_that_attracts(weight_power):
    """Without biases zero is one as well."""
    q = phase(TANH, weight_power).q
    assert weight_power * moments(TANH, q / 2).second > q / 2
    assert weight_power * moments(TANH, q * 2).second < q * 2


def test_uncorrelated_samples_of_an_odd_activation_become_so_at_the_rate_of_the_linear_part():
    """The correlation map's slope at 0 is weight_power (E f')^2, by Stein's lemma."""
    found = phase(TANH, 2.78)
    slope = 2.78 * expectation(lambda z: derivative(torch.tanh, z), found.q) ** 2
    assert found.correlation == pytest.approx(0.0, abs=1e-4)
    assert found.correlation_scale == pytest.approx(1 / abs(math.log(slope)), rel=1e-3)


def test_where_every_level_is_kept_none_is_approached():
    found = phase(RELU, 2.0)
    assert (found.q, found.level_scale) == (2.0, math.inf)


@pytest.mark.parametrize("activation", [TANH, SELU, GELU, ELU])
@pytest.mark.parametrize("q", [0.01, 1.0])
def test_the_levels_exponent_is_the_slope_in_logarithms(activation, q):
    above, below = (moments(activation, q * factor).second for factor in (1.001, 1 / 1.001))
    slope = math.log(above / below) / (2 * math.log(1.001))
    assert level_exponent(activation, q) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("c", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("slope", [0.0, 0.3, 0.9])
def test_the_power_series_is_the_correlation_map_of_a_leaky_relu(slope, c):
    series = similarity_series(leaky_relu(slope), 0.7)
    assert float(series @ c**DEGREES) == pytest.approx(leaky_correlation(slope, c), abs=1e-6)


@pytest.mark.parametrize("activation", [TANH, GELU])
def test_the_power_series_is_the_correlation_map_of_smooth_activations(activation):
    by_quadrature = correlation_map(activation, level_keeping(activation, 0.5)[0], 0.0, 0.5, 0.6)
    assert float(similarity_series(activation, 0.5) @ 0.6**DEGREES) == pytest.approx(by_quadrature, abs=1e-9)


def real_correlation(activation, weight_power, bias_power, depth, width=1500):
    """Correlation of two samples' pre-activations in one real wide random network."""
    x = normal(2, width)
    x = x / x.norm(dim=1, keepdim=True) * width**0.5
    for layer in range(depth):
        h = x if layer == 0 else activation.function(x)
        weight = normal(width, width, seed=layer + 1) * (weight_power / width) ** 0.5
        x = h @ weight.T + normal(width, seed=1000 + layer) * bias_power**0.5
    return float(torch.cosine_similarity(x[0], x[1], dim=0)), float(x.square().mean())


def test_real_wide_networks_follow_the_map():
    weight_power, bias_power, depth = 1.5, 0.1, 6
    q = weight_power * 1.0 + bias_power
    c = (weight_power * 0.0 + bias_power) / q
    for _ in range(depth - 1):
        after = correlation_map(TANH, weight_power, bias_power, q, c)
        q, c = weight_power * moments(TANH, q).second + bias_power, after
    measured, power = real_correlation(TANH, weight_power, bias_power, depth)
    assert measured == pytest.approx(c, abs=4 * depth**0.5 * 1500**-0.5)
    assert power == pytest.approx(q, rel=4 * depth**0.5 * (2 / 1500) ** 0.5)
    assert abs(measured - 0.0) > 0.3, "a map that forgets the bias would be noticed"


@pytest.mark.parametrize("depth", [20, 50, 100, 1000])
def test_the_tailored_slope_brings_uncorrelated_inputs_to_the_similarity_asked_for(depth):
    slope = tailored_slope(depth, 0.9)
    assert composed(lambda c: leaky_correlation(slope, c), depth, 0.0) == pytest.approx(0.9, abs=1e-6)
    assert composed(lambda c: leaky_correlation(0.01, c), depth, 0.0) > 0.93, "the usual leak does not"


def test_deeper_networks_need_a_straighter_activation():
    slopes = [tailored_slope(depth) for depth in (1, 20, 100, 1000)]
    assert slopes == sorted(slopes)
    assert slopes[0] == 0.0
    assert slopes[-1] < 1


def test_the_tailored_activation_has_that_slope():
    z = torch.tensor([-2.0, 3.0], dtype=torch.float64)
    assert tailored_leaky_relu(100).function(z).tolist() == pytest.approx([-2 * tailored_slope(100), 3.0])


@pytest.mark.parametrize(("depth", "similarity"), [(0, 0.9), (10, 0.0), (10, 1.0)])
def test_an_impossible_tailoring_gets_one_sentence(depth, similarity):
    with pytest.raises(BadInput):
        tailored_slope(depth, similarity)


DEPTHS = [("tanh", 10), ("tanh", 1000), ("selu", 100), ("elu", 100), ("gelu", 20), ("silu", 20), ("mish", 40)]


@pytest.mark.parametrize(("name", "depth"), DEPTHS)
def test_the_power_for_a_depth_is_the_largest_that_keeps_gradient_level_and_signal(name, depth):
    def keeps(q):
        activation = lookup(name)
        weight_power, chi = level_keeping(activation, q)
        end = composed(lambda level: weight_power * moments(activation, level).second, depth, math.e * q)
        similar = composed(lambda c: correlation_map(activation, weight_power, 0.0, q, c), depth, 0.0)
        return depth * abs(math.log(chi)) <= 1 and end <= math.e**2 * q and similar <= 0.9

    q = power_for_depth(lookup(name), depth)
    assert keeps(0.9999 * q)
    assert q == 1.0 or not keeps(1.0001 * q)


def test_each_of_the_three_may_be_the_one_that_limits_the_power():
    def broken(activation, q, depth):
        kept = (keeps_gradient(activation, q, depth, 1.0), keeps_level(activation, q, depth, 1.0))
        return tuple(not keeps for keeps in (*kept, keeps_signal(activation, q, depth)))

    assert broken(TANH, 1.01 * power_for_depth(TANH, 100), 100) == (True, False, False)
    assert broken(GELU, 1.01 * power_for_depth(GELU, 20), 20) == (False, True, False)
    assert broken(RELU, 1.0, 13) == (False, False, True)


@pytest.mark.parametrize(("name", "q", "sign"), [("softplus", 100.0, -1), ("elu", 1.0, 1)])
def test_a_gradient_may_neither_vanish_nor_explode(name, q, sign):
    rate = math.log(level_keeping(lookup(name), q)[1])
    assert rate * sign > 0
    assert keeps_gradient(lookup(name), q, math.floor(0.99 / abs(rate)), 1.0)
    assert not keeps_gradient(lookup(name), q, math.ceil(1.01 / abs(rate)), 1.0)


@pytest.mark.parametrize(("depth", "q"), [(100, 0.1117865521), (1000, 0.0297118480)])
def test_for_tanh_the_gradient_alone_sets_the_power(depth, q):
    assert power_for_depth(TANH, depth) == pytest.approx(q, rel=1e-8)


def test_a_leaky_relu_keeps_the_signal_through_the_depth_it_is_tailored_to():
    assert power_for_depth(RELU, 12) == 1.0
    for depth in (13, 100, 1000):
        slope = tailored_slope(depth)
        assert power_for_depth(leaky_relu(slope), depth) == 1.0
        with pytest.raises(BadInput, match="no weights keep both gradient and signal"):
            power_for_depth(leaky_relu(slope - 0.01), depth)


def test_an_unstable_level_is_refused_where_it_could_run_away():
    """GELU's slope at infinity is that of ReLU, twice in power what it is at 0: the factor is 2^depth at worst."""
    deepest = int(RUNAWAY / math.log(2))
    assert power_for_depth(GELU, deepest) < 0.01
    with pytest.raises(BadInput, match="stable level through 24 layers of gelu; use tanh, ELU or tailored_leaky_relu"):
        power_for_depth(GELU, deepest + 1)


@pytest.mark.parametrize("name", ["logistic", "softplus"])
def test_an_offset_at_zero_keeps_no_gradient_at_any_power(name):
    with pytest.raises(BadInput, match=f"no weights keep both gradient and signal .* through 10 layers of {name}"):
        power_for_depth(lookup(name), 10)


def test_a_network_has_a_layer():
    with pytest.raises(BadInput, match="depth of a network, in layers, must be a whole number of at least 1, got 0"):
        power_for_depth(TANH, 0)


@pytest.mark.parametrize("c", [-1.0, -0.7, -0.2])
def test_the_correlation_map_is_for_opposite_samples_too(c):
    by_quadrature = correlation_map(RELU, 2.0, 0.0, 1.0, c)
    assert leaky_correlation(0.0, c) == pytest.approx(by_quadrature, abs=1e-4)
    assert correlation_map(TANH, 1.5, 0.0, 1.0, c) == pytest.approx(-correlation_map(TANH, 1.5, 0.0, 1.0, -c), abs=1e-6)


@pytest.mark.parametrize("c", [2, -1.01, math.nan])
def test_a_correlation_lies_between_minus_one_and_one(c):
    with pytest.raises(BadInput, match=r"a correlation (lies between -1 and 1|must be a finite number), got"):
        correlation_map(TANH, 1.5, 0.0, 1.0, c)


@pytest.mark.parametrize("name", ["tanh", "selu", "gelu", "silu"])
@pytest.mark.parametrize("depth", [5, 20])
def test_the_depth_for_a_power_is_the_other_way_round(name, depth):
    q = power_for_depth(name, depth)
    assert depth_for_power(name, 0.99 * q) >= depth
    assert q == 1.0 or depth_for_power(name, 1.01 * q) < depth


@pytest.mark.parametrize(
    ("activation", "layers"),
    [("relu", 12), ("logistic", 0), ("identity", FARTHEST), (square_less_one, 0), (torch.exp, 0), (torch.sign, 0)],
)
def test_some_levels_can_be_kept_but_not_survived(activation, layers):
    level_keeping(activation, 1.0)
    assert depth_for_power(activation) == layers


@pytest.mark.parametrize("growth", [0.5, 1.0, 2.0])
def test_for_tanh_the_gradient_sets_the_depth(growth):
    assert depth_for_power("tanh", 1.0, growth) == math.floor(growth / math.log(level_keeping("tanh", 1.0)[1]))


@pytest.mark.parametrize("q", [0.1, 1.0])
def test_a_kept_level_from_which_all_others_run_away(q):
    """z^2 - 1: E f^2 = 3 q^2 - 2 q + 1, of the exponent (6 q^2 - 2 q) / E f^2."""
    second = 3 * q * q - 2 * q + 1
    assert level_exponent(lookup(square_less_one), q) == pytest.approx((6 * q * q - 2 * q) / second, abs=1e-9)
    assert phase(square_less_one, level_keeping(square_less_one, 1.0)[0]).q == pytest.approx(1 / 3), (
        "not the level 1 that they keep"
    )


def test_a_level_that_stops_being_a_number_is_refused_not_guessed():
    with pytest.raises(BadInput, match=r"E f\^2 = nan"):
        phase(lambda z: torch.where(z > 30, math.nan, 2 * z), 1.0)
    q = power_for_depth(lambda z: torch.where(z > 15, math.nan, z), 5)
    assert 12 * math.sqrt(math.e * q) == pytest.approx(15, rel=0.01), "levels up to e times as high stay in its range"


def test_where_a_function_is_silent_no_weights_keep_anything():
    with pytest.raises(BadInput, match="no weights keep both gradient and signal"):
        power_for_depth(lambda z: torch.relu(z - 1), 5)
