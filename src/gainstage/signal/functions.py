"""Which function of its pre-activations a stage computes, also one that is written out in the user's forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gainstage.signal.operations import COMPARISONS
from gainstage.theory import Activation
from gainstage.theory.composition import IDENTITY, Composite, compose

if TYPE_CHECKING:
    from gainstage.signal.graph import Operation

Value = tuple[tuple[int, int], Composite]  # the tensor that it is a function of, and the function


def activation_in(operations: Sequence[Operation]) -> Activation | None:
    """The first function in a stage that is not affine, whole: x * sigmoid(x) is one function, not a product; and x > 0 none
    yet."""
    values: dict[int, Value] = {}
    found: Value | None = None
    named: dict[Composite, Activation] = {}
    for op in operations:
        value = _value(op, values)
        values[op.index] = value
        if op.activation is not None and value[1].steps == (op.call,):
            named[value[1]] = op.activation
        fresh = found is None and op.name not in COMPARISONS and value[1] is not IDENTITY and value[1].affine is None
        if fresh or (found is not None and value[0] == found[0] and value[1] is not IDENTITY):
            found = value
    if found is None:
        return None
    return named.get(found[1]) or found[1].activation


def _value(op: Operation, values: dict[int, Value]) -> Value:
    """What an operation puts out, as a function of the latest tensor that was not made element by element."""
    given = [
        values.get(index, ((index, part), IDENTITY)) if part == 0 else ((index, part), IDENTITY)
        for index, part in op.sources
    ]
    if op.kind == "reshape" and op.outputs == 1 and len(given) == 1:
        return given[0]
    if op.call is None or len({source for source, _ in given}) != 1:
        return (op.index, 0), IDENTITY
    return given[0][0], compose(op.call, [function for _, function in given])
