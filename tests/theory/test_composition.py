"""Functions put together from recorded calls: they compute what was written, are told apart, and do nothing twice."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gainstage.theory import Composite, Slot, moments, pointwise
from gainstage.theory.composition import IDENTITY, compose
from tests.theory.fields import step

PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=40)
Z = torch.linspace(-4, 4, 81, dtype=torch.float64)
NUMBERS = st.floats(-5, 5)


def then(inner, function, *arguments, **keywords):
    """`function` of what `inner` computes, as compose puts it together."""
    return compose(step(function, *arguments, **keywords), [inner])


def gelu_by_hand():
    """z * (0.5 * (1 + erf(z / sqrt 2)))."""
    inside = then(then(IDENTITY, torch.div, Slot(0), math.sqrt(2)), torch.erf)
    half = then(then(inside, torch.add, 1, Slot(0)), torch.mul, Slot(0), 0.5)
    return compose(step(torch.mul, Slot(0), Slot(1)), [IDENTITY, half])


def silu_by_hand():
    return compose(step(torch.mul, Slot(0), Slot(1)), [IDENTITY, then(IDENTITY, torch.sigmoid)])


def leaky_by_hand(positive=0, leaking=1):
    """torch.where(z > 0, z, 0.2 z), the last two by number."""
    parts = [IDENTITY, then(IDENTITY, torch.mul, Slot(0), 0.2)]
    above = then(IDENTITY, torch.gt, Slot(0), 0)
    return compose(step(torch.where, Slot(0), Slot(1), Slot(2)), [above, parts[positive], parts[leaking]])


WRITTEN_OUT = [
    (gelu_by_hand, F.gelu),
    (silu_by_hand, F.silu),
    (leaky_by_hand, lambda z: F.leaky_relu(z, 0.2)),
    (lambda: then(IDENTITY, torch.sin_), torch.sin),
    (lambda: compose(step(torch.add, Slot(0), Slot(1)), [IDENTITY, then(IDENTITY, torch.sin_)]), lambda z: z + z.sin()),
]


@pytest.mark.parametrize(("by_hand", "function"), WRITTEN_OUT, ids=["gelu", "silu", "where", "sin_", "z + sin_"])
def test_a_function_written_out_computes_what_its_closed_form_does(by_hand, function):
    before = Z.clone()
    assert torch.allclose(by_hand()(Z), function(Z), rtol=1e-12)
    assert torch.equal(Z, before), "an in-place step must not touch what it was given"


@pytest.mark.parametrize(("by_hand", "function"), WRITTEN_OUT, ids=["gelu", "silu", "where", "sin_", "z + sin_"])
@pytest.mark.parametrize("q", [0.3, 4.0])
def test_it_has_the_moments_of_its_closed_form(by_hand, function, q):
    found, expected = moments(by_hand().activation, q), moments(pointwise(function).activation, q)
    for name in ("mean", "second", "slope", "fourth"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9, abs=1e-12)


def test_slots_are_told_apart():
    swapped = leaky_by_hand(positive=1, leaking=0)
    assert torch.allclose(swapped(Z), torch.where(Z > 0, 0.2 * Z, Z))
    assert not torch.allclose(swapped(Z), leaky_by_hand()(Z))


def test_slots_in_tuples_and_keywords_are_filled_too():
    def blend(pair, weight):
        return pair[0] * weight + pair[1]

    sine, cosine, tanh = (then(IDENTITY, function) for function in (torch.sin, torch.cos, torch.tanh))
    call = step(blend, (Slot(2), Slot(0)), weight=Slot(1))
    assert torch.allclose(compose(call, [sine, cosine, tanh])(Z), Z.tanh() * Z.cos() + Z.sin())
    assert torch.allclose(then(IDENTITY, F.elu, Slot(0), alpha=2.0)(Z), F.elu(Z, 2.0))


def test_whatever_comes_out_has_the_type_of_what_goes_in():
    assert then(IDENTITY, torch.gt, Slot(0), 0)(Z).dtype == torch.float64
    assert then(IDENTITY, lambda z: 2)(Z) == 2.0
    assert pointwise(lambda z: z.float())(Z).dtype == torch.float64


def test_equal_steps_make_equal_functions():
    for by_hand, _ in WRITTEN_OUT[:3]:
        assert by_hand() == by_hand()
        assert hash(by_hand()) == hash(by_hand())
    assert len({gelu_by_hand(), silu_by_hand(), leaky_by_hand(), leaky_by_hand(1, 0), IDENTITY}) == 5


class Counted:
    """A function that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, z):
        self.calls += 1
        return z.sin()


def test_what_was_worked_out_for_one_serves_for_its_equals():
    counted = Counted()
    first = moments(then(then(IDENTITY, counted), torch.exp).activation, 1.3)
    calls = counted.calls
    assert calls > 0
    assert moments(then(then(IDENTITY, counted), torch.exp).activation, 1.3) is first
    assert counted.calls == calls
    moments(then(then(IDENTITY, counted), torch.cosh).activation, 1.3)
    assert counted.calls > calls, "another function must be worked out anew"


def test_steps_in_common_run_once():
    counted = Counted()
    shared = then(IDENTITY, counted)
    whole = compose(
        step(torch.mul, Slot(0), Slot(1)), [then(shared, torch.exp), then(then(shared, torch.exp), torch.tanh)]
    )
    assert torch.allclose(whole(Z), Z.sin().exp() * Z.sin().exp().tanh())
    assert counted.calls == 1
    assert len(whole.steps) == 4


def test_the_name_lists_the_steps_once():
    assert silu_by_hand().name == "sigmoid+mul"
    assert then(then(IDENTITY, torch.sin_), torch.sin_).name == "sin"
    assert IDENTITY.name == "identity"
    assert then(IDENTITY, Counted()).name == "function"


def line(slope, shift, inner=IDENTITY):
    return then(then(inner, torch.mul, Slot(0), slope), torch.add, shift, Slot(0))


@PROPERTY
@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_affine_functions_of_affine_functions_are_affine(slope, shift, inner_slope, inner_shift):
    found = line(slope, shift, line(inner_slope, inner_shift)).affine
    assert found == pytest.approx((slope * inner_slope, slope * inner_shift + shift), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda z: z, (1, 0)),
        (lambda z: z * 1e-12, (1e-12, 0)),
        (lambda z: 1e6 * z - 3, (1e6, -3)),
        (lambda z: torch.full_like(z, 0.7), (0, 0.7)),
        (lambda z: -z / 2, (-0.5, 0)),
        (torch.neg, (-1, 0)),
    ],
)
def test_straight_functions_are_affine(function, expected):
    assert pointwise(function).affine == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "function",
    [F.relu, F.leaky_relu, F.hardtanh, F.relu6, torch.tanh, torch.sin, torch.abs, torch.sign, F.softplus, torch.square],
)
def test_bent_functions_are_not_affine(function):
    assert pointwise(function).affine is None


@pytest.mark.parametrize("function", [torch.floor, torch.round, torch.frac, lambda z: torch.cos(2 * math.pi * z)])
def test_functions_that_are_straight_on_whole_numbers_alone_are_not_affine(function):
    assert pointwise(function).affine is None


@pytest.mark.parametrize("function", [torch.log, torch.reciprocal, lambda z: z * math.inf, lambda z: z * math.nan])
def test_what_is_not_finite_is_not_affine(function):
    assert pointwise(function).affine is None


def test_the_identity_is_a_composite_of_no_steps():
    assert Composite() == IDENTITY
    assert torch.equal(IDENTITY(Z), Z)
    assert IDENTITY.affine == (1, 0)
    assert compose(step(torch.tanh), [IDENTITY]) == pointwise(torch.tanh)
