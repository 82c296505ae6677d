"""The trace: one real forward pass, every torch function seen and assigned to its stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from gainstage.program import is_sharded, tensors_in
from gainstage.signal import operations as ops
from gainstage.signal.calls import body_of, called_by_fsdp, is_number, recorded, written
from gainstage.signal.graph import NETWORK_INPUT, Graph, Operation, Stage
from gainstage.signal.layers import Weights, weights_of
from gainstage.signal.observer import Observer
from gainstage.signal.replay import Call, Script, outputs_in, shapes_in
from gainstage.theory.composition import Slot, Step

FROM_OUTSIDE = (NETWORK_INPUT, 0)


class Tracer(TorchFunctionMode):
    """Records the operations of the forward pass that runs inside it; an observer measures as they happen.

    Use as `with tracer.of(model, x): output = model(x)`, then `tracer.finish(output)`. Parameters, buffers and what is
    computed from them alone carry no signal; neither do constants that meet a tensor which does.
    """

    def __init__(self, model: nn.Module, observer: Observer | None = None):
        super().__init__()
        self.observer = observer or Observer()
        self.operations: list[Operation] = []
        self.loss_operations: list[str] = []
        self.in_loss = False
        self._model = model
        self._sharded = any(map(is_sharded, model.modules()))
        self.observer.weights_last = not self._sharded
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._lasting = frozenset(self._names)
        self._buffers = {id(buffer) for buffer in model.buffers()}
        self._paths = {id(module): name for name, module in model.named_modules()}
        self._module_stack: list[str] = [""]
        # tensor -> index of the operation, and which of its outputs it is
        self._producers: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._derived: WeakTensorKeyDictionary = (
            WeakTensorKeyDictionary()
        )  # tensor -> names of parameters it is made of
        self._stages = 0
        self._calls: dict[str, int] = {}
        self._opened: list[tuple[str, int]] = []
        self._calls_made: list[Call] = []
        self._leaving: dict[int, dict[int, None]] = {}  # operation -> which of its outputs leave their stage
        self._shapes: tuple[Any, ...] = ()

    # ---------------------------------------------------------------- where we are
    @contextmanager
    def of(self, model: nn.Module, inputs: Any) -> Iterator[None]:
        """Active while the model's forward pass on `inputs` runs inside; its hooks are gone afterwards, also after an
        error."""
        for number, tensor in enumerate(tensors_in(inputs)):
            self._producers[tensor] = (NETWORK_INPUT - number, 0)
        self._shapes = shapes_in(inputs)
        with ExitStack() as stack:
            for module in list(model.modules())[1:]:  # the model itself is the bottom of the stack
                stack.callback(module.register_forward_pre_hook(self._enter_module).remove)
                stack.callback(module.register_forward_hook(self._leave_module, always_call=True).remove)
            stack.enter_context(self)
            yield

    @contextmanager
    def of_loss(self) -> Iterator[None]:
        """Active while the loss is computed: its operations are named, not measured."""
        self.in_loss = True
        try:
            with self:
                yield
        finally:
            self.in_loss = False

    def _enter_module(self, module: nn.Module, _inputs: Any) -> None:
        path = self._paths.get(id(module), "")
        self._module_stack.append(path)
        for name, parameter in module._parameters.items():  # sharded ones are whole, and others, only while it runs
            self._names.setdefault(id(parameter), f"{path}.{name}")

    def _leave_module(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        self._module_stack.pop()

    # ---------------------------------------------------------------- one operation
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = ops.name_of(func)
        tensors = tensors_in([args, kwargs])
        if self._sharded and called_by_fsdp():
            return self._same_origin(tensors, self._run(func, args, kwargs))
        if not self.in_loss:
            self._calls_made.append(Call(func))
        if ops.is_silent(name) or not tensors:
            return self._silent(name, tensors, self._run(func, args, kwargs))
        if self.in_loss:
            self.loss_operations.append(name)
            return self._run(func, args, kwargs)
        if name in ops.COMPOSED:
            self._calls_made[-1] = Call(func, composed=True)
            with self:
                return self._run(body_of(func), args, kwargs)
        return self._record(name, tensors, func, args, kwargs)

    def _run(self, func, args, kwargs) -> Any:
        """The user's operation itself: what fails in here is not the tracer's."""
        return func(*args, **kwargs)

    def _record(self, name: str, tensors: Sequence[Tensor], func, args, kwargs) -> Any:
        data, parameters = self._signals_in(tensors), self._parameters_of(tensors)
        if not data:
            result = self._run(func, args, kwargs)
            self._note_derived(result, parameters)
            return result
        weights = weights_of(name, args, kwargs, lambda t: t not in self._producers and bool(self._parameters_of([t])))
        operation = self._open(name, data, parameters, args, kwargs, weights)
        operation = self._with_call(operation, func, data, args, kwargs)
        target = written(func, args, kwargs)
        whole = None if target is None else target._base
        if whole is not None and target is not None and whole.numel() > target.numel():
            operation = replace(operation, kind="scatter", call=None)  # of what is behind, only a part was changed
        call = self._tell_before(operation, data, tensors, args, kwargs, weights)
        place = len(self._calls_made) - 1
        result = self._run(func, args, kwargs)
        if operation.kind == "loss":
            self.loss_operations.append(name)
        masks = ops.is_elementwise(operation.kind) and any(t.is_floating_point() or t.dtype == torch.bool for t in data)
        made = args[0] if name == "setitem" else result  # x[mask] = value puts out nothing and changes x
        outputs = outputs_in(made, masks)
        if not outputs:
            return result
        operation = replace(operation, shape=tuple(outputs[0].shape), outputs=len(outputs))
        self.operations.append(operation)
        self._calls_made[place] = call._replace(operation=operation, masks=masks)
        for number, tensor in enumerate(outputs):
            self._producers[tensor] = (operation.index, number)
        if whole is not None:
            self._producers[whole] = (operation.index, 0)
        if operation.kind == "layer":
            self.observer.layer_output(operation, outputs[0])
        if operation.kind == "activation":
            self.observer.activated(operation, outputs[0])
        return result

    def _signals_in(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Those that carry signal, each once: made by an operation of this pass, or handed in; else those of unknown
        origin."""
        once = list({id(t): t for t in tensors}.values())
        known = [t for t in once if t in self._producers]
        return known or [t for t in once if not self._is_fixed(t)]

    def _is_fixed(self, tensor: Tensor) -> bool:
        return self._name_of(tensor) is not None or id(tensor) in self._buffers or tensor in self._derived

    def _name_of(self, tensor: Tensor | None) -> str | None:
        """The name of a parameter, empty for one that the model does not know of; None for any other tensor."""
        if isinstance(tensor, nn.Parameter) and id(tensor) not in self._names:
            # FSDP2 puts the whole parameters in the place of the shards while a module runs
            self._names.update({id(parameter): name for name, parameter in self._model.named_parameters()})
            self._names.setdefault(id(tensor), "")
        return self._names.get(id(tensor))

    def _same_origin(self, tensors: Sequence[Tensor], result: Any) -> Any:
        """What FSDP2 hands on comes from where it came from."""
        if isinstance(result, Tensor) and tensors and tensors[0] in self._producers:
            self._producers[result] = self._producers[tensors[0]]
        return result

    def _silent(self, name: str, tensors: Sequence[Tensor], result: Any) -> Any:
        """A property that is a tensor (x.T, x.real) has the origin of its owner; a constant is fixed."""
        if isinstance(result, Tensor) and result not in self._producers:
            if name == "get" and tensors and tensors[0] in self._producers:
                return self._same_origin(tensors, result)
            if name not in ops.RANDOM:
                self._note_derived(result, self._parameters_of(tensors) if name == "get" else ())
        return result

    def _parameters_of(self, tensors: Sequence[Tensor]) -> tuple[str, ...]:
        found: list[str] = []
        for tensor in tensors:
            name = self._name_of(tensor)
            if name:
                found.append(name)
            elif tensor in self._derived:
                found.extend(self._derived[tensor])
        return tuple(dict.fromkeys(found))

    def _note_derived(self, result: Any, parameters: tuple[str, ...]) -> None:
        for tensor in tensors_in(result):
            if not self._is_fixed(tensor):
                self._derived[tensor] = parameters

    def _open(self, name: str, data, parameters, args, kwargs, weights: Weights | None) -> Operation:
        """Describe an operation; a layer opens a new stage, anything else joins the latest stage it takes from."""
        kind: ops.Kind = ops.kind_of(name) if weights is None else "layer"
        sources = tuple(self._source(t) for t in data)
        weight = "" if weights is None else self._name_of(weights.weight) or ""
        if weights is not None:
            stage = self._stages
            self._stages += 1
            path = self._path_of(weight)
            self._opened.append((path, self._calls.get(path, 0)))
            self._calls[path] = self._calls.get(path, 0) + 1
        else:
            stage = max((self._stage_of(i) for i, _ in sources), default=NETWORK_INPUT)
        given = ops.arguments_of(name, args, kwargs)
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        settings = {k: v for k, v in settings.items() if isinstance(v, (bool, int, float, str, tuple))}
        if weights is not None and weights.weight is not None:
            settings["kernel"] = tuple(weights.weight.shape[2:])
        if name == "prelu" and isinstance(given.get("weight"), Tensor) and not given["weight"].is_meta:
            settings["slope"] = float(given["weight"].detach().mean())
        return Operation(
            index=len(self.operations),
            name=name,
            kind=kind,
            module=self._module_stack[-1],
            stage=stage,
            sources=sources,
            parameters=parameters,
            settings=settings,
            given=tuple(data[0].shape),
            sizes=tuple(t.numel() for t in data),
            activation=ops.activation_of(name, settings) if kind == "activation" else None,
            fans=weights and weights.fans,
            weight=weight,
            channel_dim=weights.channel_dim if weights else -1,
            units=weights.units if weights else 0,
        )

    def _path_of(self, weight: str) -> str:
        """The module that runs, or the one inside it that has the weight, where that one is not called itself (the output
        projection of nn.MultiheadAttention)."""
        running, owner = self._module_stack[-1], weight.rpartition(".")[0]
        return owner if owner.startswith(f"{running}." if running else "") else running

    def _with_call(self, operation: Operation, func, data: Sequence[Tensor], args, kwargs) -> Operation:
        """What an elementwise operation computes, and how many constant tensors take part in anything but a layer."""
        if operation.kind in ("layer", "normalization"):
            return operation
        constants = len(self._constants(operation.kind, data, args, kwargs))
        call = operation.activation and Step(operation.activation.function, (Slot(0),))
        if call is None and ops.is_elementwise(operation.kind) and not constants:
            call = recorded(func, data, args, kwargs)
        return replace(operation, call=call, constants=constants)

    def _constants(self, kind: ops.Kind, data: Sequence[Tensor], args: Any, kwargs: Any) -> list[Tensor]:
        """Tensors among the arguments that carry no signal; to an elementwise operation one number over and over, also in
        a parameter that nothing has trained yet, is a number."""
        ours = {id(tensor) for tensor in data}
        others = [t for t in tensors_in([args, kwargs]) if id(t) not in ours]
        return [t for t in others if not (ops.is_elementwise(kind) and is_number(t))]

    def _source(self, tensor: Tensor) -> tuple[int, int]:
        return self._producers.get(tensor) or FROM_OUTSIDE

    def _stage_of(self, operation: int) -> int:
        return NETWORK_INPUT if operation < 0 else self.operations[operation].stage

    def _tell_before(
        self,
        operation: Operation,
        data: Sequence[Tensor],
        tensors: Sequence[Tensor],
        args: Any,
        kwargs: Any,
        weights: Weights | None,
    ) -> Call:
        """Tensors that cross from one stage into another are the outputs of the stage they leave."""
        call = self._calls_made[-1]
        for tensor, (origin, part) in zip(data, operation.sources, strict=True):
            if self._stage_of(origin) != operation.stage:
                self._leaves(origin, part, tensor)
        if operation.constants == 1 and operation.kind in ("add", "multiply"):
            (constant,) = self._constants(operation.kind, data, args, kwargs)
            self.observer.constant(operation, constant)
            call = call._replace(constants=(_place_of(constant, tensors),))
        if weights is not None:
            self.observer.layer(operation, weights.weight, weights.bias)
            call = self._with_weights(call, weights.weight, weights.bias, tensors)
        if operation.kind == "normalization":
            given = ops.arguments_of(operation.name, args, kwargs)
            self.observer.normalization(operation, given.get("weight"), given.get("bias"))
            call = self._with_weights(call, given.get("weight"), given.get("bias"), tensors)
        if operation.kind == "activation" and data:
            self.observer.activation(operation, data[0])
            call = call._replace(data=_place_of(data[0], tensors))
        taken = self._taken(operation, data, args, kwargs)
        if taken:
            self.observer.taken(operation, taken)
            call = call._replace(taken=tuple(_place_of(tensor, tensors) for tensor in taken))
        return call

    def _with_weights(self, call: Call, weight: Tensor | None, bias: Tensor | None, tensors: Sequence[Tensor]) -> Call:
        """Parameters stay where they are from pass to pass; what is computed has to be looked for in its place."""
        both = weight, bias
        if all(tensor is None or id(tensor) in self._lasting for tensor in both):
            return call._replace(weights=both)
        return call._replace(places=tuple(None if tensor is None else _place_of(tensor, tensors) for tensor in both))

    def _taken(self, operation: Operation, data: Sequence[Tensor], args, kwargs) -> list[Tensor]:
        """What an observer is told of a sum of two stages' outputs, of an attention and of a softmax."""
        if operation.kind == "add" and len(data) == 2:
            pairs = zip(data, operation.sources, strict=True)
            own = [tensor for tensor, (origin, _) in pairs if self._stage_of(origin) == operation.stage]
            return own if len(own) == 1 else []
        if operation.kind == "attention":
            given = ops.arguments_of(operation.name, args, kwargs)
            query = args[0] if args else given.get("query")
            found = (query, given.get("key"), given.get("attn_mask"))
            return [tensor for tensor in found if isinstance(tensor, Tensor)]
        return list(data[:1]) if operation.kind == "softmax" else []

    def _leaves(self, origin: int, part: int, tensor: Tensor) -> None:
        self._leaving.setdefault(origin, {})[part] = None
        self.observer.stage_output(origin, self._stage_of(origin), tensor)

    # ---------------------------------------------------------------- the graph
    def finish(self, output: Any) -> Graph:
        """The graph of the pass that ended with `output`."""
        outputs: dict[int, None] = {}
        for tensor in tensors_in(output):
            index, part = self._source(tensor)
            outputs[index] = None
            self._leaves(index, part, tensor)
        out_stage = max((self._stage_of(index) for index in outputs), default=NETWORK_INPUT)
        members: list[list[Operation]] = [[] for _ in range(self._stages)]
        for operation in self.operations:
            if operation.stage >= 0:
                members[operation.stage].append(operation)
        stages = tuple(self._stage(index, tuple(found)) for index, found in enumerate(members))
        return Graph(tuple(self.operations), stages, out_stage, tuple(outputs), tuple(self.loss_operations))

    def script(self, graph: Graph) -> Script:
        """The calls of the pass that `graph` is of, to follow another pass by."""
        made = self._calls_made
        leaving = {index: tuple(parts) for index, parts in self._leaving.items()}
        calls = (
            call if call.operation is None else call._replace(leaving=leaving.get(call.operation.index, ()))
            for call in made
        )
        return Script(graph, tuple(calls), self._shapes)

    def _stage(self, index: int, members: tuple[Operation, ...]) -> Stage:
        module, call = self._opened[index]
        source = max((self._stage_of(i) for i in members[0].inputs), default=NETWORK_INPUT)
        joined = {self._stage_of(i) for op in members[1:] for i in op.inputs} - {index}
        return Stage(index, module, call, members, source, tuple(sorted(joined)))


def _place_of(tensor: Tensor, tensors: Sequence[Tensor]) -> int:
    return next(place for place, other in enumerate(tensors) if other is tensor)
