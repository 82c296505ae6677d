"""Measure: probes on one real pass, forward and backward, and the ledger that comes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gainstage.data import Batch
from gainstage.errors import BadInput
from gainstage.program import Loss, check_batch, run_loss, run_model, tensors_in
from gainstage.signal import operations as ops
from gainstage.signal import statistics
from gainstage.signal.expectation import Powers, expected_backward_gain, expected_level
from gainstage.signal.graph import NETWORK_INPUT, Graph, Operation, Stage
from gainstage.signal.ledger import Ledger, Row
from gainstage.signal.trace import Observer, Tracer
from gainstage.signal.untouched import untouched
from gainstage.theory import Level

Key = tuple[str, int]  # quantity, and stage; for "scale" and "shift" of a normalisation, its operation


@dataclass
class Probes(Observer):
    """Watches one pass as the tracer's observer; keeps 0-dimensional tensors on the device until `read`."""

    values: dict[Key, Tensor] = field(default_factory=dict)
    units: dict[int, int] = field(default_factory=dict)
    channel_dims: dict[int, int] = field(default_factory=dict)
    weights: dict[int, Tensor] = field(default_factory=dict)
    handles: list[Any] = field(default_factory=list)

    def stage_output(self, stage: int, tensor: Tensor) -> None:
        if not tensor.is_floating_point() or tensor.ndim < 1 or len(tensor) < 2:
            return
        with torch.no_grad():
            values = tensor.reshape(len(tensor), -1)  # a tensor of one number a sample has one unit
            signal, offset = statistics.signal_and_offset(values)
            self.values["signal", stage], self.values["offset", stage] = signal, offset
            self.values["similarity", stage] = statistics.similarity(values)
        self.units[stage] = values.shape[1]
        if tensor.requires_grad:
            self.handles.append(tensor.register_hook(self._gradient_probe(stage)))

    def _gradient_probe(self, stage: int):
        return lambda gradient: self.gradient(stage, gradient)

    def gradient(self, stage: int, gradient: Tensor) -> None:
        """The gradient with respect to a stage's output has arrived."""
        self.values["gradient", stage] = statistics.mean_square(gradient)

    def layer(self, operation: Operation, weight: Tensor | None, bias: Tensor | None) -> None:
        self.channel_dims[operation.stage] = operation.channel_dim
        if weight is None:
            return
        self.weights[operation.stage] = weight
        self.values["weight", operation.stage] = statistics.mean_square(weight)
        if bias is not None:
            self.values["bias", operation.stage] = statistics.mean_square(bias)

    def normalization(self, operation: Operation, scale: Tensor | None, shift: Tensor | None) -> None:
        for quantity, tensor in (("scale", scale), ("shift", shift)):
            if tensor is not None:
                self.values[quantity, operation.index] = statistics.mean_square(tensor)

    def activation(self, operation: Operation, before: Tensor) -> None:
        if operation.activation is not None and operation.activation.saturates:
            share = statistics.saturated_share(before, operation.activation.responsive)
            self.values["saturated", operation.stage] = share

    def activated(self, operation: Operation, after: Tensor) -> None:
        if operation.name in ops.RECTIFIERS and after.ndim > 1:
            channel_dim = self.channel_dims.get(operation.stage, -1)
            self.values["dead", operation.stage] = statistics.dead_share(after, channel_dim)

    def weight_gradients(self, gradients: dict[int, Tensor]) -> None:
        """Take in the gradients of the layers' weights, keyed by the weights' identity."""
        for stage, weight in self.weights.items():
            if id(weight) in gradients:
                self.values["weight_gradient", stage] = statistics.mean_square(gradients[id(weight)])

    def detach(self) -> None:
        """Take every hook off and let go of the weights."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.weights.clear()

    def read(self) -> dict[Key, float]:
        """All values, moved from the device in one transfer."""
        if not self.values:
            return {}
        packed = torch.stack([value.detach().reshape(()).float() for value in self.values.values()])
        return dict(zip(self.values, packed.tolist(), strict=True))


def measure(model: nn.Module, loss: Loss, batch: Batch) -> tuple[Graph, Ledger]:
    """Trace and measure one forward and backward pass on `batch` = (inputs, targets); leaves no trace.

    Raises BadInput when the batch, the model or the loss cannot be used.
    """
    samples = check_batch(*batch)
    modules = [model, *([loss] if isinstance(loss, nn.Module) else [])]
    with untouched(*modules), torch.enable_grad():
        return _measure(model, loss, batch, samples)


def trace(model: nn.Module, x: Any) -> Graph:
    """The graph of one forward pass on inputs `x`, without any measuring; leaves no trace."""
    with untouched(model), torch.no_grad():
        tracer = Tracer(model)
        with tracer.of(model, x):
            output = run_model(model, x)
        return tracer.finish(output)


def _measure(model: nn.Module, loss: Loss, batch: Batch, samples: int) -> tuple[Graph, Ledger]:
    x, y = batch
    probes = Probes()
    tracer = Tracer(model, probes)
    for tensor in tensors_in(x):
        probes.stage_output(NETWORK_INPUT, tensor.detach())
    try:
        with tracer.of(model, x):
            output = run_model(model, x)
        value = run_loss(loss, output, y, within=tracer.of_loss())
        graph = tracer.finish(output)
        _backward(model, value, probes)
    finally:
        probes.detach()
    return graph, make_ledger(graph, probes.read(), probes.units, samples, float(value.detach()))


def _backward(model: nn.Module, loss: Tensor, probes: Probes) -> None:
    """Run the backward pass without touching any .grad, and hand the weights' gradients to the probes."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not loss.requires_grad or not parameters:
        raise BadInput(
            "the loss does not depend on any trainable parameter: everything is frozen, detached or computed under no_grad; "
            "set requires_grad=True on what should learn"
        )
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    probes.weight_gradients({id(p): g for p, g in zip(parameters, gradients, strict=True) if g is not None})


def make_ledger(
    graph: Graph, readings: dict[Key, float], units: dict[int, int], samples: int, loss: float | None
) -> Ledger:
    """The ledger of a graph from the readings (mean squares and shares) of its stages."""
    rows = tuple(_row(graph, stage, readings, units) for stage in graph.stages)
    source = None
    if ("signal", NETWORK_INPUT) in readings:
        # operations in front of the first layer make something else of the input
        name = "(in front)" if any(op.stage == NETWORK_INPUT for op in graph.operations) else "(input)"
        source = Row(NETWORK_INPUT, name, "", units[NETWORK_INPUT], **_levels(readings, NETWORK_INPUT))
    unknown = tuple(dict.fromkeys(f"{op.name} in {op.module or '(model)'}" for op in graph.unknown))
    return Ledger(rows, source, samples, loss, graph.coverage, unknown)


def _row(graph: Graph, stage: Stage, readings: dict[Key, float], units: dict[int, int]) -> Row:
    index, source = stage.index, stage.source
    gain, backward = _expected(graph, stage, readings)
    return Row(
        index=index,
        name=stage.name,
        description=stage.description,
        units=units.get(index, math.prod(stage.operations[-1].shape[1:])),
        gain=_ratio(readings, "signal", index, source),
        expected_gain=gain,
        backward_gain=_ratio(readings, "gradient", source, index),
        expected_backward_gain=backward,
        gradient=_root(readings, "gradient", index),
        dead=readings.get(("dead", index)),
        saturated=readings.get(("saturated", index)),
        weight=_root(readings, "weight", index),
        weight_gradient=_root(readings, "weight_gradient", index),
        update=_size_ratio(readings, index),
        **_levels(readings, index),
    )


def _levels(readings: dict[Key, float], index: int) -> dict[str, float | None]:
    alike = readings.get(("similarity", index))
    return {
        "signal": _root(readings, "signal", index),
        "offset": _root(readings, "offset", index),
        "similarity": None if alike is None or math.isnan(alike) else alike,
    }


def _root(readings: dict[Key, float], quantity: str, index: int) -> float | None:
    value = readings.get((quantity, index))
    return None if value is None else math.sqrt(value) if value >= 0 else math.nan


def _ratio(readings: dict[Key, float], quantity: str, top: int, bottom: int) -> float | None:
    above, below = _root(readings, quantity, top), _root(readings, quantity, bottom)
    return None if above is None or not below else above / below


def _size_ratio(readings: dict[Key, float], index: int) -> float | None:
    update, weight = _root(readings, "update", index), _root(readings, "weight", index)
    return None if update is None or not weight else update / weight


def _expected(graph: Graph, stage: Stage, readings: dict[Key, float]) -> tuple[float | None, float | None]:
    """Theory's forward and backward gain for the level that really came in."""
    signal, offset = (readings.get((quantity, stage.source)) for quantity in ("signal", "offset"))
    weight = readings.get(("weight", stage.index))
    if not signal or offset is None or weight is None or not math.isfinite(signal + offset + weight):
        return None, None
    norms = {
        op.index: (readings.get(("scale", op.index), 1.0), readings.get(("shift", op.index), 0.0))
        for op in stage.operations
        if op.kind == "normalization"
    }
    level, powers = Level(signal, offset), Powers(weight, readings.get(("bias", stage.index), 0.0), norms)
    after = expected_level(stage, level, powers)
    gain = math.sqrt(after.signal / signal) if after is not None else None
    return gain, expected_backward_gain(graph, stage, level, powers)
