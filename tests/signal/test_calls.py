"""Calls as they can be repeated on other numbers."""

import math

import pytest
import torch
from torch.nn import functional as F

from gainstage.signal.calls import is_number, recorded
from gainstage.theory.composition import Number, Slot, Step
from tests.tools import normal

X, Y, Z = normal(5), normal(5, seed=1), normal(5, seed=2)


@pytest.mark.parametrize(
    ("function", "arguments", "keywords"),
    [
        (torch.sin, (X,), {}),
        (torch.Tensor.mul, (X, Y), {}),
        (torch.rsub, (X, 2.5), {}),
        (torch.where, (X > 0, X, 0.1), {}),
        (torch.clamp, (X,), {"min": -0.5, "max": None}),
        (F.leaky_relu, (X, 0.2), {"inplace": False}),
        (torch.addcmul, (X, Y, Z), {"value": 0.5}),
        (torch.pow, (X, 2), {}),
        (torch.add, (X,), {"other": Y, "alpha": 3}),
    ],
)
def test_a_recorded_call_does_the_same_again(function, arguments, keywords):
    data = [a for a in (*arguments, *keywords.values()) if isinstance(a, torch.Tensor)]
    step = recorded(function, data, arguments, keywords)
    assert torch.equal(step(data), function(*arguments, **keywords))
    others = [1.5 * value if value.is_floating_point() else ~value for value in data]
    assert not torch.equal(step(others), step(data)), "or it had kept the numbers"


def test_each_tensor_has_the_slot_of_its_place_among_the_data():
    assert recorded(torch.sub, [X, Y], (Y, X), {}) == Step(torch.sub, (Slot(1), Slot(0)))
    assert recorded(torch.mul, [X], (X, X), {}) == Step(torch.mul, (Slot(0), Slot(0)))


def test_in_place_functions_do_not_change_what_they_are_given():
    step, before = recorded(torch.Tensor.sin_, [X], (X,), {}), X.clone()
    assert torch.equal(step([X]), before.sin())
    assert torch.equal(X, before)


def test_single_numbers_are_kept_as_numbers_and_keywords_in_one_order():
    step = recorded(torch.mul, [X], (X, torch.tensor(2.0)), {})
    assert step.arguments == (Slot(0), Number(2.0))
    left = recorded(torch.Tensor.mul, [X], (torch.tensor(2.0), X), {})
    assert torch.equal(left([X]), 2 * X), "a method of the number"
    one = recorded(torch.clamp, [X], (X,), {"min": 0.0, "max": 1.0})
    assert one == recorded(torch.clamp, [X], (X,), {"max": 1.0, "min": 0.0})
    assert hash(one) == hash(recorded(torch.clamp, [X], (X,), {"min": 0.0, "max": 1.0})), "theory works it out once"
    assert one != recorded(torch.clamp, [X], (X,), {"min": 0.0, "max": 2.0})


@pytest.mark.parametrize("argument", [object(), {"a": 1}, slice(2), math.sin])
def test_what_cannot_be_kept_makes_no_call(argument):
    assert recorded(torch.add, [X], (X, argument), {}) is None
    assert recorded(torch.add, [X], (X,), {"other": argument}) is None


def test_a_number_is_one_value_throughout_that_can_be_read_at_once():
    assert is_number(torch.tensor(2.0))
    assert is_number(torch.ones(1, 1))
    assert is_number(torch.full((3, 4), 0.5))
    assert not is_number(torch.tensor([1.0, 1.0, 2.0]))
    assert not is_number(torch.tensor([math.nan, math.nan]))
    assert not is_number(torch.ones(0))
    assert not is_number(torch.ones(2**16 + 1)), "too long to be looked through"
    assert not is_number(torch.ones(1, device="meta"))
