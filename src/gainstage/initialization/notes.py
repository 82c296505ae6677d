"""What the table of gs.initialize has to say of a stage beside its variance: where no weights, or no theory, can help."""

from __future__ import annotations

import math
from functools import lru_cache

from torch import nn

from gainstage.signal import Graph, Stage
from gainstage.signal.functions import constants_in, has_mixed_function
from gainstage.signal.operations import is_elementwise
from gainstage.theory import Activation, level_keeping, moments
from gainstage.theory.meanfield import INFINITY, RUNAWAY, level_exponent, outer_slope

DEAD = "a dead function follows: its output does not depend on its input"
MIXED = "taken for no activation: theory does not follow the parameters inside {}"
SLOPES = "its slopes differ from unit to unit: taken with their mean"
UNSTABLE = (
    "unstable through {} layers: a level 1 % too high is {:.3g} % too high one layer on, and so forth; "
    "put a normalisation between"
)


def on_function(graph: Graph, stage: Stage, assumed: bool) -> list[str]:
    """Of a function behind the layer that theory cannot work with. assumed: the weights are worked out by theory."""
    notes = [DEAD] if is_dead(graph, stage) else []
    if assumed and has_mixed_function(stage.operations):
        notes.append(
            MIXED.format("+".join(dict.fromkeys(op.name for op in stage.operations if is_elementwise(op.kind))))
        )
    return notes


def on_slopes(model: nn.Module, stage: Stage) -> list[str]:
    """Of a PReLU with a slope for each unit, where they are not alike."""
    names = [name for op in stage.operations if op.name == "prelu" for name in op.parameters]
    slopes = [slope.flatten() for slope in map(model.get_parameter, names) if not slope.is_meta]
    return [SLOPES] if any(bool((slope != slope[0]).any()) for slope in slopes) else []


def is_followed(graph: Graph, stage: Stage) -> bool:
    """False where theory does not know the power behind a stage, and takes it for 1."""
    return not (has_mixed_function(stage.operations) or is_dead(graph, stage))


def is_dead(graph: Graph, stage: Stage) -> bool:
    """True where nothing that leaves a stage depends on its layer: behind x * 0, say. A gate that may open is not dead."""
    constant = constants_in(stage.operations)
    if not constant:
        return False
    alive = {stage.layer.index}
    for op in stage.operations[1:]:
        if alive & set(op.inputs) and op.index not in constant:
            alive.add(op.index)
    inside = {op.index for op in stage.operations}
    taken = {index for op in graph.operations if op.index not in inside for index in op.inputs}
    return not alive & (taken | set(graph.outputs))


def on_stability(graph: Graph, stage: Stage) -> list[str]:
    """Of weights that keep the power of the pre-activations at 1, where that is a fixed point which the level leaves.

    The derivative of q -> sigma_w^2 E f(sqrt(q) z)^2 at q = 1 is d ln E f^2 / d ln q there (Poole 2016). Above 1 the level
    leaves; how far it gets is told by the factor by which a layer raises a large power, sigma_w^2 times the mean square
    slope at infinity. GELU, SiLU, Mish and Hardswish are unstable too, but train until that reaches e^RUNAWAY over the
    depth.
    """
    if stage.activation is None:
        return []
    exponent, growth = _instability(stage.activation)
    if not (exponent > 1 and growth > math.exp(RUNAWAY / len(graph.stages))):
        return []
    depth = plain_depth(graph)
    return [UNSTABLE.format(depth, exponent)] if depth > 1 and growth > math.exp(RUNAWAY / depth) else []


@lru_cache(maxsize=256)
def _instability(activation: Activation) -> tuple[float, float]:
    """(derivative of the level map at power 1, factor by which a layer raises a large power), for weights that keep 1."""
    if not 0 < moments(activation).second < math.inf:
        return math.nan, math.nan
    return level_exponent(activation, 1.0), level_keeping(activation, 1.0)[0] * outer_slope(activation, INFINITY)


def plain_depth(graph: Graph) -> int:
    """Activations in a row on the main path without a normalisation, which sets the level anew, between them; at least 1."""
    longest, run = 1, 0
    for stage in map(graph.stages.__getitem__, graph.main_path()):
        run = 0 if stage.first("normalization") else run
        run += stage.activation is not None
        longest = max(longest, run)
    return longest
