"""What a layer's weights are, whichever function of torch it is: an operation that mixes its inputs with weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gainstage.signal import operations as ops
from gainstage.theory import Fans, convolution_fans, linear_fans


@dataclass(frozen=True)
class Weights:
    """A layer's weight and bias; None where it has several (recurrent layers) or none. fans: None where they are no help,
    for only a row of the weight is read (embeddings), or the inputs meet each other (bilinear). channel_dim: where the
    output has its units, of which there are `units` (0 where the weight does not tell)."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    fans: Fans | None = None
    channel_dim: int = -1
    units: int = 0


def weights_of(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], is_weight: Callable[[Tensor], bool]
) -> Weights | None:
    """The weights of the call of a torch function; None for one that is no layer. is_weight: tells a parameter, or what is
    made of parameters, from what carries signal. A product of matrices is a layer where one of two is a weight."""
    if ops.kind_of(name) == "matmul":
        return _product(name, args, kwargs, is_weight)
    if name in ops.RECURRENT:
        return Weights()
    if name not in ops.LAYERS:
        return None
    given = ops.arguments_of(name, tuple(args), kwargs)
    weight, bias = given.get("weight"), given.get("bias")
    if not isinstance(weight, Tensor):
        return Weights()
    if name in ops.LOOKUPS:
        return Weights(weight, units=weight.shape[-1])
    if name == "bilinear":
        return Weights(weight, bias, units=len(weight))
    if name == "linear":
        return Weights(weight, bias, linear_fans(weight.shape) if weight.ndim > 1 else None, units=len(weight))
    return Weights(weight, bias, *_of_convolution(name, weight, given))


def _of_convolution(name: str, weight: Tensor, given: Mapping[str, Any]) -> tuple[Fans, int, int]:
    stride, groups, transposed = given.get("stride", 1), given.get("groups", 1), name in ops.TRANSPOSED
    stride = stride if isinstance(stride, (tuple, list)) else (stride,) * (weight.ndim - 2)
    units = weight.shape[1] * groups if transposed else len(weight)
    return convolution_fans(weight.shape, tuple(stride), groups, transposed), 1, units


def _product(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], is_weight: Callable[[Tensor], bool]
) -> Weights | None:
    bias, operands = _operands(name, args, kwargs)
    ours = [isinstance(operand, Tensor) and is_weight(operand) for operand in operands]
    if sum(ours) != 1 or len(operands) != 2 or not all(isinstance(operand, Tensor) for operand in operands):
        return None
    first = ours[0]
    weight = operands[0] if first else operands[1]
    bias = bias if isinstance(bias, Tensor) and is_weight(bias) else None
    if name == "einsum":
        return Weights(weight, bias, *_of_equation(str(args[0]), weight, first))
    if name == "tensordot":
        dims = args[2] if len(args) > 2 else kwargs.get("dims", 2)
        return Weights(weight, bias, _of_dims(weight, dims, first))
    return Weights(weight, bias, *_of_matrix(weight, first, operands[1 if first else 0].ndim))


def _operands(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Sequence[Any]]:
    """What is added, and the factors in their order."""
    if name in ops.SUMS_OF_PRODUCTS:
        return args[0], args[1:3]
    if name == "einsum":
        factors = args[1:]
        return None, factors[0] if len(factors) == 1 and isinstance(factors[0], (tuple, list)) else factors
    factors = [*args[:2], *(kwargs[key] for key in ("other", "mat2", "vec") if key in kwargs)]
    return None, factors[::-1] if name == "rmatmul" else factors


def _of_matrix(weight: Tensor, first: bool, other_dims: int) -> tuple[Fans, int, int]:
    """Fans of one factor of a product of (stacks of) matrices, where the product has its units, and how many."""
    if weight.ndim == 1:
        return Fans(len(weight), 1), -1, 0
    rows, columns = weight.shape[-2:]
    if first:
        return Fans(columns, rows), -2 if other_dims > 1 else -1, rows
    return Fans(rows, columns), -1, columns


def _of_equation(equation: str, weight: Tensor, first: bool) -> tuple[Fans | None, int, int]:
    """The same of an equation: letters that the result has not are summed over, letters that the weight alone brings are
    units."""
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    mine, other = inputs.split(",") if first else reversed(inputs.split(","))
    if not arrow or "." in mine:
        return None, -1, 0
    sizes = dict(zip(mine, weight.shape, strict=True))
    units = [letter for letter in result if letter in sizes and letter not in other]
    fan_in = math.prod(size for letter, size in sizes.items() if letter not in result)
    fans = Fans(fan_in, math.prod(sizes[letter] for letter in units))
    return (fans, result.index(units[-1]) - len(result), sizes[units[-1]]) if units else (fans, -1, 0)


def _of_dims(weight: Tensor, dims: Any, first: bool) -> Fans:
    """Fans of a tensor of which `dims` are summed over: the last ones of the first factor, the first ones of the second."""
    if isinstance(dims, int):
        summed = range(weight.ndim - dims, weight.ndim) if first else range(dims)
    else:
        summed = [dim % weight.ndim for dim in dims[0 if first else 1]]
    fan_in = math.prod(weight.shape[dim] for dim in summed)
    return Fans(fan_in, weight.numel() / max(fan_in, 1))
