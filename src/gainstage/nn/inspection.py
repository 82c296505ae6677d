"""What one forward pass shows of a network, as far as self-normalisation goes: what enters it, what its hidden layers weigh,
and what stands between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gainstage.errors import BadInput
from gainstage.nn.blocks import value_of
from gainstage.nn.sample_moments import SampleMoments
from gainstage.program import run_model
from gainstage.signal import NETWORK_INPUT, Graph, Operation, Stage, untouched
from gainstage.signal import operations as ops
from gainstage.signal.example import trace_example
from gainstage.signal.trace import Observer, Tracer

ACTIVATIONS, SEQUENTIAL, DENSE = "SELU behind every hidden layer", "sequential architecture", "dense layers"
DROPOUT, NORMALIZATION = "alpha dropout instead of dropout", "no normalisation between"
CONVOLUTIONS, UNKNOWN = "convolutions", "unknown"  # against no condition: fine in practice, and cannot be told

UNDERSTOOD = ("normalization", "activation", "add", "multiply", "pointwise")  # kinds that may have parameters
OPEN = ("unknown", "transform", "scatter", "reduce")  # kinds of which nobody has proved anything
TYPES = {  # modules that speak against a condition, whatever is done with them
    SEQUENTIAL: (nn.RNNBase, nn.RNNCellBase),
    DENSE: (nn.Embedding, nn.EmbeddingBag, nn.Bilinear, nn.MultiheadAttention),
    DROPOUT: (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    NORMALIZATION: (
        nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm,
    ),
    CONVOLUTIONS: (nn.modules.conv._ConvNd,),
}  # fmt: skip
Against = dict[str, list[str]]  # condition: what speaks against it, and where


@dataclass(frozen=True)
class HiddenLayer:
    """A layer that feeds another one, with its weights as they are used and its biases, each in one row; None for what
    cannot be read: the forward pass computes it, or it is on the meta device."""

    name: str
    fan_in: float
    weights: Tensor | None
    biases: Tensor | None


@dataclass(frozen=True)
class Inspection:
    """What was seen. operations: of the traced pass, 0 when none could be traced. standardises: batch normalisation stands
    in front of the first layer. features: what enters the first layer, one column a feature; None without data."""

    against: Against
    operations: int = 0
    layers: tuple[HiddenLayer, ...] = ()
    standardises: bool = False
    features: SampleMoments | None = None


def inspect(model: nn.Module, x: Any = None) -> Inspection:
    """Trace the model in training mode on inputs `x`, or on an example; where no example fits, look at its modules alone.

    Leaves no trace. Raises BadInput when the model cannot be run on `x`.
    """
    try:
        with untouched(model), torch.no_grad():
            model.train()
            graph, features = (trace_example(model), None) if x is None else _trace(model, x)
            graph = _of_dense_layers(graph)
            hidden = [_layer(model, stage) for stage in _hidden(graph) if stage.layer.fans is not None]
    except BadInput:
        if x is not None:
            raise
        return Inspection(_against_by_type(model))
    front = any(op.name == "batch_norm" and op.stage == NETWORK_INPUT for op in graph.operations)
    return Inspection(_against(graph), len(graph.operations), tuple(hidden), front, features)


# ---------------------------------------------------------------- numbers
class _AtTheInput(Observer):
    """Measures what enters the first layer, one column a feature (a channel, for a convolution)."""

    entering: Tensor | None = None
    found: SampleMoments | None = None

    def stage_output(self, operation: int, stage: int, tensor: Tensor) -> None:
        if stage == NETWORK_INPUT:
            self.entering = tensor

    def layer(self, operation: Operation, weight: Tensor | None, bias: Tensor | None) -> None:
        if self.found is None and self.entering is not None and self.entering.ndim > 1:
            columns = self.entering.movedim(operation.channel_dim, -1).flatten(0, -2)
            self.found = SampleMoments.of(columns, len(self.entering))  # positions of one sample are not independent


def _trace(model: nn.Module, x: Any) -> tuple[Graph, SampleMoments | None]:
    observer = _AtTheInput()
    tracer = Tracer(model, observer)
    with tracer.of(model, x):
        output = run_model(model, x)
    return tracer.finish(output), observer.found


def _of_dense_layers(graph: Graph) -> Graph:
    """The graph with stages of dense layers and convolutions alone: any other layer is an operation of the stage in front."""
    number, kept = {NETWORK_INPUT: NETWORK_INPUT}, []
    for stage in graph.stages:
        dense = stage.layer.name in ops.DENSE
        number[stage.index] = len(kept) if dense else number[stage.source]
        kept += [stage] if dense else []
    operations = tuple(replace(op, stage=number[op.stage]) for op in graph.operations)
    stages = tuple(
        replace(
            stage,
            index=index,
            operations=tuple(op for op in operations if op.stage == index),
            source=number[stage.source],
            skips=tuple(sorted({number[skip] for skip in stage.skips} - {index})),
        )
        for index, stage in enumerate(kept)
    )
    return replace(graph, operations=operations, stages=stages, output_stage=number[graph.output_stage])


def _hidden(graph: Graph) -> list[Stage]:
    """Stages that feed another one, and those with a SELU."""
    fed = {source for stage in graph.stages for source in (stage.source, *stage.skips)}
    return [stage for stage in graph.stages if stage.index in fed or any(op.name == "selu" for op in stage.operations)]


def _layer(model: nn.Module, stage: Stage) -> HiddenLayer:
    name, parameters = stage.layer.weight, [model.get_parameter(name) for name in stage.layer.parameters]
    weight = model.get_parameter(name) if name else value_of(model.get_submodule(stage.layer.module), "weight")
    if not name and isinstance(weight, nn.Parameter):  # the layer runs with something made of it
        weight = None
    assert stage.layer.fans is not None
    weights = None if weight is None else _row([weight])
    biases = _row([parameter for parameter in parameters if parameter.ndim == 1])
    return HiddenLayer(stage.name, stage.layer.fans.fan_in, weights, biases)


def _row(tensors: Sequence[Tensor]) -> Tensor | None:
    if any(tensor.is_meta for tensor in tensors):
        return None
    rows = [tensor.detach().flatten() for tensor in tensors]
    return rows[0] if len(rows) == 1 else torch.cat([torch.zeros(0), *rows])


# ---------------------------------------------------------------- architecture
def _against(graph: Graph) -> Against:
    """By what the forward pass did, however the module is written."""
    hidden, operations = _hidden(graph), graph.operations
    inside = [op for stage in hidden for op in stage.operations]
    crossing = [op for op in operations if _joins(graph, op) or op.name in ops.RECURRENT]
    foreign = [op for op in operations if _is_foreign(op)]
    convolutions = [stage.layer for stage in graph.stages if stage.layer.name != "linear"]
    return {
        ACTIVATIONS: [text for stage in hidden for text in _not_selu(stage)],
        SEQUENTIAL: [*_places(crossing), *_repeated(graph)],
        DENSE: _places(foreign) if graph.stages else ["there is no layer"],
        DROPOUT: _places(op for op in operations if _is_plain_dropout(op)),
        NORMALIZATION: _places(op for op in operations if op.kind == "normalization" and op.stage != NETWORK_INPUT),
        CONVOLUTIONS: _places([*convolutions, *(op for op in inside if op.kind == "pool")]),
        UNKNOWN: _places(op for op in inside if op.kind in OPEN and not op.parameters),
    }


def _is_foreign(op: Operation) -> bool:
    """True for layers that are no dense ones, and for products of two signals."""
    layer = bool(op.parameters) and op.kind not in UNDERSTOOD and op.name not in ops.DENSE | ops.RECURRENT
    return layer or op.kind in ("attention", "matmul")


def _against_by_type(model: nn.Module) -> Against:
    """By the types of the modules: what is not found may still be there."""
    against: Against = {condition: [] for condition in TYPES}
    if next(model.parameters(), None) is None:
        against[DENSE].append("there is no layer")
    for path, module in model.named_modules():
        for condition, types in TYPES.items():
            if isinstance(module, types) and getattr(module, "p", 1) > 0:  # a dropout of rate 0 does nothing
                against[condition].append(f"{type(module).__name__} in {path or 'the model'}")
    return against


def _places(operations: Iterable[Operation]) -> list[str]:
    return [f"{op.name} in {op.module or 'the model'}" for op in operations]


def _not_selu(stage: Stage) -> list[str]:
    """Whatever else changes the distribution of a hidden stage's signal."""
    others = _places(op for op in stage.operations if _changes_distribution(op))
    if not others and all(op.name != "selu" for op in stage.operations):
        return [f"none behind {stage.name}"]
    return others


def _changes_distribution(op: Operation) -> bool:
    alone = op.kind in ("add", "multiply") and len(op.inputs) == 1
    return alone or (op.kind in ("activation", "pointwise", "softmax") and op.name != "selu")


def _joins(graph: Graph, op: Operation) -> bool:
    """True for an operation on the outputs of several stages."""
    return len({NETWORK_INPUT if i == NETWORK_INPUT else graph.operations[i].stage for i in op.inputs}) > 1


def _repeated(graph: Graph) -> list[str]:
    """Layers that run with weights which have run before: recurrence by hand."""
    keys = [stage.layer.weight or stage.layer.parameters for stage in graph.stages]
    return [f"{stage.name} again" for i, stage in enumerate(graph.stages) if keys[i] and keys[i] in keys[:i]]


def _is_plain_dropout(op: Operation) -> bool:
    rate, training = op.settings.get("p", 0.5), op.settings.get("training", True)
    return op.kind == "dropout" and not op.name.endswith("alpha_dropout") and bool(training) and rate > 0
