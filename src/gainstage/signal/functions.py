"""Which function of its pre-activations a stage computes, also one that is written out in the user's forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from gainstage.signal.operations import COMPARISONS, is_elementwise
from gainstage.theory import Activation
from gainstage.theory.composition import IDENTITY, Composite, Number, compose

if TYPE_CHECKING:
    from gainstage.signal.graph import Operation

Place = tuple[int, int]  # a tensor: the operation that made it, and which of its outputs it is
REORDERING = ("flip", "roll")  # reshapes behind which each number stands where another one stood
_POSITIVE = torch.logspace(-6, 6, 121, dtype=torch.float64)
EVERYWHERE = torch.cat(
    [-_POSITIVE, torch.zeros(1).double(), _POSITIVE]
)  # where a function is asked whether it is constant


@dataclass(frozen=True)
class Value:
    """What an operation puts out: a function of the tensor at `source`.

    origin: the tensor that it is made of number by number, also through parameters that differ from unit to unit, which no
    function of one number can hold. straight: by sums and multiples alone. learned: with a parameter in it. mixed: its
    function has parameters inside that differ.
    """

    source: Place
    function: Composite
    origin: Place
    straight: bool = True
    learned: bool = False
    mixed: bool = False

    @property
    def constant(self) -> bool:
        """True where it does not depend on the tensor, and never will."""
        return _is_constant(self.function) and not _holds_tensors(self.function)

    @property
    def closed(self) -> bool:
        """True behind a gate: a tensor that makes it constant now, a parameter of zero or a mask, and may open again."""
        return _is_constant(self.function) and _holds_tensors(self.function)


@lru_cache(maxsize=1024)
def _is_constant(function: Composite) -> bool:
    values = torch.as_tensor(function(EVERYWHERE)).expand_as(EVERYWHERE)
    return bool((values == values[0]).all())


def _holds_tensors(function: Composite) -> bool:
    arguments = (argument for step in function.steps for argument in (*step.arguments, *dict(step.keywords).values()))
    return any(isinstance(argument, Number) for argument in arguments)


def activation_in(operations: Sequence[Operation]) -> Activation | None:
    """The first function in a stage that is not affine, whole: x * sigmoid(x) is one function, not a product; and x > 0 none
    yet. None where there is none, where it is constant, and where it has parameters inside that differ."""
    found = _function_in(operations)
    if found is None or found.mixed or found.constant:
        return None
    named = (op.activation for op in operations if op.activation and found.function.steps == (op.call,))
    return next(named, found.function.activation)


def has_mixed_function(operations: Sequence[Operation]) -> bool:
    """True where the function in a stage has parameters inside that are not one number over and over: x + sin(a x)^2 / a
    with one a for each unit. Such as scale what comes in or out, and no more, are not inside."""
    found = _function_in(operations)
    return found is not None and found.mixed


def constants_in(operations: Sequence[Operation]) -> set[int]:
    """Operations of a stage that put out the same whatever comes in, as x * 0 does; a gate that is closed does not count."""
    return {index for index, value in _values(operations).items() if value.constant}


def _function_in(operations: Sequence[Operation]) -> Value | None:
    found: Value | None = None
    values = _values(operations)
    for op in operations:
        value = values[op.index]
        if value.mixed and (found is None or value.origin == found.origin):
            return value
        if value.function is IDENTITY or value.closed:
            continue
        fresh = found is None and op.name not in COMPARISONS and value.function.affine is None
        if fresh or (found is not None and value.source == found.source):
            found = value
    return found


def _values(operations: Sequence[Operation]) -> dict[int, Value]:
    values: dict[int, Value] = {}
    for op in operations:
        values[op.index] = _value(op, values)
    return values


def _value(op: Operation, values: Mapping[int, Value]) -> Value:
    """What an operation puts out, as a function of the latest tensor that was not made element by element."""
    given = [_given(place, values) for place in op.sources]
    if op.kind == "reshape" and len(given) == 1 and _keeps_places(op):
        return given[0]
    if not is_elementwise(op.kind) or len({value.origin for value in given}) != 1:
        return _tensor((op.index, 0))
    learned = bool(op.parameters) or any(value.learned for value in given)
    sources, straight = {value.source for value in given}, all(value.straight for value in given)
    if op.call is not None and len(sources) == 1:
        function = compose(op.call, [value.function for value in given])
        straight = straight and function.affine is not None
        return Value(given[0].source, function, given[0].origin, straight, learned)
    if not learned:
        return _tensor((op.index, 0))
    straight = straight and (op.kind == "add" or (op.kind == "multiply" and len(given) == 1))
    inside = len(sources) > 1 or (op.kind == "pointwise" and op.name not in COMPARISONS)
    return Value((op.index, 0), IDENTITY, given[0].origin, straight, learned, inside and not straight)


def _given(place: Place, values: Mapping[int, Value]) -> Value:
    index, part = place
    return values.get(index, _tensor(place)) if part == 0 else _tensor(place)


def _tensor(place: Place) -> Value:
    return Value(place, IDENTITY, place)


def _keeps_places(op: Operation) -> bool:
    """True for a reshape of all numbers of one tensor that leaves them in order."""
    size = 1
    for length in op.shape:
        size *= length
    return op.outputs == 1 and op.sizes == (size,) and op.name not in REORDERING
