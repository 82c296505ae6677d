"""Infinitely wide random networks: fixed points, the correlation map, depth scales, the edge of chaos.

A network of this kind has weights of variance weight_power / fan_in and biases of variance bias_power. Its pre-activations
are Gaussian of variance q (the same for all samples), and two samples' pre-activations have correlation c.
Sources: Poole 2016; Daniely 2016 (the correlation map as a power series); Schoenholz 2017; Zhang 2022 (tailored
activations).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from gainstage.errors import BadInput
from gainstage.theory.activations import Activation, ActivationLike, leaky_relu, lookup
from gainstage.theory.checks import finite, network_depth, positive
from gainstage.theory.moments import check_powers, depth_scale, finite_moments, level_after, moments, pair_moments
from gainstage.theory.quadrature import derivative, gaussian_nodes

SURVIVAL = 6.0  # depth scales that a signal survives (Schoenholz 2017)
SIMILARITY = 0.9  # of two samples behind a deep network, at which it still trains (Zhang 2022)
RUNAWAY = 16.0  # ln of the power by which a whole network may amplify a level at worst; fitted, see keeps_level
ZERO, INFINITY = 1e-18, 1e18  # powers, and distances from 0, that are taken for such
ROUNDING = 1e-12  # relative: what is closer is equal
# of pre-activations, 1 to 1e-6: below, the proportion of the first weights' steps to theirs, which goes with 1/q, makes the
# loss leap when training begins
POWERS = tuple(10 ** (-step / 8) for step in range(49))
FARTHEST = 1024  # layers that depth_for_power looks at
GROWTH = "the growth of the gradient's power, a natural logarithm,"
DEGREES = torch.arange(
    64, device="cpu"
).double()  # of the correlation map's series; the rest adds 1e-7 up to a similarity of 0.9


@dataclass(frozen=True)
class Phase:
    """What becomes of signal and gradient deep inside such a network.

    q: the power that the pre-activations approach; 0 or inf where they have no fixed point. chi: factor of the
    gradient's power per layer, and of a small difference between samples. correlation: the similarity that all samples
    approach. level_scale, correlation_scale: layers over which deviations from these fixed points fall by a factor e in
    power; inf where they fall more slowly than that at any depth.
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
        """Largest number of layers through which information about the input passes: six correlation scales (Schoenholz
        2017), or six level scales where the level itself vanishes or explodes."""
        scale = self.correlation_scale if 0 < self.q < math.inf else self.level_scale
        return SURVIVAL * scale


def phase(activation: ActivationLike, weight_power: float, bias_power: float = 0.0) -> Phase:
    """The phase of a deep network of `activation`, a name, a function or an Activation. Raises BadInput for powers that are
    not positive and finite (the biases' may be zero), and for a function that is not finite, has no finite E f^2 at the power
    that comes in, or has singularities.

    Where the level falls to 0 or grows without end (ReLU of weight power 2 with biases; tanh of weight power 1 without),
    the activation acts as its positively homogeneous limit, a leaky ReLU with the slopes that it has at 0 or at infinity:
    chi is weight_power times the mean of their squares, and the correlation goes to 1 more slowly than by any factor a
    layer (Zhang 2022, eq. 6), or stays where it is if both slopes are equal.
    """
    weight_power, bias_power = check_powers(weight_power, bias_power)
    activation = _regular(activation, weight_power + bias_power)
    q = level_fixed_point(activation, weight_power, bias_power)
    if not 0 < q < math.inf:
        chi = weight_power * outer_slope(activation, INFINITY if q else ZERO)
        return Phase(q, chi, 1.0, depth_scale(chi), math.inf)
    at = moments(activation, q)
    chi = weight_power * at.slope
    level_slope = weight_power * at.second / q * level_exponent(activation, q)
    correlation = correlation_fixed_point(activation, weight_power, bias_power, q)
    slope = chi if correlation > 1 - 1e-6 else _correlation_slope(activation, weight_power, bias_power, q, correlation)
    level_scale = math.inf if math.isclose(level_slope, 1, rel_tol=ROUNDING) else depth_scale(abs(level_slope))
    return Phase(q, chi, correlation, level_scale, depth_scale(slope))


def _regular(activation: ActivationLike, q: float) -> Activation:
    """The activation, if pairs of samples can be followed through it at power q."""
    activation = lookup(activation)
    finite_moments(activation, q)
    if activation.singularities:
        places = ", ".join(f"{place:g}" for place in activation.singularities)
        raise BadInput(f"the slope of {activation.name} grows without end at {places}: no theory of depth holds for it")
    return activation


def level_fixed_point(activation: Activation, weight_power: float, bias_power: float = 0.0) -> float:
    """The pre-activations' power q deep inside: the first solution of q = weight_power E f^2 + bias_power that is reached
    from weight_power + bias_power (Poole 2016, eq. 3); 0 or inf where the level falls or grows without end."""

    def gain(q: float) -> float:
        level = level_after(activation, q)
        if math.isnan(level):
            finite_moments(activation, q)  # says so
        return (weight_power * level + bias_power) / q

    start = q = weight_power + bias_power
    if math.isclose(gain(start), 1, rel_tol=ROUNDING):
        return start
    grows = gain(start) > 1

    def goes_on(q: float) -> bool:
        return gain(q) > 1 - ROUNDING if grows else gain(q) < 1 + ROUNDING

    step = 2.0 if grows else 0.5
    while goes_on(q):
        q *= step
        if not ZERO < q < INFINITY:
            return math.inf if grows else 0.0
    return _last(goes_on, q / step, q)


def _last(holds: Callable[[float], bool], good: float, bad: float) -> float:
    """The number farthest from `good` towards `bad` for which `holds` is still true, by bisection."""
    for _ in range(60):
        middle = (good + bad) / 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return good


def outer_slope(activation: Activation, distance: float) -> float:
    """E f'^2 of the leaky ReLU that f resembles at such a distance from 0: the mean of f'(z)^2 on both sides."""
    slopes = derivative(activation.function, torch.tensor([-distance, distance], dtype=torch.float64, device="cpu"))
    return float(slopes.square().mean())


def level_exponent(activation: Activation, q: float) -> float:
    """d ln E f^2 / d ln q = E z f f' / E f^2: 1 where f is homogeneous; above it, a level that is kept is unstable."""
    z, weights = gaussian_nodes(q, activation.breaks)
    growth = weights * z * activation.function(z) * derivative(activation.function, z)
    return float(growth.sum()) / moments(activation, q).second


def correlation_map(activation: ActivationLike, weight_power: float, bias_power: float, q: float, c: float) -> float:
    """Correlation of two samples' pre-activations one layer on, both of power q before and q' = weight_power E f^2 +
    bias_power after (Poole 2016, eq. 5). Raises BadInput as phase does, for a power q that is not positive and finite, and
    for a correlation outside [-1, 1]."""
    weight_power, bias_power = check_powers(weight_power, bias_power)
    if not -1 <= finite(c, "a correlation") <= 1:
        raise BadInput(f"a correlation lies between -1 and 1, got {c:g}")
    activation, q = _regular(activation, q), positive(q, "a power")
    after = weight_power * moments(activation, q).second + bias_power
    return 1 - weight_power * pair_moments(activation, q, q * (1 - c))[0] / after


def correlation_fixed_point(activation: Activation, weight_power: float, bias_power: float, q: float) -> float:
    """The correlation that two samples approach with depth: 1 in the ordered phase, below it in the chaotic one."""
    if weight_power * moments(activation, q).slope <= 1 + 1e-9:
        return 1.0

    def rises(c: float) -> bool:
        return correlation_map(activation, weight_power, bias_power, q, c) > c

    return _last(rises, 0.0, 1 - 1e-9) if rises(0.0) else 0.0


def _correlation_slope(activation: Activation, weight_power: float, bias_power: float, q: float, c: float) -> float:
    step = min(1e-4, (1 - c) / 2)
    below, above = (correlation_map(activation, weight_power, bias_power, q, at) for at in (c - step, c + step))
    return abs(above - below) / (2 * step)


def edge_of_chaos(activation: ActivationLike, q: float = 1.0) -> tuple[float, float]:
    """(weight_power, bias_power) for which q is a fixed point and chi is 1 (Schoenholz 2017): weight_power = 1 / E f'^2
    and bias_power = q - weight_power E f^2. Raises BadInput where that would take a negative bias power, where the slope is
    zero or infinite, and as finite_moments does."""
    activation, at = lookup(activation), finite_moments(activation, q)
    weight_power = 1 / positive(at.slope, f"E f'^2 of {activation.name}, for an edge of chaos,")
    bias_power = at.q - weight_power * at.second
    if bias_power < -1e-9 * at.q:
        raise BadInput(
            f"{activation.name} has no edge of chaos at pre-activation power {q:g}: it would take a negative bias "
            f"variance ({bias_power:.3g}); try a larger or smaller power"
        )
    return weight_power, max(bias_power, 0.0)


def level_keeping(activation: ActivationLike, q: float) -> tuple[float, float]:
    """(weight_power, chi) without biases: the weight power q / E f^2 that keeps the pre-activations' power at q, and the
    factor chi = weight_power E f'^2 by which a layer then multiplies the gradient's power. Raises BadInput as finite_moments
    does."""
    at = finite_moments(activation, q)
    weight_power = at.q / at.second
    return weight_power, weight_power * at.slope


def keeps_gradient(activation: Activation, q: float, depth: int, growth: float) -> bool:
    """True if the gradient's power changes by at most e^growth in all: depth |ln chi| <= growth (Schoenholz 2017)."""
    return math.exp(-growth / depth) <= level_keeping(activation, q)[1] <= math.exp(growth / depth)


def keeps_level(activation: Activation, q: float, depth: int, growth: float) -> bool:
    """True if samples of e^growth times the power q grow by at most as much again, and any by at most e^RUNAWAY.

    Where the level's exponent exceeds 1, as for GELU, the fixed point is unstable: a level that is too high rises, and
    the higher, the faster, up to weight_power times the mean square slope at infinity a layer (for GELU at small q,
    twofold). Training pushes the level off by any amount. RUNAWAY is fitted: networks of GELU, SiLU, Mish and Hardswish,
    100 units wide, learn images steadily up to e^16, with leaps of the loss from e^20, and break down by e^33.
    """
    weight_power, level = level_keeping(activation, q)[0], math.exp(growth) * q
    if weight_power * outer_slope(activation, INFINITY) > math.exp(RUNAWAY / depth):
        return False
    for _ in range(depth):
        before, level = level, weight_power * level_after(activation, level)
        if level <= before * (1 + ROUNDING):
            return True
        if not level < math.inf:
            return False
    return level <= math.exp(2 * growth) * q


def keeps_signal(activation: Activation, q: float, depth: int) -> bool:
    """True if uncorrelated inputs end with a similarity of at most 0.9, which leaves a tenth of the signal (Zhang 2022).

    No inputs that are alike lose a larger share: the correlation map is convex (Daniely 2016).
    """
    series = similarity_series(activation, q)
    return composed(lambda c: float(series @ c**DEGREES), depth, 0.0) <= SIMILARITY + 1e-6


def similarity_series(activation: Activation, q: float) -> Tensor:
    """Coefficients of the correlation map where the level is kept: c -> sum a_n^2 c^n / E f^2, with a_n = E f(z) h_n(z)
    and h_n the orthonormal Hermite polynomials (Daniely 2016)."""
    z, weights = gaussian_nodes(q, activation.breaks)
    x, value = z / math.sqrt(q), weights * activation.function(z)
    before, hermite, coefficients = torch.zeros_like(x), torch.ones_like(x), []
    for n in range(len(DEGREES)):
        coefficients.append((value * hermite).sum() ** 2)
        before, hermite = hermite, (x * hermite - math.sqrt(n) * before) / math.sqrt(n + 1)
    return torch.stack(coefficients) / moments(activation, q).second


def power_for_depth(activation: ActivationLike, depth: int, growth: float = 1.0) -> float:
    """The largest pre-activation power q up to 1 at which the weights that keep it also keep the gradient through `depth`
    layers to a factor e^growth in power, the level stable and the signal alive.

    The smaller q, the more linear a smooth activation: the deeper the network, the smaller q must be. Raises BadInput
    where no power from 1e-6 does all three, as for the logistic function (gradient), GELU from 24 layers (level) and ReLU
    from 13 (signal), for a depth that is no whole number from 1 and for a growth that is not positive.
    """
    return _power_for_depth(lookup(activation), network_depth(depth), positive(growth, GROWTH))


@lru_cache(maxsize=256)
def _power_for_depth(activation: Activation, depth: int, growth: float) -> float:
    def fits(q: float) -> bool:
        return _keeps_all(activation, q, depth, growth)

    found = next((index for index, q in enumerate(POWERS) if fits(q)), None)
    if found is None:
        raise BadInput(
            f"no weights keep both gradient and signal at a stable level through {depth} layers of {activation.name}; use "
            "tanh, ELU or tailored_leaky_relu, or batch normalisation"
        )
    return 1.0 if found == 0 else _last(fits, POWERS[found], POWERS[found - 1])


def depth_for_power(activation: ActivationLike, q: float = 1.0, growth: float = 1.0) -> int:
    """Layers, 0 to FARTHEST, through which the weights that keep the pre-activations' power at q also keep the gradient to a
    factor e^growth in power, the level stable and the signal alive: what power_for_depth asks, the other way round.

    12 for ReLU, for which the signal ends it; 0 for z^2 - 1, of which a level that is a little too high rises ever faster.
    Raises BadInput as finite_moments does, and for a growth that is not positive.
    """
    activation, growth = lookup(activation), positive(growth, GROWTH)
    q = finite_moments(activation, q).q
    depth, step = 0, FARTHEST
    while step:  # the longest depth that holds, bit by bit: what a depth keeps, all smaller ones keep
        if depth + step <= FARTHEST and _keeps_all(activation, q, depth + step, growth):
            depth += step
        step //= 2
    return depth


def _keeps_all(activation: Activation, q: float, depth: int, growth: float) -> bool:
    """True if the level can be kept at q, and gradient, level and signal then survive."""
    return (
        0 < moments(activation, q).second < math.inf
        and keeps_gradient(activation, q, depth, growth)
        and keeps_level(activation, q, depth, growth)
        and keeps_signal(activation, q, depth)
    )


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


def tailored_slope(depth: int, similarity: float = SIMILARITY) -> float:
    """Slope a of a leaky ReLU such that a plain network of `depth` layers maps uncorrelated inputs to the given similarity
    (Zhang 2022, tailored activation transformation; they recommend 0.9). Raises BadInput for a depth that is no whole number
    from 1 and for a similarity outside (0, 1)."""
    depth, similarity = network_depth(depth), finite(similarity, "a similarity")
    if not 0 < similarity < 1:
        raise BadInput(f"the similarity at the end must lie between 0 and 1, got {similarity}")
    return _tailored_slope(depth, similarity)


@lru_cache(maxsize=256)
def _tailored_slope(depth: int, similarity: float) -> float:
    def fits(slope: float) -> bool:
        return composed(partial(leaky_correlation, slope), depth, 0.0) <= similarity

    return 0.0 if fits(0.0) else _last(fits, 1.0, 0.0)  # the deeper and the less linear, the more alike


def tailored_leaky_relu(depth: int, similarity: float = SIMILARITY) -> Activation:
    """The leaky ReLU whose slope is worked out from the depth of the network."""
    return leaky_relu(tailored_slope(depth, similarity))
