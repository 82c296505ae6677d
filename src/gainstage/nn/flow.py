"""Who reads what: the operations of one traced pass, for edits that must know what stands directly in front and behind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from gainstage.errors import BadInput
from gainstage.program import run_model, tensors_in
from gainstage.signal import NETWORK_INPUT, Operation, untouched
from gainstage.signal.functions import activation_in
from gainstage.signal.operations import COMPARISONS, is_elementwise
from gainstage.signal.trace import Tracer
from gainstage.theory import Activation

Step = Callable[[Operation], list[Operation]]
Function = tuple[Operation, ...]  # the operations of a function of one tensor, number by number; the last puts out
SHRINKS = {"threshold", "hardshrink", "softshrink", "tanhshrink", "log_sigmoid"}  # activations without a theory
CASTS = {"to", "float", "double", "half", "bfloat16", "type", "type_as", "clone", "contiguous", "detach"}
EQUALITIES = {"eq", "ne"}  # they find padding; their function is constant almost everywhere
STRAIGHT = {"where", "masked_fill", "lerp", "addcmul", "addcdiv"}  # affine in one of their arguments
FAR, MOST = 100.0, 2.0**8  # from there to twice as far an activation grows less than a polynomial of degree 8


@dataclass(frozen=True)
class Flow:
    """The operations of a forward pass in order of execution; behind the last ones stands a "clone" that reads what the
    network puts out. chains: paths of the nn.Sequentials that ran as a whole, from the first entry to the last. outputs: the
    operations that made what the network puts out.
    """

    operations: tuple[Operation, ...]
    chains: frozenset[str] = frozenset()
    outputs: frozenset[int] = frozenset()

    @cached_property
    def _readers(self) -> dict[int, list[Operation]]:
        found: dict[int, list[Operation]] = defaultdict(list)
        for operation in self.operations:
            for index in {max(index, NETWORK_INPUT) for index in operation.inputs}:
                found[index].append(operation)
        return found

    def sources(self, operation: Operation) -> list[Operation]:
        """Operations whose output this one reads; the network's input is none."""
        return [self.operations[i] for i in operation.inputs if i > NETWORK_INPUT]

    def readers(self, operation: Operation | None) -> list[Operation]:
        """Operations that read this one's output; of None, the network's input."""
        return self._readers.get(NETWORK_INPUT if operation is None else operation.index, [])

    def runs(self, module: str) -> list[Operation]:
        """All operations of a module itself, without those of its children."""
        return [operation for operation in self.operations if operation.module == module]

    def backward(self, operation: Operation, through: Collection[str]) -> Iterator[Operation]:
        """What `operation` reads, directly or through operations of the kinds `through`; those are found too."""
        return self._walk(operation, self.sources, through)

    def forward(self, operation: Operation, through: Collection[str] | None = None) -> Iterator[Operation]:
        """What reads `operation`, directly or through operations of the kinds `through` (None: of all kinds)."""
        return self._walk(operation, self.readers, through)

    def _walk(self, start: Operation, following: Step, through: Collection[str] | None) -> Iterator[Operation]:
        waiting, seen = [start], {start.index}
        while waiting:
            for found in following(waiting.pop()):
                if found.index not in seen:
                    seen.add(found.index)
                    yield found
                    if through is None or found.kind in through:
                        waiting.append(found)

    # ---------------------------------------------------------------- activations
    def activations(self) -> list[Function]:
        """Every activation, in order of execution: a whole function that is written out in a forward, such as
        x * sigmoid(x), or one operation; without softmax and gated units."""
        written = [function for members in self._pointwise() if (function := self._whole(members))]
        inside = {operation.index for function in written for operation in function}
        alone = [(each,) for each in self.operations if is_activation(each) and each.index not in inside]
        return sorted([*written, *alone], key=lambda function: function[0].index)

    def _pointwise(self) -> list[list[Operation]]:
        """The operations that a module makes on one tensor, number by number, for each module and tensor."""
        roots: dict[int, tuple[int, int]] = {}
        found: dict[Any, list[Operation]] = defaultdict(list)
        for op in self.operations:
            inside = {index for index in op.inputs if index in roots and self.operations[index].module == op.module}
            given = {roots[index] if index in inside else (index, part) for index, part in op.sources}
            alike = op.shape == op.given and (is_elementwise(op.kind) or op.name in CASTS)
            if alike and len(given) == 1 and self.readers(op):
                (roots[op.index],) = given
                found[op.module, roots[op.index]].append(op)
        return list(found.values())

    def _whole(self, members: list[Operation]) -> Function | None:
        """The function that these make, if it is an activation and nothing but its end is used elsewhere: neither what it is
        a function of is put out, such as a logarithm of a variance, nor a part of it read."""
        inside = {op.index for op in members}
        ends = [op for op in members if any(reader.index not in inside for reader in self.readers(op))]
        if len(ends) != 1:
            return None
        function = tuple(op for op in members if op.index <= ends[0].index)
        within = {*function[0].inputs, *(op.index for op in function[:-1])}
        return function if not within & self.outputs and _bends(function) else None


def _bends(function: Function) -> bool:
    """True for what can be an activation: a function that is not affine and does not explode, as an exponential does."""
    if function[-1].name in COMPARISONS:
        return False
    known = activation_in(function)
    if known is not None:
        return not _explodes(known)
    return any(op.call is None for op in function) and any(map(_is_curved, function))


def _is_curved(operation: Operation) -> bool:
    """True for an operation that is not affine, whatever its parameters and constants are."""
    straight = operation.name in EQUALITIES or (operation.name in STRAIGHT and len(operation.sources) == 1)
    return operation.kind == "activation" or (operation.kind == "pointwise" and not straight)


def _explodes(activation: Activation) -> bool:
    z = torch.tensor([-FAR, FAR], dtype=torch.float64)
    near, far = activation.function(z).abs(), activation.function(2 * z).abs()
    return not bool((far <= MOST * (near + 1)).all())


def check_model(model: object) -> None:
    """BadInput for anything but an nn.Module."""
    if isinstance(model, type):
        raise BadInput(
            f"the model must be a torch.nn.Module, got the class {model.__name__}; did you mean {model.__name__}()?"
        )
    if not isinstance(model, nn.Module):
        raise BadInput(f"the model must be a torch.nn.Module, got a {type(model).__name__}")


def flow_of(model: nn.Module, x: Any) -> Flow:
    """The flow of one forward pass on inputs `x`, in the modes that the modules are in; leaves no trace.

    Raises BadInput where forward fails.
    """
    chains: set[str] = set()
    with untouched(model), torch.no_grad(), ExitStack() as stack:
        for path, module in model.named_modules():
            if is_chain(module):
                stack.callback(module.register_forward_pre_hook(lambda *_, p=path: chains.add(p)).remove)
        tracer = Tracer(model)
        with tracer.of(model, x):
            output = run_model(model, x)
            for tensor in tensors_in(output):
                tensor.clone()
        outputs = tracer.finish(output).outputs
    return Flow(tuple(tracer.operations), frozenset(chains), frozenset(outputs))


def is_chain(module: nn.Module) -> bool:
    """True for an nn.Sequential that runs its entries one after the other."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def is_activation(operation: Operation) -> bool:
    """True for activations, but for softmax and gated units."""
    return operation.kind == "activation" or operation.name in SHRINKS


def is_layer(operation: Operation) -> bool:
    """True for what has weights and is neither an activation nor a normalisation."""
    return operation.kind == "layer" or (operation.kind == "unknown" and bool(operation.parameters))
