"""A forward pass that was traced once, followed again: the same calls in the same order, at a fraction of the cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from torch.overrides import TorchFunctionMode

from gainstage.program import tensors_in
from gainstage.signal.calls import body_of
from gainstage.signal.graph import Graph, Operation
from gainstage.signal.observer import Observer


class Call(NamedTuple):
    """One call of a torch function as the trace saw it.

    operation: what it is; None where nothing is to be told of it. data: where, among the tensors in its arguments, the
    first one stands that carries signal. constants: where those stand that an observer is told of. weights: weight and bias
    of a layer or a normalisation, where they are parameters; places: where they stand, where the pass computes them. leaving:
    which of its outputs leave their stage. masks: whether outputs that are no floating-point numbers count. composed: the
    functions that this one calls follow.
    """

    function: Callable[..., Any]
    operation: Operation | None = None
    data: int = 0
    constants: tuple[int, ...] = ()
    weights: tuple[Tensor | None, Tensor | None] | None = None
    places: tuple[int | None, ...] | None = None
    leaving: tuple[int, ...] = ()
    taken: tuple[int, ...] = ()
    masks: bool = False
    composed: bool = False

    @property
    def tells(self) -> bool:
        """True where an observer has to be told of the call while it happens."""
        op = self.operation
        told = self.places or self.constants or self.leaving or self.taken
        return op is not None and (op.kind == "activation" or bool(told))


@dataclass(frozen=True)
class Script:
    """All calls of a traced pass. shapes: of the network's inputs, with their types."""

    graph: Graph
    calls: tuple[Call, ...]
    shapes: tuple[Any, ...]

    def fits(self, inputs: Any) -> bool:
        """True for inputs of the same shapes and types."""
        return self.shapes == shapes_in(inputs)


def shapes_in(inputs: Any) -> tuple[Any, ...]:
    """Shape and type of every tensor among the inputs."""
    return tuple((tensor.shape, tensor.dtype) for tensor in tensors_in(inputs))


def outputs_in(result: Any, masks: bool) -> list[Tensor]:
    """Tensors in what a function returned that can carry signal; masks: numbers of other types too."""
    return [t for t in tensors_in(result) if masks or t.is_floating_point() or t.is_complex()]


class Replay(TorchFunctionMode):
    """Tells an observer of a pass what a trace would tell it, as long as the pass makes the calls of the script.

    Use as `with replay: output = model(x)`; then `replay.followed` says whether it did, from the first to the last. An error
    of the telling ends it, is kept in `error`, and does not reach the pass.
    """

    error: Exception | None = None

    def __init__(self, script: Script, observer: Observer):
        super().__init__()
        self._observer = observer
        self._calls = [(call.function, call if call.tells or call.composed else None) for call in script.calls]
        self._position = 0
        self._lost = False
        for call in script.calls:
            if call.operation is not None and call.weights is not None:
                _tell_weights(observer, call.operation, *call.weights)

    @property
    def followed(self) -> bool:
        """True when the pass made the calls of the script, and all of them."""
        return not self._lost and self.error is None and self._position == len(self._calls)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._lost or self._position == len(self._calls):
            self._lost = True
            return func(*args, **kwargs)
        expected, call = self._calls[self._position]
        self._position += 1
        if expected is not func and expected != func:
            self._lost = True
        if call is None or self._lost:
            return func(*args, **kwargs)
        if call.composed:
            with self:
                return body_of(func)(*args, **kwargs)
        return self._observed(call, func, args, kwargs)

    def _observed(self, call: Call, func, args, kwargs) -> Any:
        self._guarded(self._tell_before, call, args, kwargs)
        result = func(*args, **kwargs)
        self._guarded(self._tell_after, call, args, result)
        return result

    def _guarded(self, tell: Callable[..., None], call: Call, *given: Any) -> None:
        if self.error is None:
            try:
                tell(call, call.operation, *given)
            except Exception as error:
                self.error = error

    def _tell_after(self, call: Call, operation: Operation, args, result: Any) -> None:
        if operation.kind != "activation" and not call.leaving:
            return
        outputs = outputs_in(args[0] if operation.name == "setitem" else result, call.masks)
        if operation.kind == "activation":
            self._observer.activated(operation, outputs[0])
        for number in call.leaving:
            self._observer.stage_output(operation.index, operation.stage, outputs[number])

    def _tell_before(self, call: Call, operation: Operation, args, kwargs) -> None:
        if operation.kind != "activation" and not (call.constants or call.places or call.taken):
            return
        tensors: Sequence[Tensor] = tensors_in([args, kwargs])
        if call.places:
            weight, bias = (None if place is None else tensors[place] for place in call.places)
            _tell_weights(self._observer, operation, weight, bias)
        for place in call.constants:
            self._observer.constant(operation, tensors[place])
        if call.taken:
            self._observer.taken(operation, [tensors[place] for place in call.taken])
        if operation.kind == "activation":
            self._observer.activation(operation, tensors[call.data])


def _tell_weights(observer: Observer, operation: Operation, weight: Tensor | None, bias: Tensor | None) -> None:
    told = observer.layer if operation.kind == "layer" else observer.normalization
    told(operation, weight, bias)
