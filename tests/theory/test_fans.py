"""Fans, against a count of the terms that really meet in an output and of the outputs that an input really reaches."""

from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional as F

from gainstage.errors import BadInput
from gainstage.theory import Fans, convolution_fans, linear_fans

LENGTH, MARGIN = 72, 24  # inputs and outputs in the middle third see no border


@dataclass(frozen=True)
class Case:
    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    transposed: bool = False

    @property
    def shape(self):
        first, second = (self.inputs, self.outputs) if self.transposed else (self.outputs, self.inputs)
        return first, second // self.groups, self.kernel


CASES = [
    Case(4, 6, 3),
    Case(4, 6, 4, stride=2),
    Case(6, 4, 5, stride=3),
    Case(4, 8, 3, groups=4),
    Case(6, 9, 3, stride=2, groups=3, dilation=2),
    Case(4, 6, 3, transposed=True),
    Case(4, 6, 4, stride=2, transposed=True),
    Case(6, 9, 5, stride=3, groups=3, transposed=True),
]


def middle(tensor):
    third = tensor.shape[-1] // 3
    return tensor[..., third : third + third // 6 * 6]


def counted(case):
    """Run an all-ones convolution: each output is the number of its terms, each gradient the number of its readers."""
    x = torch.ones(1, case.inputs, LENGTH, requires_grad=True)
    convolve = F.conv_transpose1d if case.transposed else F.conv1d
    output = convolve(x, torch.ones(case.shape), stride=case.stride, groups=case.groups, dilation=case.dilation)
    output.sum().backward()
    return Fans(float(middle(output.detach()).mean()), float(middle(x.grad).mean()))


def formula(case):
    return convolution_fans(case.shape, (case.stride,), case.groups, case.transposed)


def without_stride(case):
    return convolution_fans(case.shape, (), case.groups, case.transposed)


def without_groups(case):
    return convolution_fans(case.shape, (case.stride,), 1, case.transposed)


def swapped(case):
    return Fans(*reversed(formula(case)))


def not_transposed(case):
    return convolution_fans(case.shape, (case.stride,), case.groups)


def agree(found, case):
    return tuple(found(case)) == pytest.approx(tuple(counted(case)), rel=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_convolution_fans_count_terms_and_readers(case):
    assert agree(formula, case)


@pytest.mark.parametrize("mutant", [without_stride, without_groups, swapped, not_transposed])
def test_the_count_rejects_wrong_fans(mutant):
    assert not all(agree(mutant, case) for case in CASES)


@pytest.mark.parametrize(
    ("shape", "stride", "expected"),
    [((64, 3, 7, 7), (2, 2), (147, 784)), ((16, 8, 1, 1), (1, 1), (8, 16)), ((10, 2, 3, 3, 3), (3, 1, 1), (54, 90))],
)
def test_fans_of_kernels_with_several_dimensions(shape, stride, expected):
    assert convolution_fans(shape, stride) == pytest.approx(expected)


def test_linear_fans_are_columns_and_rows():
    assert linear_fans((7, 3)) == (3, 7)


def test_average_lies_in_the_middle():
    assert Fans(3, 8).average == 5.5


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("stride", [2, (2,), [2]])
def test_a_single_stride_counts_for_every_dimension(stride, transposed):
    found = convolution_fans((6, 4, 3, 3), stride, 1, transposed)
    assert found == convolution_fans((6, 4, 3, 3), (2, 2), 1, transposed)
    assert found != convolution_fans((6, 4, 3, 3), 1, 1, transposed)


def test_a_layer_without_inputs_has_fans_of_zero():
    assert linear_fans((3, 0)) == (0, 3)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: linear_fans((3, 4, 5)), r"a linear weight has the shape \(out, in\), got \(3, 4, 5\)"),
        (lambda: convolution_fans((3,)), r"weight has the shape \(out, in / groups, \*kernel\), got \(3,\)"),
        (lambda: convolution_fans((4, 3, 3), (1, 2)), r"one for each of its 1 dimensions, got \(1, 2\)"),
        (lambda: convolution_fans((4, 3, 3), groups=3), "divide into its groups, got 4 channels and 3 groups"),
    ],
)
def test_sizes_that_do_not_fit_get_one_sentence(build, sentence):
    with pytest.raises(BadInput, match=sentence):
        build()
