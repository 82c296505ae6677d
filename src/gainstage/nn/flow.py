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

from gainstage.program import run_model, tensors_in
from gainstage.signal import NETWORK_INPUT, Operation, untouched
from gainstage.signal.trace import Tracer

Step = Callable[[Operation], list[Operation]]
SHRINKS = {"threshold", "hardshrink", "softshrink", "tanhshrink", "log_sigmoid"}  # activations without a theory


@dataclass(frozen=True)
class Flow:
    """The operations of a forward pass in order of execution; behind the last ones stands a "clone" that reads what the
    network puts out. chains: paths of the nn.Sequentials that ran as a whole, from the first entry to the last.
    """

    operations: tuple[Operation, ...]
    chains: frozenset[str] = frozenset()

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
            for tensor in tensors_in(run_model(model, x)):
                tensor.clone()
    return Flow(tuple(tracer.operations), frozenset(chains))


def is_chain(module: nn.Module) -> bool:
    """True for an nn.Sequential that runs its entries one after the other."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def is_activation(operation: Operation) -> bool:
    """True for activations, but for softmax and gated units."""
    return operation.kind == "activation" or operation.name in SHRINKS


def is_layer(operation: Operation) -> bool:
    """True for what has weights and is neither an activation nor a normalisation."""
    return operation.kind == "layer" or (operation.kind == "unknown" and bool(operation.parameters))
