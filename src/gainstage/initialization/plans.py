"""Which weights each stage gets: one function a scheme, from the traced graph and theory alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from gainstage.errors import BadInput
from gainstage.initialization.notes import is_followed, on_function, on_stability, plain_depth
from gainstage.initialization.stages import follower, scheme_of
from gainstage.nn.initializers import fill
from gainstage.nn.orthogonal import DeltaOrthogonal, Orthogonal
from gainstage.signal import NETWORK_INPUT, Graph, Stage
from gainstage.theory import Activation, Fans, finite_moments, level_keeping, power_for_depth

OUTPUT_GAIN = 0.1  # logits of standard deviation 0.1 raise the cross-entropy above chance by 0.005
KEEP = ("signal", "gradient", "both")

Draw = Callable[[Tensor], object]


@dataclass(frozen=True)
class Plan:
    """What one stage's layer gets: the variance of its weights, the gain where they are orthogonal, and why."""

    scheme: str
    variance: float
    reason: str
    orthogonal_gain: float | None = None
    groups: int = 1

    def scaled(self, factor: float, why: str) -> Plan:
        """The same with weights times `factor`."""
        gain = None if self.orthogonal_gain is None else self.orthogonal_gain * factor
        reason = f"{self.reason}; x{factor:.3g} {why}"
        return replace(self, variance=self.variance * factor**2, orthogonal_gain=gain, reason=reason)

    def draw(self, weight: Tensor, distribution: str, generator) -> None:
        """Fill `weight` in place."""
        if self.orthogonal_gain is None:
            fill(weight, self.variance, distribution, generator)
        elif self.groups == 1 and _fits_delta(weight):
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
    before = _activation_in_front(graph, stage)
    power = 1.0 if before is None else finite_moments(before).second
    slope = 1.0 if stage.activation is None else finite_moments(stage.activation).slope
    if slope == 0 and keep != "signal":
        raise BadInput(
            f"the slope of {follower(stage)} behind {stage.name} is zero everywhere: no weights keep its gradient; "
            "use keep='signal'"
        )
    variances = {"signal": 1 / (fans.fan_in * power), "gradient": 1 / (fans.fan_out * slope) if slope else math.nan}
    variances["both"] = math.sqrt(variances["signal"] * variances["gradient"])
    reasons = {
        "signal": f"E f^2 = {power:.4g} in front ({_front(graph, stage)})",
        "gradient": f"E f'^2 = {slope:.4g} behind ({follower(stage)})",
    }
    reasons["both"] = f"{reasons['signal']}, {reasons['gradient']}"
    return Plan(f"exact, keeps {keep}", variances[keep], reasons[keep])


def _activation_in_front(graph: Graph, stage: Stage) -> Activation | None:
    return None if stage.source == NETWORK_INPUT else graph.stages[stage.source].activation


def _front(graph: Graph, stage: Stage) -> str:
    """What the layer takes in, in words."""
    if stage.source == NETWORK_INPUT:
        return "the input"
    before = graph.stages[stage.source]
    if before.activation is not None:
        return before.activation.name
    return "no activation" if is_followed(graph, before) else "not known, taken for 1"


def isometric(graph: Graph, stage: Stage, fans: Fans) -> Plan:
    """Orthogonal weights that keep the pre-activations' power at q, with q so small that level, gradient and signal survive
    the whole depth (Saxe 2014; Pennington 2017). The first layer brings inputs of power 1 to q. Raises BadInput where no q
    does: see power_for_depth."""
    depth = plain_depth(graph)
    if stage.activation is None:
        power = 1 / _power_in_front(graph, stage, depth)
        reason = f"no activation behind: brings the power {1 / power:.3g} in front back to 1"
    else:
        q = power_for_depth(stage.activation, depth)
        power = q / _power_in_front(graph, stage, depth)
        reason = f"{stage.activation.name} at q = {q:.3g} for a depth of {depth}: gain {math.sqrt(power):.4g}"
    return Plan("orthogonal", power / fans.fan_in, reason, math.sqrt(power))


def _power_in_front(graph: Graph, stage: Stage, depth: int) -> float:
    """Power of what an isometric network hands to a stage: E f^2 of the activation in front, 1 without one."""
    before = _activation_in_front(graph, stage)
    if before is None:
        return 1.0
    q = power_for_depth(before, depth)
    return q / level_keeping(before, q)[0]


def measured(graph: Graph, stage: Stage, fans: Fans) -> Plan:
    """Orthogonal weights of gain 1, to be scaled to the data afterwards (Mishkin 2015)."""
    return Plan("orthogonal", 1 / fans.fan_in, "then scaled to unit variance on the data", orthogonal_gain=1.0)


PLANS = {"auto": auto, "exact": exact, "isometric": isometric, "data": measured}


def plan_for(graph: Graph, stage: Stage, scheme: str = "auto", keep: str = "signal") -> Plan:
    """The plan of one stage, with residual branches and the output scaled; BadInput where theory has no answer."""
    fans = stage.layer.fans
    assert fans is not None
    plan = exact(graph, stage, fans, keep) if scheme == "exact" else PLANS[scheme](graph, stage, fans)
    ends = branch_ends(graph)
    if stage.index in ends and stage.first("normalization") is None:
        plan = plan.scaled(len(ends) ** -0.5, f"so that {len(ends)} branches add up to one signal")
    plan = replace(plan, groups=int(stage.layer.settings.get("groups", 1)))
    if stage.index == graph.output_stage and scheme != "auto":
        plan = plan.scaled(OUTPUT_GAIN, "so that the loss starts at chance")
    notes = on_function(graph, stage, assumed=scheme != "data")
    if scheme == "exact" and keep == "signal":
        notes += on_stability(graph, stage)
    return replace(plan, reason="; ".join([plan.reason, *notes]))


def branch_ends(graph: Graph) -> frozenset[int]:
    """Stages whose layer ends a residual branch: of the two operands of an addition on the main path, the one that does
    not lie on it."""
    path = graph.main_path()
    ends: set[int] = set()
    for before, index in zip((NETWORK_INPUT, *path), path, strict=False):
        stage = graph.stages[index]
        if stage.skips and stage.first("add") is not None:
            ends |= {index} if before in stage.skips else set(stage.skips) - {NETWORK_INPUT, *path}
    return frozenset(end for end in ends if graph.stages[end].layer.fans is not None)


def is_gate(graph: Graph, stage: Stage, weight: Tensor) -> bool:
    """True for a branch that is closed by a weight of zeros."""
    return stage.index in branch_ends(graph) and not bool(weight.detach().any())


def check_names(scheme: str, keep: str) -> None:
    """BadInput, with the known names, for a scheme or a quantity to keep that is not known."""
    if not isinstance(scheme, str) or scheme not in PLANS:
        raise BadInput(f"no scheme is called {scheme!r}; known are: {', '.join(PLANS)}")
    if keep not in KEEP:
        raise BadInput(f"keep must be one of {', '.join(KEEP)}, got {keep!r}")
