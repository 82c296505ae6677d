"""Numbers, sizes, names and functions: what is taken, as what, and the one sentence for anything else."""

import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gainstage.errors import BadInput
from gainstage.theory import KNOWN
from gainstage.theory.checks import (
    DEEPEST,
    PROBES,
    check_function,
    check_known,
    check_pointwise,
    finite,
    flag,
    function_name,
    network_depth,
    not_negative,
    number,
    positive,
    power,
    shown,
    whole,
)

NO_NUMBERS = [None, "a", "1", True, [], [1.0], 1j, object(), torch.zeros(2), torch.tensor(True), np.zeros(2)]
ACCEPTS = {  # of 1, 0, -1, inf and NaN
    number: (1, 1, 1, 1, 1),
    finite: (1, 1, 1, 0, 0),
    positive: (1, 0, 0, 0, 0),
    not_negative: (1, 1, 0, 0, 0),
    power: (1, 1, 0, 1, 1),
}


@pytest.mark.parametrize("check", ACCEPTS)
@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: type(value).__name__)
def test_what_is_no_number_is_none(check, value):
    with pytest.raises(BadInput, match=r"^the thing must be .*, got "):
        check(value, "the thing")


@pytest.mark.parametrize("check", ACCEPTS)
def test_each_check_takes_its_range_and_no_more(check):
    def takes(value):
        try:
            found = check(value, "the thing")
        except BadInput:
            return False
        assert found == value or math.isnan(value)
        return True

    assert tuple(map(takes, (1.0, 0.0, -1.0, math.inf, math.nan))) == tuple(map(bool, ACCEPTS[check]))


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2), torch.tensor(2), torch.tensor(2.0), Fraction(2)])
def test_numbers_of_every_kind_become_floats(value):
    assert type(positive(value, "it")) is float
    assert positive(value, "it") == 2.0


def test_an_integer_that_no_float_holds_is_infinite():
    assert number(10**400, "it") == math.inf
    assert number(-(10**400), "it") == -math.inf


@pytest.mark.parametrize("value", [3, np.int32(3)])
def test_a_whole_number_is_one_of_pythons(value):
    assert type(whole(value, "it")) is int
    assert whole(value, "it", least=3) == 3


@pytest.mark.parametrize("value", [2, 3.0, "3", True, None, math.nan, [3], np.float64(3)], ids=repr)
def test_anything_else_is_no_whole_number(value):
    with pytest.raises(BadInput, match=r"^it must be a whole number of at least 3, got "):
        whole(value, "it", least=3)


def test_a_network_has_from_one_layer_to_very_many():
    assert (network_depth(1), network_depth(DEEPEST)) == (1, DEEPEST)
    for depth in (0, DEEPEST + 1):
        with pytest.raises(BadInput, match=f"the depth of a network.*, got {depth}"):
            network_depth(depth)


def test_a_flag_is_true_or_false():
    assert (flag(True, "it"), flag(False, "it")) == (True, False)
    for value in (1, 0, None, "no"):
        with pytest.raises(BadInput, match="it must be True or False, got"):
            flag(value, "it")


@pytest.mark.parametrize("name", ["c", None, ["a"], np.zeros(3), 0])
def test_an_unknown_name_lists_the_known_ones(name):
    check_known("a", ("a", "b"), "letter")
    with pytest.raises(BadInput, match=r"no letter is called .*; known are: a, b$"):
        check_known(name, ("a", "b"), "letter")


def test_a_value_is_shown_in_one_short_line():
    assert shown("abc") == "'abc'"
    assert shown(torch.zeros(100, 100)) == "a Tensor"
    assert shown("x" * 100) == "a str"


def test_functions_are_called_by_their_names():
    assert function_name(torch.tanh) == "tanh"
    assert function_name(partial(partial(F.elu, alpha=2.0), inplace=False)) == "elu"
    assert function_name(nn.GELU()) == "GELU"


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, z):
        return z


@pytest.mark.parametrize("function", [None, "tanh", 3, Unhashable(), []])
def test_a_function_can_be_called_and_remembered(function):
    for check in (check_function, check_pointwise):
        with pytest.raises(BadInput, match="must be something that can be called and hashed, got"):
            check(function)


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_known_takes_each_number_by_itself(name):
    check_pointwise(KNOWN[name].function)


def test_so_do_functions_that_are_not_finite_everywhere():
    for function in (torch.log, torch.zeros_like, lambda z: z * math.nan, lambda z: 1 / z, torch.sign, torch.detach):
        check_pointwise(function)


def fails(z):
    raise ValueError("no such\nthing")


BESIDE = "depends on the numbers beside it, or on chance"
NO_ACTIVATIONS = {
    "mean": (lambda z: z - z.mean(), BESIDE),
    "softmax": (lambda z: z.softmax(-1), BESIDE),
    "softmax over the first": (lambda z: z.softmax(0), BESIDE),
    "largest": (lambda z: z / z.max(), BESIDE),
    "smallest": (lambda z: z - z.min(), BESIDE),
    "size": (lambda z: z / z.numel(), BESIDE),
    "place": (lambda z: z * torch.arange(z.shape[-1]), BESIDE),
    "order": (lambda z: z.sort(-1).values, BESIDE),
    "running sum": (lambda z: z.cumsum(-1), BESIDE),
    "sum": (lambda z: z.sum(), r"it returns shape \(\) for shape"),
    "pair": (lambda z: (z, z), "it returns a tuple, not a tensor"),
    "number": (lambda z: 3.0, "it returns 3.0, not a tensor"),
    "complex": (lambda z: z + 1j, "it returns torch.complex128 for torch.float64; keep the dtype"),
    "bool": (lambda z: z > 0, "it returns torch.bool for torch.float64; keep the dtype"),
    "single": (lambda z: z.float(), "it returns torch.float32 for torch.float64; keep the dtype"),
    "in place": (torch.relu_, "it changes its input in place"),
    "error": (lambda z: z @ torch.zeros(2, 2), "on a tensor of torch.float64 it fails"),
    "no slope": (lambda z: torch.from_numpy(np.tanh(z.numpy())), "on a tensor of torch.float64 it fails"),
    "no backward pass": (lambda z: torch.heaviside(z, z.new_zeros(1)), "it fails .*is not implemented"),
    "long error": (fails, r"it fails \(no such\)$"),
    "two numbers": (lambda a, b: a + b, "on a tensor of torch.float64 it fails"),
}


@pytest.mark.parametrize("kind", NO_ACTIVATIONS)
def test_a_function_of_more_than_one_number_or_of_another_kind_is_refused(kind):
    function, why = NO_ACTIVATIONS[kind]
    with pytest.raises(BadInput, match=rf"cannot be an activation, a function of one number: .*{why}") as caught:
        check_pointwise(function)
    assert "\n" not in str(caught.value)


@pytest.mark.draws
def test_a_function_that_draws_is_refused():
    with pytest.raises(BadInput, match=BESIDE):
        check_pointwise(F.dropout)


def test_the_probes_are_left_as_they_are():
    before = PROBES.clone()
    with pytest.raises(BadInput):
        check_pointwise(torch.sigmoid_)
    assert torch.equal(PROBES, before)


def test_a_function_is_tried_out_within_activation_checkpointing():
    """What theory saves for its own gradients is no part of the network that runs again."""

    def part(x):
        check_pointwise(lambda z: z * torch.sigmoid(z))  # a new function each time: nothing is remembered
        return torch.tanh(x)

    x = torch.ones(4, requires_grad=True)
    checkpoint(part, x, use_reentrant=False).sum().backward()
    assert x.grad is not None
