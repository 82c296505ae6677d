"""What theory expects of a stage: its operations handed one by one to the theory of propagation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from gainstage.signal.graph import NETWORK_INPUT, Graph, Operation, Stage
from gainstage.theory import (
    Level,
    moments,
    through_activation,
    through_batch_norm,
    through_dropout,
    through_layer,
    through_layer_norm,
)

SILENCE = 1e-12  # power below which an activation is taken at its slope around 0


@dataclass(frozen=True)
class Powers:
    """Mean squares of a layer's weight and bias as they are, and of the scale and shift of each normalisation behind it
    (by the index of its operation)."""

    weight: float
    bias: float = 0.0
    norms: Mapping[int, tuple[float, float]] = field(default_factory=dict)


def expected_level(stage: Stage, level: Level, powers: Powers) -> Level | None:
    """Level behind the stage for a level that comes in; None past anything that theory does not cover."""
    for op in stage.operations:
        after = _through(op, level, powers)
        if after is None:
            return None
        level = after
    return level


def _through(op: Operation, level: Level, powers: Powers) -> Level | None:
    scale, shift = powers.norms.get(op.index, (1.0, 0.0))
    if op.kind == "layer" and op.fans is not None:
        return through_layer(level, op.fans.fan_in, powers.weight, powers.bias)
    if op.kind == "activation" and op.activation is not None:
        return through_activation(level, op.activation)
    if op.name == "batch_norm" and op.settings.get("training"):
        return through_batch_norm(level, scale, shift)
    if op.name in ("layer_norm", "rms_norm"):
        return through_layer_norm(level, scale, shift)
    if op.kind == "dropout" and not op.settings.get("training"):
        return level
    if op.name == "dropout":
        return through_dropout(level, _rate(op))
    return level if op.kind == "reshape" else None


def _rate(op: Operation) -> float:
    return float(op.settings.get("p", 0.5))


def expected_backward_gain(graph: Graph, stage: Stage, level: Level, powers: Powers) -> float | None:
    """Gain of the gradient from the stage's output to its input; None where the input feeds other stages as well, or
    past anything that theory does not cover."""
    if stage.source == NETWORK_INPUT or len(graph.consumers(stage.source)) != 1 or stage.skips:
        return None
    gain = 1.0
    for op in stage.operations:
        after, factor = _through(op, level, powers), _backward(op, level, powers)
        if after is None or factor is None:
            return None
        level, gain = after, gain * factor
    return math.sqrt(gain)


def _backward(op: Operation, level: Level, powers: Powers) -> float | None:
    """Factor on the gradient's power from behind an operation to in front of it, for the level in front of it.

    A batch normalisation divides by the signal, a layer normalisation by the whole level.
    """
    if op.kind == "layer" and op.fans is not None:
        return op.fans.fan_out * powers.weight
    if op.kind == "activation" and op.activation is not None:
        return moments(op.activation, max(level.total, SILENCE)).slope
    if op.kind == "normalization":
        scale, _ = powers.norms.get(op.index, (1.0, 0.0))
        divisor = level.signal if op.name == "batch_norm" else level.total
        return scale / divisor if divisor > 0 else None
    if op.kind == "dropout" and op.settings.get("training"):
        return 1 / (1 - _rate(op)) if _rate(op) < 1 else 0.0
    return 1.0
