"""The chapter's table: which variance fits which activation, and that it keeps the level."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
