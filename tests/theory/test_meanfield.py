"""Fixed points, correlation maps and depth scales against closed forms, published values and real wide networks."""

import math

import pytest
import torch

from gainstage.errors import BadInput
from gainstage.theory import leaky_relu, lookup, moments
from gainstage.theory.meanfield import (
    composed,
    correlation_map,
    edge_of_chaos,
    leaky_correlation,
    level_keeping,
    phase,
    power_for_depth,
    tailored_leaky_relu,
    tailored_slope,
)
from tests.tools import normal

TANH, RELU, SELU = lookup("tanh"), lookup("relu"), lookup("selu")


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


@pytest.mark.parametrize("activation", [TANH, SELU, lookup("gelu"), lookup("elu")])
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
    with pytest.raises(BadInput, match="weight power must be positive"):
        phase(TANH, weight_power, bias_power)


@pytest.mark.parametrize("slope", [0.0, 0.1, 0.3, 0.9])
@pytest.mark.parametrize("c", [0.0, 0.3, 0.9, 0.999])
def test_the_correlation_map_of_a_leaky_relu_has_a_closed_form(slope, c):
    by_quadrature = correlation_map(leaky_relu(slope), 2 / (1 + slope**2), 0.0, 1.0, c)
    assert leaky_correlation(slope, c) == pytest.approx(by_quadrature, abs=1e-4)


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


@pytest.mark.parametrize("name", ["tanh", "selu", "gelu", "elu", "silu"])
@pytest.mark.parametrize("depth", [10, 100, 1000])
def test_the_power_for_a_depth_uses_up_the_growth_that_is_allowed(name, depth):
    q = power_for_depth(lookup(name), depth)
    chi = level_keeping(lookup(name), q)[1]
    assert depth * abs(math.log(chi)) <= 1
    assert q == 1.0 or depth * abs(math.log(chi)) == pytest.approx(1.0, abs=1e-3)


def test_deeper_networks_take_smaller_pre_activations_and_relu_does_not_care():
    powers = [power_for_depth(TANH, depth) for depth in (3, 30, 300, 3000)]
    assert powers == sorted(powers, reverse=True)
    assert power_for_depth(RELU, 1000) == 1.0


def test_the_logistic_function_keeps_no_gradient_at_any_power():
    with pytest.raises(BadInput, match="no weights keep both level and gradient"):
        power_for_depth(lookup("logistic"), 10)
