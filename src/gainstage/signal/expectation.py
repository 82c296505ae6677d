"""What theory expects of a stage: its operations handed one by one to the theory of propagation."""

from __future__ import annotations

from dataclasses import dataclass

from gainstage.signal.graph import NETWORK_INPUT, Graph, Operation, Stage
from gainstage.theory import (
    Level,
    gradient_gain,
    through_activation,
    through_batch_norm,
    through_dropout,
    through_layer,
    through_layer_norm,
)


@dataclass(frozen=True)
class LayerPowers:
    """Mean squares of a layer's weight and bias as they are."""

    weight: float
    bias: float


@dataclass(frozen=True)
class NormalizationPowers:
    """Mean squares of a normalisation's own scale and shift."""

    weight: float = 1.0
    bias: float = 0.0


def expected_level(stage: Stage, level: Level, powers: LayerPowers) -> Level | None:
    """Level behind the stage for a level that comes in; None past anything that theory does not cover."""
    for op in stage.operations:
        after = _through(op, level, powers)
        if after is None:
            return None
        level = after
    return level


def _through(op: Operation, level: Level, powers: LayerPowers) -> Level | None:
    if op.kind == "layer" and op.fans is not None:
        return through_layer(level, op.fans.fan_in, powers.weight, powers.bias)
    if op.kind == "activation" and op.activation is not None:
        return through_activation(level, op.activation)
    if op.name == "batch_norm" and op.settings.get("training"):
        return through_batch_norm(level)
    if op.name in ("layer_norm", "rms_norm"):
        return through_layer_norm(level)
    if op.kind == "dropout":
        return through_dropout(level, float(op.settings.get("p", 0.5))) if op.settings.get("training") else level
    if op.kind == "reshape":
        return level
    return None


def expected_backward_gain(graph: Graph, stage: Stage, level: Level, powers: LayerPowers) -> float | None:
    """Gain of the gradient from the stage's output to its input; None where the input feeds other stages as well, or
    past anything that theory does not cover."""
    if stage.source == NETWORK_INPUT or len(graph.consumers(stage.source)) != 1 or stage.skips:
        return None
    fans = stage.layer.fans
    if fans is None or any(_through(op, level, powers) is None for op in stage.operations):
        return None
    before = through_layer(level, fans.fan_in, powers.weight, powers.bias)
    scale = 1.0
    for op in stage.operations[1:]:
        if op.kind == "normalization" and stage.activation is not None:
            after = _through(op, before, powers)
            scale *= after.total / before.total if after and before.total else 1.0
            before = after or before
        if op.kind == "dropout" and op.settings.get("training"):
            rate = float(op.settings.get("p", 0.5))
            scale = scale / (1 - rate) if rate < 1 else 0.0
    return gradient_gain(stage.activation, before.total, fans.fan_out, powers.weight, scale)
