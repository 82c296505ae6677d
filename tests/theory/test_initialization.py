"""The chapter's table: which variance fits which activation, and that it keeps the level."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gainstage.errors import BadInput
from gainstage.theory import GLOROT, HE, KNOWN, LECUN, Fans, Scheme, leaky_relu, lookup, moments, scheme_for

PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=40)
FANS = Fans(30, 10)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("none", GLOROT),
        ("tanh", GLOROT),
        ("logistic", GLOROT),
        ("hardsigmoid", GLOROT),
        ("relu", HE),
        ("elu", HE),
        ("gelu", HE),
        ("silu", HE),
        ("mish", HE),
        ("selu", LECUN),
    ],
)
def test_the_row_of_the_table_for_an_activation(name, scheme):
    assert scheme_for(lookup(name)) == scheme


def test_nothing_behind_the_layer_takes_glorot():
    assert scheme_for(None) == GLOROT


@pytest.mark.parametrize(("scheme", "variance"), [(GLOROT, 1 / 20), (HE, 2 / 30), (LECUN, 1 / 30)])
def test_variances_of_the_rows(scheme, variance):
    assert scheme.variance(FANS) == pytest.approx(variance)


@pytest.mark.parametrize(("mode", "variance"), [("fan_in", 0.1), ("fan_out", 0.3), ("fan_avg", 0.15)])
def test_the_mode_chooses_the_fan(mode, variance):
    assert Scheme("own", 3.0, mode).variance(FANS) == pytest.approx(variance)


@PROPERTY
@given(st.floats(0, 3))
def test_a_leaky_relu_takes_its_slope_into_account(slope):
    scheme = scheme_for(leaky_relu(slope))
    assert (scheme.name, scheme.mode) == ("He", "fan_in")
    assert scheme.scale == pytest.approx(2 / (1 + slope**2), rel=1e-9)


@pytest.mark.parametrize(("name", "slope"), [("leaky_relu", 0.01), ("prelu", 0.25), ("rrelu", 11 / 48)])
def test_named_leaky_relus_take_their_slope_too(name, slope):
    assert scheme_for(lookup(name)).scale == pytest.approx(2 / (1 + slope**2), rel=1e-9)


def keeps_level(scheme, activation):
    """A stage's output is as strong as its input: fan_in * variance * E f(z)^2 / q = 1."""
    q = 1.0
    return scheme.variance(FANS) * FANS.fan_in * moments(activation, q).second / q == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("activation", [lookup("relu"), lookup("selu"), leaky_relu(0.3)], ids=lambda a: a.name)
def test_he_and_lecun_keep_the_level(activation):
    assert keeps_level(scheme_for(activation), activation)


@pytest.mark.parametrize(("scheme", "name"), [(HE, "selu"), (LECUN, "relu"), (GLOROT, "relu"), (HE, "prelu")])
def test_the_row_of_another_activation_does_not_keep_the_level(scheme, name):
    assert not keeps_level(scheme, lookup(name))


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_activation_has_a_usable_row(name):
    variance = scheme_for(lookup(name)).variance(FANS)
    assert math.isfinite(variance)
    assert 1 / 30 <= variance <= 2 / 30


@pytest.mark.parametrize(
    ("given", "scheme"), [("tanh", GLOROT), (torch.relu, HE), (nn.SELU, LECUN), ("linear", GLOROT)]
)
def test_the_row_may_be_asked_for_by_name_or_function(given, scheme):
    assert scheme_for(given) == scheme


def test_a_function_of_ones_own_gets_the_variance_that_keeps_its_level():
    found = scheme_for(torch.sin)
    assert (found.name, found.mode) == ("exact", "fan_in")
    assert found.scale == pytest.approx(2 / (1 - math.exp(-2)), rel=1e-9), "E sin^2 = (1 - e^-2) / 2"


@pytest.mark.parametrize("fans", [Fans(0, 3), Fans(3, 0), Fans(math.nan, 3), Fans(3, math.inf)])
def test_fans_that_no_weight_has_are_refused(fans):
    with pytest.raises(BadInput, match="a weight needs fans of more than zero, got"):
        HE.variance(fans)


@pytest.mark.parametrize("settings", [{"scale": 0.0}, {"scale": math.nan}, {"mode": "fan_max"}, {"mode": None}])
def test_a_scheme_that_makes_no_sense_is_refused(settings):
    with pytest.raises(BadInput, match=r"scale must be positive and finite|no mode is called .*; known are: fan_in"):
        Scheme(**{"name": "own", "scale": 1.0, "mode": "fan_in", **settings})
