"""What an activation does to a Gaussian signal: the numbers behind every initialisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from gainstage.errors import BadInput
from gainstage.theory.activations import Activation, ActivationLike, lookup
from gainstage.theory.checks import finite, network_depth, not_negative, positive, power
from gainstage.theory.quadrature import (
    LEGENDRE_NODES,
    LEGENDRE_WEIGHTS,
    ends,
    gaussian_nodes,
    integrals,
    value_and_slope,
)

ROUNDING = 1e-6  # relative, of measured powers
WIDE = 100.0  # variance from which a function's bends are as narrow as jumps
# of the half difference of two samples, in its deviations
_PANELS = torch.tensor([0.0, 0.3, 1.0, 2.5, 5.0, 9.0], dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class Moments:
    """Moments of f(z) for z ~ N(mean, q).

    mean = E f, second = E f^2, slope = E f'^2 (mean square derivative), fourth = E f'^4, all dimensionless. Infinite where
    an integral does not converge; NaN where f is not a number, and for a mean of which the two signs do not converge.
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
        """Factor on the weights' 1/sqrt(fan_in) that keeps the level: sqrt(q / E f^2) (He 2015 for ReLU: sqrt 2).

        BadInput where E f^2 is not positive and finite, so that there is none.
        """
        return math.sqrt(self.q / positive(self.second, "E f^2, for a gain that keeps the level,"))

    @property
    def gradient_gain(self) -> float:
        """Factor on the weights' 1/sqrt(fan_out) that keeps the gradient: 1/sqrt(E f'^2) (Schoenholz 2017: chi = 1).

        BadInput where E f'^2 is not positive and finite, so that there is none.
        """
        return 1 / math.sqrt(positive(self.slope, "E f'^2, for a gain that keeps the gradient,"))


def moments(activation: ActivationLike, q: float = 1.0, mean: float = 0.0) -> Moments:
    """Moments of `activation` at pre-activation variance `q` around `mean`, by quadrature split at the activation's kinks.

    activation: a name, a function of a tensor or an Activation (see lookup). Raises BadInput for what is none of these, a
    variance that is not positive and finite, and a mean that is not finite.
    """
    return _moments(lookup(activation), positive(q, "a variance"), finite(mean, "a mean"))


@lru_cache(maxsize=4096)
def _moments(activation: Activation, q: float, mean: float) -> Moments:
    z, weights = gaussian_nodes(q, [place - mean for place in activation.breaks], -mean)
    z = z + mean
    value, slope = value_and_slope(activation.function, z)
    last = ends(z, q, activation.singularities, mean)
    terms = weights * torch.stack([value, value.square(), slope.square(), slope**4])
    return Moments(q, *integrals(terms, last))


def finite_moments(activation: ActivationLike, q: float = 1.0) -> Moments:
    """The same; BadInput for a function that is not finite on all numbers, nothing but zero, or without a finite E f^2: no
    weights fit it. E f'^2 may still be infinite, as for log |z|, or zero, as for a sign."""
    found = moments(activation, q)
    if 0 < found.second < math.inf and not math.isnan(found.slope):
        return found
    why = "E f^2 is infinite, or too large to be told" if found.second == math.inf else f"E f^2 = {found.second:g}"
    raise BadInput(
        f"the activation {lookup(activation).name} is not finite and non-zero for normally distributed inputs of variance "
        f"{q:g} ({why}): no weights fit it"
    )


def pair_moments(activation: ActivationLike, q: float, gap: float, mean: float = 0.0) -> tuple[float, float]:
    """(power, excess) of the difference that an activation leaves between two values.

    The values are jointly Gaussian with variance `q` around `mean` each and half mean squared difference `gap`, which lies
    between 0 and 2 q. power: E d^2 / 2 with d = f(z1) - f(z2). excess: E d^4 / (E d^2)^2 - 1, the relative variance of d^2.
    Written with the independent half sum and half difference, so that nothing cancels when the two are nearly alike
    (Poole 2016, the correlation map). NaN where E f^2 is not finite, and for f with singularities. Raises BadInput as moments
    does, and for a gap that is no finite number.
    """
    return _pair_moments(lookup(activation), positive(q, "a variance"), finite(gap, "a gap"), finite(mean, "a mean"))


@lru_cache(maxsize=8192)
def _pair_moments(activation: Activation, q: float, gap: float, mean: float) -> tuple[float, float]:
    if gap <= 0:
        return 0.0, 0.0
    if activation.singularities or not math.isfinite(_moments(activation, q, mean).second):
        return math.nan, math.nan
    gap = min(gap, 2 * q)
    half_difference, shares = _positive_half(math.sqrt(gap / 2))  # the square is even in it
    breaks = [kink - mean for kink in activation.kinks]
    jumps = activation.jumps if q < WIDE else (0.0, *activation.kinks)
    breaks += [jump - mean + side * h for jump in jumps for side in (-1, 1) for h in half_difference.tolist()]
    common, weights = gaussian_nodes(max(q - gap / 2, 1e-12 * q), breaks, -mean)
    common, half_difference, weights = common + mean, half_difference[:, None], shares[:, None] * weights
    square = (activation.function(common + half_difference) - activation.function(common - half_difference)) ** 2
    second = float((weights * square).sum())
    return second / 2, float((weights * (square / second) ** 2).sum()) - 1 if second > 0 else 0.0


def _positive_half(deviation: float) -> tuple[Tensor, Tensor]:
    """Nodes and weights of E g(|h|) for h ~ N(0, deviation^2), accurate also where g has a kink at 0."""
    middle, half = (_PANELS[1:] + _PANELS[:-1]) / 2, _PANELS.diff() / 2
    x = (middle[:, None] + half[:, None] * LEGENDRE_NODES).flatten()
    return deviation * x, (half[:, None] * LEGENDRE_WEIGHTS).flatten() * torch.exp(-0.5 * x**2) * math.sqrt(2 / math.pi)


def signal_power(activation: ActivationLike, q: float, signal: float) -> float:
    """Power of the signal behind an activation, for pre-activations of power `q` of which `signal` differs between samples:
    half the mean squared difference of two samples. Raises BadInput as moments does, and for a signal that lies outside
    [0, q] by more than rounding does."""
    q, signal = positive(q, "a power"), finite(signal, "the power of a signal")
    if not -ROUNDING * q <= signal <= (1 + ROUNDING) * q:
        raise BadInput(f"a signal is a part of the power {q:g}, got {signal:g}")
    return pair_moments(activation, q, min(signal, q))[0]


def depth_scale(chi: float) -> float:
    """Layers over which a small difference changes by a factor e in power: 1 / |ln chi| (Schoenholz 2017); NaN for NaN.
    Raises BadInput for a negative factor."""
    chi = power(chi, "chi, a factor on a power,")
    if chi == 0:
        return 0.0
    return math.inf if chi == 1 else 1 / abs(math.log(chi))


def level_after(activation: Activation, q: float) -> float:
    """E f^2 for z ~ N(0, q), also for q = 0."""
    if q <= 0:
        return float(activation.function(torch.zeros((), dtype=torch.float64, device="cpu")) ** 2)
    return moments(activation, q).second


def check_powers(weight_power: float, bias_power: float) -> tuple[float, float]:
    """A network's weight power and bias power as numbers; BadInput where they cannot be such."""
    return positive(weight_power, "a weight power"), not_negative(bias_power, "a bias power")


def stationary_level(
    activation: ActivationLike, weight_power: float, bias_power: float = 0.0, layers: int = 50
) -> float:
    """Pre-activation power q deep inside a network whose layers have fan_in * weight variance = `weight_power`:
    q <- weight_power * E f(z)^2 + bias_power, started at weight_power + bias_power (Poole 2016, eq. 3). May grow to infinity or
    fall to zero where the network has no fixed point, and is NaN where f is not finite. Raises BadInput for powers that are
    not positive and finite (the biases' may be zero) and for layers below 1."""
    powers = check_powers(weight_power, bias_power)
    return _stationary_level(lookup(activation), *powers, network_depth(layers))


@lru_cache(maxsize=1024)
def _stationary_level(activation: Activation, weight_power: float, bias_power: float, layers: int) -> float:
    q = weight_power + bias_power
    for _ in range(layers):
        after = weight_power * level_after(activation, q) + bias_power
        if not 1e-30 < after < 1e30 or math.isclose(after, q, rel_tol=1e-4):
            return after
        q = after
    return q


def saturated_share(activation: ActivationLike, q: float) -> float:
    """Share of N(0, q) inputs outside the interval in which the activation responds (|f'| at least 5 % of its maximum); NaN
    for a variance of NaN. Raises BadInput for a negative variance and for what is no activation."""
    q = power(q, "a variance")
    low, high = lookup(activation).responsive
    if q == 0:
        return 0.0
    scale = math.sqrt(2 * q)
    return 1 - 0.5 * (math.erf(high / scale) - math.erf(low / scale))
