"""Which weights each stage gets: one function a scheme, from the traced graph and theory alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from gainstage.errors import BadInput
from gainstage.initialization.stages import follower, scheme_of
from gainstage.nn.initializers import fill
from gainstage.nn.orthogonal import DeltaOrthogonal, Orthogonal
from gainstage.signal import NETWORK_INPUT, Graph, Stage
from gainstage.theory import Activation, Fans, edge_of_chaos, moments

OUTPUT_GAIN = 0.1  # logits of standard deviation 0.1 raise the cross-entropy above chance by 0.005
EDGE_POWERS = (0.05, 1.0)  # pre-activation powers tried: small, where a smooth activation is nearly linear, then 1
KEEP = ("signal", "gradient", "both")

Draw = Callable[[Tensor], object]


@dataclass(frozen=True)
class Plan:
    """What one stage's layer gets: the variance of its weights, of its bias, whether orthogonal, and why."""

    scheme: str
    variance: float
    reason: str
    bias_variance: float = 0.0
    orthogonal_gain: float | None = None

    def scaled(self, factor: float, why: str) -> Plan:
        """The same with weights times `factor`."""
        gain = None if self.orthogonal_gain is None else self.orthogonal_gain * factor
        reason = f"{self.reason}; x{factor:.3g} {why}"
        return replace(self, variance=self.variance * factor**2, orthogonal_gain=gain, reason=reason)

    def draw(self, weight: Tensor, distribution: str, generator) -> None:
        """Fill `weight` in place."""
        if self.orthogonal_gain is None:
            fill(weight, self.variance, distribution, generator)
        elif _fits_delta(weight):
            DeltaOrthogonal(self.orthogonal_gain)(weight, generator=generator)
        else:
            Orthogonal(self.orthogonal_gain)(weight, generator=generator)


def _fits_delta(weight: Tensor) -> bool:
    odd = all(size % 2 for size in weight.shape[2:])
    return weight.ndim > 2 and odd and weight.shape[0] >= weight.shape[1]


def auto(graph: Graph, stage: Stage, fans: Fans) -> Plan:
    """The chapter's table (Glorot & Bengio 2010, He 2015, LeCun 1998)."""
    chosen = scheme_of(stage)
    reason = f"{chosen.name} fits {follower(stage)}: variance {chosen.scale:.3g}/{chosen.mode}"
    return Plan(chosen.name, chosen.variance(fans), reason)


def exact(graph: Graph, stage: Stage, fans: Fans, keep: str = "signal") -> Plan:
    """The variance that gives pre-activations of variance 1, from the very activation in front of the layer, or that
    keeps the gradient, from the one behind it, or the geometric mean of both.

    Signal: 1 / (fan_in E f(z)^2) for z ~ N(0, 1) and f in front of the layer (1 for the input). Gradient:
    1 / (fan_out E f'(z)^2) with f behind it.
    """
    before = None if stage.source == NETWORK_INPUT else graph.stages[stage.source].activation
    power = 1.0 if before is None else moments(before).second
    slope = 1.0 if stage.activation is None else moments(stage.activation).slope
    variances = {"signal": 1 / (fans.fan_in * power), "gradient": 1 / (fans.fan_out * slope)}
    variances["both"] = math.sqrt(variances["signal"] * variances["gradient"])
    front = "the input" if stage.source == NETWORK_INPUT else "no activation" if before is None else before.name
    reasons = {
        "signal": f"E f^2 = {power:.4g} in front ({front})",
        "gradient": f"E f'^2 = {slope:.4g} behind ({follower(stage)})",
    }
    reasons["both"] = f"{reasons['signal']}, {reasons['gradient']}"
    return Plan(f"exact, keeps {keep}", variances[keep], reasons[keep])


def isometric(graph: Graph, stage: Stage, fans: Fans) -> Plan:
    """Orthogonal weights at the edge of chaos (Saxe 2014; Pennington 2017; Xiao 2018): gain^2 = 1 / E f'^2, and the bias
    that makes the pre-activations' power q a fixed point. The first layer brings inputs of power 1 to q at once."""
    if stage.activation is None:
        return Plan("orthogonal", 1 / fans.fan_in, "no activation behind: gain 1", orthogonal_gain=1.0)
    edge = stable_edge(stage.activation)
    power = edge.q - edge.bias_power if stage.source == NETWORK_INPUT else edge.weight_power
    reason = f"edge of chaos of {stage.activation.name} at q = {edge.q:g}: gain {math.sqrt(power):.4g}"
    return Plan("orthogonal", power / fans.fan_in, reason, edge.bias_power, math.sqrt(power))


def measured(graph: Graph, stage: Stage, fans: Fans) -> Plan:
    """Orthogonal weights of gain 1, to be scaled to the data afterwards (Mishkin 2015)."""
    return Plan("orthogonal", 1 / fans.fan_in, "then scaled to unit variance on the data", orthogonal_gain=1.0)


class Edge(NamedTuple):
    """A point on the edge of chaos: the pre-activations' power, and the powers of weights and biases that keep it."""

    q: float
    weight_power: float
    bias_power: float


def stable_edge(activation: Activation) -> Edge:
    """The edge of chaos at the smallest of some pre-activation powers that the network itself returns to; at 1 for
    activations to which the scale does not matter. Raises BadInput where there is none."""
    for q in EDGE_POWERS:
        try:
            weight_power, bias_power = edge_of_chaos(activation, q)
        except BadInput:
            continue
        if bias_power < 1e-9:
            return Edge(1.0, weight_power, 0.0)
        # a little above the fixed point the level must not run away
        above = weight_power * moments(activation, 1.01 * q).second + bias_power
        if above <= 1.01 * q * (1 + 1e-6):
            return Edge(q, weight_power, bias_power)
    raise BadInput(
        f"{activation.name} has no stable edge of chaos; use the scheme 'data' or 'exact', or another activation"
    )


PLANS = {"auto": auto, "exact": exact, "isometric": isometric, "data": measured}


def plan_for(graph: Graph, stage: Stage, scheme: str, keep: str) -> Plan:
    """The plan of one stage, with residual branches and the output scaled; BadInput where theory has no answer."""
    fans = stage.layer.fans
    assert fans is not None
    plan = exact(graph, stage, fans, keep) if scheme == "exact" else PLANS[scheme](graph, stage, fans)
    branches = sum(is_branch_end(other) for other in graph.stages)
    if is_branch_end(stage) and stage.first("normalization") is None:
        plan = plan.scaled(branches**-0.5, f"so that {branches} branches add up to one signal")
    if stage.index == graph.output_stage and scheme != "auto":
        plan = plan.scaled(OUTPUT_GAIN, "so that the loss starts at chance")
    return plan


def is_branch_end(stage: Stage) -> bool:
    """True for the last layer of a residual branch: its output is added to a skip connection."""
    return bool(stage.skips) and stage.first("add") is not None and stage.layer.fans is not None


def check_names(scheme: str, keep: str) -> None:
    """BadInput, with the known names, for a scheme or a quantity to keep that is not known."""
    if scheme not in PLANS:
        raise BadInput(f"no scheme is called {scheme!r}; known are: {', '.join(PLANS)}")
    if keep not in KEEP:
        raise BadInput(f"keep must be one of {', '.join(KEEP)}, got {keep!r}")
