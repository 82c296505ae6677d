"""What an activation does to a Gaussian signal: the numbers behind every initialisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from gainstage.errors import BadInput
from gainstage.theory.activations import Activation
from gainstage.theory.quadrature import derivative, gaussian_nodes

HERMITE_ORDER = 64
# the half difference of two samples is integrated over a smooth weight: plain Gauss-Hermite converges there
_HERMITE_NODES, _HERMITE_WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(HERMITE_ORDER))
_HERMITE_WEIGHTS = _HERMITE_WEIGHTS / _HERMITE_WEIGHTS.sum()


@dataclass(frozen=True)
class Moments:
    """Moments of f(z) for z ~ N(mean, q).

    mean = E f, second = E f^2, slope = E f'^2 (mean square derivative), fourth = E f'^4, all dimensionless.
    """

    q: float
    mean: float
    second: float
    slope: float
    fourth: float

    @property
    def variance(self) -> float:
        """Var f."""
        return self.second - self.mean**2

    @property
    def level_gain(self) -> float:
        """Factor on the weights' 1/sqrt(fan_in) that keeps the level: sqrt(q / E f^2) (He 2015 for ReLU: sqrt 2)."""
        return math.sqrt(self.q / self.second)

    @property
    def gradient_gain(self) -> float:
        """Factor on the weights' 1/sqrt(fan_out) that keeps the gradient: 1/sqrt(E f'^2) (Schoenholz 2017: chi = 1)."""
        return 1 / math.sqrt(self.slope)


@lru_cache(maxsize=4096)
def moments(activation: Activation, q: float = 1.0, mean: float = 0.0) -> Moments:
    """Moments of `activation` at pre-activation variance `q` around `mean`, by quadrature split at the activation's kinks."""
    z, weights = gaussian_nodes(q, [kink - mean for kink in activation.kinks], -mean)
    z = z + mean
    value, slope = activation.function(z), derivative(activation.function, z)
    return Moments(
        q=q,
        mean=float((weights * value).sum()),
        second=float((weights * value**2).sum()),
        slope=float((weights * slope**2).sum()),
        fourth=float((weights * slope**4).sum()),
    )


def finite_moments(activation: Activation, q: float = 1.0) -> Moments:
    """The same; BadInput for a function that is not finite on all numbers, or nothing but zero: no weights fit it."""
    found = moments(activation, q)
    if not 0 < found.second < math.inf or math.isnan(found.slope):
        raise BadInput(
            f"the activation {activation.name} is not finite and non-zero for normally distributed inputs of variance {q:g} "
            f"(E f^2 = {found.second:g}): no weights fit it"
        )
    return found


@lru_cache(maxsize=8192)
def pair_moments(activation: Activation, q: float, gap: float, mean: float = 0.0) -> tuple[float, float]:
    """(power, excess) of the difference that an activation leaves between two values.

    The values are jointly Gaussian with variance `q` around `mean` each and half mean squared difference `gap`, which lies
    between 0 and 2 q. power: E d^2 / 2 with d = f(z1) - f(z2). excess: E d^4 / (E d^2)^2 - 1, the relative variance of d^2.
    Written with the independent half sum and half difference, so that nothing cancels when the two are nearly alike
    (Poole 2016, the correlation map).
    """
    if gap <= 0:
        return 0.0, 0.0
    gap = min(gap, 2 * q)
    kinks = [kink - mean for kink in activation.kinks]
    common, weights = gaussian_nodes(max(q - gap / 2, 1e-12 * q), kinks, -mean)
    common = common + mean
    half_difference = _HERMITE_NODES[:, None] * math.sqrt(gap / 2)
    square = (activation.function(common + half_difference) - activation.function(common - half_difference)) ** 2
    weights = _HERMITE_WEIGHTS[:, None] * weights
    second = float((weights * square).sum())
    return second / 2, float((weights * (square / second) ** 2).sum()) - 1 if second > 0 else 0.0


def signal_power(activation: Activation, q: float, signal: float) -> float:
    """Power of the signal behind an activation, for pre-activations of power `q` of which `signal` differs between samples:
    half the mean squared difference of two samples."""
    return pair_moments(activation, q, min(signal, q))[0]


def depth_scale(chi: float) -> float:
    """Layers over which a small difference changes by a factor e in power: 1 / |ln chi| (Schoenholz 2017)."""
    if chi <= 0:
        return 0.0
    return math.inf if chi == 1 else 1 / abs(math.log(chi))


def level_after(activation: Activation, q: float) -> float:
    """E f^2 for z ~ N(0, q), also for q = 0."""
    if q <= 0:
        return float(activation.function(torch.zeros((), dtype=torch.float64)) ** 2)
    return moments(activation, q).second


@lru_cache(maxsize=1024)
def stationary_level(activation: Activation, weight_power: float, bias_power: float = 0.0, layers: int = 50) -> float:
    """Pre-activation power q deep inside a network whose layers have fan_in * weight variance = `weight_power`:
    q <- weight_power * E f(z)^2 + bias_power, started at weight_power + bias_power (Poole 2016, eq. 3). May grow to infinity or
    fall to zero where the network has no fixed point."""
    q = weight_power + bias_power
    for _ in range(layers):
        after = weight_power * level_after(activation, q) + bias_power
        if not 1e-30 < after < 1e30 or math.isclose(after, q, rel_tol=1e-4):
            return after
        q = after
    return q


def saturated_share(activation: Activation, q: float) -> float:
    """Share of N(0, q) inputs outside the interval in which the activation responds (|f'| at least 5 % of its maximum)."""
    if q <= 0:
        return 0.0
    low, high = activation.responsive
    scale = math.sqrt(2 * q)
    return 1 - 0.5 * (math.erf(high / scale) - math.erf(low / scale))
