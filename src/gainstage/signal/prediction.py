"""The traced network handed to the theory: what should flow at every stage, and how certain that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gainstage.program import tensors_in
from gainstage.signal import operations as ops
from gainstage.signal.graph import NETWORK_INPUT, Graph, Operation
from gainstage.signal.statistics import position_gaps
from gainstage.theory import operators as theory
from gainstage.theory.field import Field, field
from gainstage.theory.network import Node, Propagation, Reading, gradients, propagate
from gainstage.theory.spatial import Axis, columns_for, coverage

Readings = Mapping[tuple[str, int], float]


def nodes_of(graph: Graph, readings: Readings, columns: int) -> list[Node]:
    """One node of theory an operation, with the sizes of the weights as they were read; columns: of the fields' gaps."""
    nodes = [_node(op, readings, columns) for op in graph.operations]
    users: dict[Any, list[int]] = {}
    for stage in graph.stages:
        users.setdefault(stage.layer.weight or stage.layer.parameters or stage.index, []).append(stage.layer.index)
    skips = any(stage.skips for stage in graph.stages)
    for first, *others in filter(lambda found: len(found) > 1, users.values()):
        for index in (first, *others):
            nodes[index] = _shared(nodes[index], first, skips)
    return nodes


def _shared(node: Node, first: int, skips: bool) -> Node:
    """A layer whose weights others have as well. What skips such a layer has met the same weights behind it: the gradients
    that join are no longer independent."""
    operator = node.operator
    if skips and isinstance(operator, theory.Layer):
        operator = replace(operator, fan_out=math.nan)
    return replace(node, operator=operator, weights=first)


def _node(op: Operation, readings: Readings, columns: int) -> Node:
    operator = (
        _layer(op, readings, columns) if op.kind == "layer" else _TRANSLATIONS.get(op.kind, _unknown)(op, readings)
    )
    if len(op.sources) > 1 and op.kind in _OF_ONE:
        operator = theory.Unknown()
    ratio = _ratio(op)
    selects = isinstance(operator, theory.View) and ratio != 1 and op.outputs == 1
    return Node(operator, op.sources, len(op.shape) <= 2, op.outputs, selects)


_OF_ONE = ("normalization", "dropout", "pool", "reshape")  # kinds that theory knows of one tensor alone


def _ratio(op: Operation) -> float:
    """Elements behind over elements before."""
    before = op.sizes[0] if op.sizes else 0
    return op.outputs * math.prod(op.shape) / before if before else 1.0


def _unknown(op: Operation, readings: Readings) -> theory.Operator:
    return theory.Unknown()


def _layer(op: Operation, readings: Readings, columns: int) -> theory.Operator:
    power = readings.get(("weight", op.stage))
    if op.fans is None or power is None or len(op.sources) != 1:
        return theory.Unknown()
    bias = readings.get(("bias", op.stage), 0.0), readings.get(("bias_mean", op.stage), 0.0)
    stride = max(round(_mean(op.settings.get("stride", 1))), 1)
    if op.name in ops.TRANSPOSED:
        kept = _kept(op, columns)
        fan_in = op.fans.fan_out * kept * op.sizes[0] / math.prod(op.shape)
        upsampling = (stride, len(op.shape) - 2)
        return theory.Layer(fan_in, op.fans.fan_out * kept, power, *bias, op.channels, upsampling=upsampling)
    covered = coverage(_axes(op), columns) if op.name in ops.CONVOLUTIONS else ()
    fan_out = op.fans.fan_in * (covered[0] if covered else 1.0) * math.prod(op.shape) / op.sizes[0]
    return theory.Layer(op.fans.fan_in, fan_out, power, *bias, op.channels, stride, coverage=covered)


def _axes(op: Operation) -> tuple[Axis, ...]:
    kernel = op.settings["kernel"]
    padding, stride, dilation = (op.settings.get(name, default) for name, default in _TAPS)
    axes = []
    for i, taps in enumerate(kernel):
        spread = _at(dilation, i)
        around = spread * (taps - 1) // 2 if padding == "same" else 0 if padding == "valid" else _at(padding, i)
        place = i - len(kernel)
        axes.append(Axis(op.given[place], op.shape[place], taps, _at(stride, i), around, spread))
    return tuple(axes)


def _kept(op: Operation, columns: int) -> float:
    """Share of what a transposed convolution spreads that its padding does not cut off: there input and output change
    places."""
    return coverage(tuple(axis._replace(size=axis.positions, positions=axis.size) for axis in _axes(op)), columns)[0]


_TAPS = (("padding", 0), ("stride", 1), ("dilation", 1))


def _at(value: Any, i: int) -> int:
    return value[i % len(value)] if isinstance(value, (tuple, list)) else value


def _mean(value: Any) -> float:
    return sum(value) / len(value) if isinstance(value, (tuple, list)) else value


def _elementwise(op: Operation, readings: Readings) -> theory.Operator:
    if op.constants == 1 and len(op.sources) == 1:
        power, mean = readings.get(("constant", op.index)), readings.get(("constant_mean", op.index), 0.0)
        if power is None:
            return theory.Unknown()
        if op.kind == "multiply":
            return theory.Scale(power)
        return theory.Shift(power, mean, bool(readings.get(("constant_by_position", op.index))))
    if op.call is None or op.constants:
        return theory.Unknown()
    combine = "sum" if op.kind == "add" else "product" if "mul" in op.name else ""
    ratios = [math.prod(op.shape) / max(size, 1) for size in op.sizes]
    if len(op.shape) > 2:  # what one number sends to several positions comes back from all of them, more or less alike
        ratios = [ratio if ratio == 1 else math.nan for ratio in ratios]
    return theory.Pointwise(op.call, combine, tuple(ratios))


def _activation(op: Operation, readings: Readings) -> theory.Operator:
    return theory.Unknown() if op.call is None else theory.Pointwise(op.call)


def _normalization(op: Operation, readings: Readings) -> theory.Operator:
    weights = {
        "scale": readings.get(("scale", op.index), 1.0),
        "shift": readings.get(("shift", op.index), 0.0),
        "mean": readings.get(("shift_mean", op.index), 0.0),
        "eps": op.settings.get("eps") or 1e-5,
    }
    positions = len(op.shape) > 2
    if op.name == "batch_norm" and op.settings.get("training"):
        return theory.BatchNorm(**weights, samples=op.given[0])
    if op.name in ("layer_norm", "rms_norm"):
        shape = op.settings.get("normalized_shape", (op.shape[-1],))
        return theory.GroupNorm(shape[0], len(shape) > 1, centred=op.name == "layer_norm", **weights)
    if op.name == "group_norm":
        return theory.GroupNorm(op.shape[1] / op.settings.get("num_groups", 1), positions, **weights)
    if op.name == "instance_norm" and op.settings.get("use_input_stats", True):
        return theory.GroupNorm(1.0, True, **weights)
    return theory.Unknown()


def _dropout(op: Operation, readings: Readings) -> theory.Operator:
    if not op.settings.get("training", True):
        return theory.View()
    rate = float(op.settings.get("p", 0.5))
    return theory.Dropout(rate, "alpha" in op.name, op.name not in ("dropout", "alpha_dropout"))


def _pool(op: Operation, readings: Readings) -> theory.Operator:
    maximum, places = "max" in op.name, len(op.shape) - 2
    if op.name == "mean":
        return _mean_of_positions(op)
    if op.name.startswith("lp") or places < 1 or op.constants:
        return theory.Unknown()
    before, after = op.given[2:], op.shape[2:]
    if "adaptive" in op.name:
        window = tuple(math.ceil(b / a) for b, a in zip(before, after, strict=True))
        stride = window
    else:
        window = tuple(_at(op.settings.get("kernel_size", 1), i) for i in range(places))
        stride = op.settings.get("stride") or window
    return theory.Pool(window, max(round(_mean(stride)), 1), _ratio(op), maximum, math.prod(after) == 1 and not maximum)


def _mean_of_positions(op: Operation) -> theory.Operator:
    """The mean over all positions of images (batch, units, height, width) or tokens (batch, tokens, units)."""
    given = op.settings.get("dim")
    dims = {d % len(op.given) for d in (given if isinstance(given, (tuple, list)) else [given]) if isinstance(d, int)}
    positions = {1} if len(op.given) == 3 else set(range(2, len(op.given)))
    if dims != positions or not dims:
        return theory.Unknown()
    return theory.Pool(tuple(op.given[d] for d in sorted(dims)), 1, _ratio(op), everywhere=True)


def _join(op: Operation, readings: Readings) -> theory.Operator:
    return theory.Unknown() if op.constants else theory.Concatenation(tuple(float(size) for size in op.sizes))


def _reshape(op: Operation, readings: Readings) -> theory.Operator:
    if op.name != "pad":
        return theory.View(_ratio(op))
    zeros = op.settings.get("mode", "constant") == "constant" and not op.settings.get("value")
    return theory.Padding(1 / _ratio(op)) if zeros else theory.View(_ratio(op))


def _attention(op: Operation, readings: Readings) -> theory.Operator:
    if len(op.sources) != 3 or op.constants or op.settings.get("dropout_p"):
        return theory.Unknown()
    tokens = op.sizes[1] // max(math.prod(op.given[:-2]) * op.given[-1], 1)
    return theory.Attention(tokens, op.given[-1], op.settings.get("scale"), bool(op.settings.get("is_causal")))


_TRANSLATIONS: Mapping[str, Callable[[Operation, Readings], theory.Operator]] = {
    "normalization": _normalization,
    "activation": _activation,
    "pointwise": _activation,
    "add": _elementwise,
    "multiply": _elementwise,
    "dropout": _dropout,
    "pool": _pool,
    "join": _join,
    "reshape": _reshape,
    "attention": _attention,
}


@dataclass(frozen=True)
class Theory:
    """What theory says of a traced pass, operation by operation."""

    graph: Graph
    forward: Propagation
    backward: Mapping[int, tuple[float, float]]

    def level(self, operation: int) -> Field:
        """The field behind an operation, predicted from what came in."""
        return self.forward.predicted[operation]

    def gradient(self, operation: int) -> tuple[float, float]:
        """Power of the gradient with respect to an operation's output, and the variance of its logarithm."""
        return self.backward.get(self.forward.fields[operation].node, (math.nan, 0.0))


def theory_from_input(graph: Graph, readings: Readings, sources: Mapping[int, Field]) -> Theory:
    """Theory along the whole network from its inputs alone; of the gradient, from the network's output (there 1, where it
    was not measured)."""
    forward = propagate(nodes_of(graph, readings, columns_of(graph)), sources)
    start = {op: readings.get(("gradient", op), 1.0) for op in graph.outputs if op >= 0}
    return Theory(graph, forward, gradients(forward, start))


def theory_stage_by_stage(graph: Graph, readings: Readings, sources: Mapping[int, Field]) -> Theory:
    """Theory of each stage for what was measured in front of it (going back: behind it)."""
    forward = propagate(nodes_of(graph, readings, columns_of(graph)), sources, _measured(readings))
    powers = {op: power for (quantity, op), power in readings.items() if quantity == "gradient" and op >= 0}
    return Theory(graph, forward, gradients(forward, powers))


def _measured(readings: Readings) -> dict[int, Reading]:
    """Level, signal and the gaps of positions far apart by operation, where they are finite."""
    found: dict[int, Reading] = {}
    for (quantity, op), signal in readings.items():
        level = signal + readings.get(("offset", op), math.nan)
        if quantity == "signal" and op >= 0 and math.isfinite(level):
            far = [gap for name in ("far", "far_across") if (gap := readings.get((name, op))) is not None]
            found[op] = (level, signal, *far)
    return found


def columns_of(graph: Graph) -> int:
    """How many distances between positions the graph needs to know of: more than none and any only for windows."""
    windows = [op for op in graph.operations if op.kind == "pool" and op.name != "mean" and len(op.given) > 2]
    sides = [max(op.given[2:]) for op in graph.operations if op.name.startswith("conv") and len(op.given) > 2]
    return columns_for(max(sides, default=1)) if windows else 2


def source_fields(graph: Graph, readings: Readings, inputs: Any = None) -> dict[int, Field]:
    """The network's inputs as fields, by their numbers (NETWORK_INPUT and less). inputs: what the network was given; without
    it nothing is known of their positions."""
    first = next((op for op in graph.operations if op.kind == "layer"), None)
    channels_first = first is not None and first.channel_dim == 1
    given = dict(enumerate(tensors_in(inputs)))
    outside = {index for op in graph.operations for index in op.inputs if index < 0} | {NETWORK_INPUT}
    columns = columns_of(graph)
    return {i: _source(readings, i, given.get(NETWORK_INPUT - i), columns, channels_first) for i in outside}


def _source(readings: Readings, place: int, tensor: Tensor | None, columns: int, channels_first: bool) -> Field:
    signal, offset = (readings.get((quantity, place), math.nan) for quantity in ("signal", "offset"))
    source = field(signal, offset, columns, origins=frozenset({(place,)}), node=place)
    if tensor is not None and tensor.ndim <= 2:
        return source
    if tensor is None or tensor.is_meta or not tensor.is_floating_point() or len(tensor) < 2:
        return replace(source, gaps=_nothing_known(columns, signal))
    x = tensor.detach() if channels_first or tensor.ndim > 3 else tensor.detach().movedim(-1, 1)
    gaps = position_gaps(x, columns).double().cpu().numpy()
    gaps[0, 0], gaps[1, 0] = 0.0, signal
    return replace(source, gaps=gaps)


def _nothing_known(columns: int, signal: float) -> NDArray[np.float64]:
    gaps = np.full((2, columns), math.nan)
    gaps[0, 0], gaps[1, 0] = 0.0, signal
    return gaps
