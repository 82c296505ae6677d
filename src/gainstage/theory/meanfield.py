"""Infinitely wide random networks: fixed points, the correlation map, depth scales, the edge of chaos.

A network of this kind has weights of variance weight_power / fan_in and biases of variance bias_power. Its pre-activations
are Gaussian of variance q (the same for all samples), and two samples' pre-activations have correlation c.
Sources: Poole 2016; Schoenholz 2017; Zhang 2022 (tailored activations).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from gainstage.errors import BadInput
from gainstage.theory.activations import Activation
from gainstage.theory.moments import depth_scale, level_after, moments, signal_power, stationary_level

SMALLEST_POWER = 1e-6  # of pre-activations: below it single precision has little left
SURVIVAL = 6.0  # depth scales that a signal survives (Schoenholz 2017)


@dataclass(frozen=True)
class Phase:
    """What becomes of signal and gradient deep inside such a network.

    q: the fixed point of the pre-activations' power (0 or inf where there is none). chi: factor of the gradient's power
    per layer, and of a small difference between samples. correlation: the similarity that all samples approach.
    level_scale, correlation_scale: layers over which deviations from these fixed points fall by a factor e.
    """

    q: float
    chi: float
    correlation: float
    level_scale: float
    correlation_scale: float

    @property
    def name(self) -> str:
        """ "ordered" (gradients vanish, samples become alike), "critical" or "chaotic" (gradients explode)."""
        if math.isclose(self.chi, 1.0, abs_tol=1e-3):
            return "critical"
        return "ordered" if self.chi < 1 else "chaotic"

    @property
    def trainable_depth(self) -> float:
        """Largest number of layers through which information about the input passes: six correlation scales."""
        return SURVIVAL * self.correlation_scale


def phase(activation: Activation, weight_power: float, bias_power: float = 0.0) -> Phase:
    """The phase of a deep network of `activation`. Raises BadInput for powers that are not positive and finite."""
    _check_powers(weight_power, bias_power)
    q = stationary_level(activation, weight_power, bias_power, layers=2000)
    if not 1e-20 < q < 1e20:
        chi = weight_power * moments(activation, min(max(q, 1e-6), 1e6)).slope
        return Phase(q, chi, 1.0, depth_scale(chi), depth_scale(chi))
    chi = weight_power * moments(activation, q).slope
    correlation = correlation_fixed_point(activation, weight_power, bias_power, q)
    step = 1e-3 * q
    level_slope = weight_power * (level_after(activation, q + step) - level_after(activation, q - step)) / (2 * step)
    slope = chi if correlation > 1 - 1e-6 else _correlation_slope(activation, weight_power, bias_power, q, correlation)
    return Phase(q, chi, correlation, depth_scale(abs(level_slope)), depth_scale(slope))


def _check_powers(weight_power: float, bias_power: float) -> None:
    if not (weight_power > 0 and math.isfinite(weight_power) and bias_power >= 0 and math.isfinite(bias_power)):
        raise BadInput(
            f"a network's weight power must be positive and its bias power not negative, both finite, got {weight_power} "
            f"and {bias_power}"
        )


def correlation_map(activation: Activation, weight_power: float, bias_power: float, q: float, c: float) -> float:
    """Correlation of two samples' pre-activations one layer on, both of power q before and q' = weight_power E f^2 +
    bias_power after (Poole 2016, eq. 5)."""
    after = weight_power * moments(activation, q).second + bias_power
    return 1 - weight_power * signal_power(activation, q, q * (1 - c)) / after


def correlation_fixed_point(activation: Activation, weight_power: float, bias_power: float, q: float) -> float:
    """The correlation that two samples approach with depth: 1 in the ordered phase, below it in the chaotic one."""
    if weight_power * moments(activation, q).slope <= 1 + 1e-9:
        return 1.0
    low, high = 0.0, 1 - 1e-9

    def rises(c: float) -> bool:
        return correlation_map(activation, weight_power, bias_power, q, c) > c

    if not rises(low):
        return 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if rises(middle) else (low, middle)
    return (low + high) / 2


def _correlation_slope(activation: Activation, weight_power: float, bias_power: float, q: float, c: float) -> float:
    step = min(1e-3, (1 - c) / 2)
    above, below = (correlation_map(activation, weight_power, bias_power, q, c + s) for s in (step, -step))
    return abs(above - below) / (2 * step)


def edge_of_chaos(activation: Activation, q: float = 1.0) -> tuple[float, float]:
    """(weight_power, bias_power) for which q is a fixed point and chi is 1 (Schoenholz 2017): weight_power = 1 / E f'^2
    and bias_power = q - weight_power E f^2. Raises BadInput where that would take a negative bias power."""
    at = moments(activation, q)
    weight_power = 1 / at.slope
    bias_power = q - weight_power * at.second
    if bias_power < -1e-9 * q:
        raise BadInput(
            f"{activation.name} has no edge of chaos at pre-activation power {q:g}: it would take a negative bias "
            f"variance ({bias_power:.3g}); try a larger or smaller power"
        )
    return weight_power, max(bias_power, 0.0)


def level_keeping(activation: Activation, q: float) -> tuple[float, float]:
    """(weight_power, chi) without biases: the weight power q / E f^2 that keeps the pre-activations' power at q, and the
    factor chi = weight_power E f'^2 by which a layer then multiplies the gradient's power."""
    at = moments(activation, q)
    weight_power = q / at.second
    return weight_power, weight_power * at.slope


def power_for_depth(activation: Activation, depth: int, growth: float = 1.0) -> float:
    """The largest pre-activation power q up to 1 at which a network of `depth` layers that keeps its level changes the
    gradient's power by no more than e^growth in all: depth |ln chi(q)| <= growth.

    The smaller q, the more linear a smooth activation: the deeper the network, the smaller q must be. Raises BadInput for
    an activation that is not linear around 0 to within that (the logistic function), and for a depth below 1.
    """
    if depth < 1:
        raise BadInput(f"a network has at least one layer, got a depth of {depth}")

    def fits(q: float) -> bool:
        return depth * abs(math.log(level_keeping(activation, q)[1])) <= growth

    if fits(1.0):
        return 1.0
    low, high = SMALLEST_POWER, 1.0
    if not fits(low):
        raise BadInput(
            f"no weights keep both level and gradient through {depth} layers of {activation.name}; "
            "use another activation, or normalisation"
        )
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def leaky_correlation(slope: float, c: float) -> float:
    """Correlation map of a normalised leaky ReLU in closed form (Zhang 2022, eq. 6):
    c + (1 - a)^2 / (pi (1 + a^2)) (sqrt(1 - c^2) - c arccos c)."""
    c = min(max(c, -1.0), 1.0)
    bend = (1 - slope) ** 2 / (math.pi * (1 + slope**2))
    return c + bend * (math.sqrt(1 - c * c) - c * math.acos(c))


def composed(function: Callable[[float], float], depth: int, start: float) -> float:
    """function applied `depth` times."""
    for _ in range(depth):
        start = function(start)
    return start


def tailored_slope(depth: int, similarity: float = 0.9) -> float:
    """Slope a of a leaky ReLU such that a plain network of `depth` layers maps uncorrelated inputs to the given similarity
    (Zhang 2022, tailored activation transformation; they recommend 0.9). Raises BadInput for a depth below 1 and for a
    similarity outside (0, 1)."""
    if depth < 1:
        raise BadInput(f"a network has at least one layer, got a depth of {depth}")
    if not 0 < similarity < 1:
        raise BadInput(f"the similarity at the end must lie between 0 and 1, got {similarity}")
    low, high = 0.0, 1.0  # the deeper and the less linear, the more alike
    if composed(partial(leaky_correlation, low), depth, 0.0) < similarity:
        return low
    for _ in range(60):
        middle = (low + high) / 2
        reached = composed(partial(leaky_correlation, middle), depth, 0.0)
        low, high = (middle, high) if reached > similarity else (low, middle)
    return (low + high) / 2


def tailored_leaky_relu(depth: int, similarity: float = 0.9) -> Activation:
    """The leaky ReLU whose slope is worked out from the depth of the network."""
    slope = tailored_slope(depth, similarity)

    def function(z: Tensor) -> Tensor:
        return F.leaky_relu(z, slope)

    return Activation("leaky_relu", function, "relu")
