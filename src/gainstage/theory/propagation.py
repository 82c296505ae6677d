"""Fields through one operation at a time, forward; and the factor on the gradient's power, backward.

Weights are independent with mean zero, layers are wide: a layer's outputs are then Gaussian over its units, and every
covariance is multiplied alike. Sources: Glorot & Bengio 2010, He 2015, Poole 2016, Schoenholz 2017, Lee 2018 (kernels of
wide networks), Hanin & Rolnick 2018 (finite width), Klambauer 2017 (alpha dropout), Yang 2019 (batch normalisation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gainstage.theory.composition import IDENTITY, Composite, Step, compose
from gainstage.theory.field import FAR, Field, independent, shared_source, unknown
from gainstage.theory.moments import Moments, moments, pair_moments
from gainstage.theory.quadrature import gaussian_nodes
from gainstage.theory.spatial import everywhere, spread, strided, windowed

SILENCE = 1e-30  # power below which a function is taken at its value at 0
ALPHA_PRIME = -1.7580993408473766  # SELU's value at minus infinity: -alpha scale (Klambauer 2017)


def through_layer(
    field: Field,
    fan_in: float,
    weight_power: float,
    bias_power: float = 0.0,
    bias_mean: float = 0.0,
    units: float = math.inf,
    stride: int = 1,
    upsampling: tuple[int, int] | None = None,
    coverage: tuple[float, ...] = (),
) -> Field:
    """Behind a layer whose weights have mean square `weight_power`: every power times fan_in * weight_power. The bias is
    the same for all samples and positions, so its power joins the level alone.

    stride: of a convolution. upsampling: (stride, dimensions) of a transposed one. coverage: by column of gaps, the share of
    the kernel's taps that fall on the input, and not on the zeros around it, at both of two positions that far apart.
    """
    gain = fan_in * weight_power * (coverage[0] if coverage else 1.0)
    gaps = gain * strided(field.gaps, stride)
    if coverage:
        both = np.asarray(coverage) / coverage[0]
        gaps = gain * (1 - both) * field.level + both * gaps
    if upsampling is not None:
        gaps = spread(gain * field.level, gaps, *upsampling)
        gaps[0, 0], gaps[1, 0] = 0.0, gain * field.signal
    return Field(
        gain * field.level + bias_power,
        gaps,
        bias_mean,
        variance=field.variance + 2 / units,  # a Gaussian's difference squared is chi^2 with one degree of freedom
        inherited=field.variance,
        units=units,
        gaussian=True,
    )


def through_function(field: Field, function: Composite) -> Field:
    """Behind a pointwise function of a Gaussian field; an affine one may follow anything."""
    if function.affine is not None and not field.gaussian:
        return _through_affine(field, *function.affine)
    if not field.known or not field.gaussian or math.isnan(field.mean):
        return unknown([field], field.gaps.shape[1])
    q = max(field.level - field.mean**2, SILENCE)
    activation = function.activation
    at = moments(activation, q, field.mean)
    gaps = {gap for gap in field.gaps.ravel().tolist() if math.isfinite(gap)}
    pairs = {gap: pair_moments(activation, q, gap, field.mean) for gap in gaps}
    power = np.vectorize(lambda gap: pairs[gap][0] if gap in pairs else math.nan, otypes=[float])
    excess = pairs.get(field.signal, (0.0, 0.0))[1]
    return replace(
        field,
        level=at.second,
        gaps=power(field.gaps),
        mean=at.mean,
        variance=field.inherited + excess / field.units,
        gaussian=False,
        pre=field,
        function=function,
    )


def slopes(field: Field, function: Composite) -> Moments:
    """Moments of a function of a Gaussian field, for the gradient on its way back: E f'^2 is the factor on its power."""
    q = max(field.level - field.mean**2, SILENCE)
    return moments(function.activation, q, field.mean)


def _through_affine(field: Field, slope: float, shift: float) -> Field:
    level = slope**2 * field.level + 2 * slope * shift * field.mean + shift**2
    return replace(field, level=level, gaps=slope**2 * field.gaps, mean=slope * field.mean + shift)


def composed(call: Step, fields: Sequence[Field]) -> Field | None:
    """A pointwise function of several functions of one Gaussian field, not yet worked out; None where they come from
    different ones."""
    pre = shared_source(fields)
    if pre is None:
        return None
    function = compose(call, [source[1] for field in fields if (source := field.source) is not None])
    nothing = np.full_like(pre.gaps, math.nan)
    return replace(pre, level=math.nan, gaps=nothing, mean=math.nan, gaussian=False, pre=pre, function=function)


def evaluated(field: Field) -> Field:
    """The field with its moments, where it is a function of a Gaussian one that has not been worked out."""
    return field if field.pre is None or field.known else through_function(field.pre, field.function)


def through_scale(field: Field, power: float) -> Field:
    """Behind a multiplication of every unit by a number of its own, of mean square `power` (LayerScale, weights of one
    channel): as if by its root mean square."""
    return replace(
        field,
        level=power * field.level,
        gaps=power * field.gaps,
        mean=math.sqrt(power) * field.mean,
        pre=None,
        function=IDENTITY,
        gaussian=field.gaussian,
    )


def through_shift(field: Field, power: float, mean: float, by_position: bool = False) -> Field:
    """Behind the addition of a constant of every unit (a bias by hand), or of every unit and position."""
    gaps = field.gaps.copy()
    if by_position:
        gaps[:, 1:] += power - mean**2
    level = field.level + power + 2 * field.mean * mean
    return replace(field, level=level, gaps=gaps, mean=field.mean + mean, pre=None, function=IDENTITY)


def through_batch_norm(
    field: Field, scale: float = 1.0, shift: float = 0.0, mean: float = 0.0, eps: float = 0.0
) -> Field:
    """Behind batch normalisation in training: every unit centred and divided by its standard deviation over samples and
    positions, then its own scale and shift (mean squares; `mean` of the shift). A signal of zero stays zero.

    Where the offset depends on the position (the border of a padded image), that pattern is part of what a unit is divided
    by, and its power differs from unit to unit as the square of a Gaussian number does.
    """
    signal, pattern = field.signal, np.maximum(field.gaps[1] - field.signal, 0.0)
    plain, patterned = _divided(signal + eps, float(pattern[FAR]))
    gaps = scale * (plain * np.maximum(field.gaps - pattern, 0.0) + patterned * pattern)
    gaps[0, 0] = 0.0
    return _normalised(field, float(gaps[1, FAR]) + shift, gaps, mean, certain=not field.gaps[0].any())


def batch_norm_factor(field: Field, eps: float = 0.0) -> float:
    """Power by which batch normalisation multiplies the signal, and the gradient on its way back."""
    return _divided(field.signal + eps, max(float(field.gaps[1, FAR] - field.signal), 0.0))[0]


def _divided(signal: float, pattern: float) -> tuple[float, float]:
    """E 1 / (signal + pattern z^2) and E z^2 / (signal + pattern z^2) for z ~ N(0, 1)."""
    if signal <= 0:  # not so for NaN, no prediction
        return 0.0, 0.0
    z, weights = gaussian_nodes(1.0)
    shares = weights / (signal + pattern * z**2)
    return float(shares.sum()), float((shares * z**2).sum())


def through_group_norm(
    field: Field,
    group: float = math.inf,
    over_positions: bool = False,
    scale: float = 1.0,
    shift: float = 0.0,
    mean: float = 0.0,
    eps: float = 0.0,
    centred: bool = True,
) -> Field:
    """Behind layer, group or instance normalisation: every sample centred and divided by its standard deviation over the
    `group` units of a group (1: instance normalisation), at each position (layer normalisation of tokens) or over all
    positions. centred=False: divided by the root mean square alone (RMS normalisation)."""
    covariances = field.level - field.gaps
    centre = _centre(field, group, over_positions, centred)
    left = covariances - centre
    variance = float(left[0, 0])
    factor = scale / (variance + eps) if variance + eps > 0 else 0.0
    gaps = factor * (variance - left)
    gaps[1, 0] = factor * (field.signal - float(np.ravel(centre[0])[0] - np.ravel(centre[1])[0]))
    left_mean = 0.0 if centred else math.sqrt(factor) * field.mean
    return _normalised(field, factor * variance + shift, gaps, mean + left_mean)


def group_norm_factor(
    field: Field, group: float = math.inf, over_positions: bool = False, eps: float = 0.0, centred: bool = True
) -> float:
    """Power by which such a normalisation multiplies the gradient on its way back: that of what it divides by."""
    variance = field.level - float(_centre(field, group, over_positions, centred)[0, 0]) + eps
    return 1 / variance if variance > 0 else math.nan


def _centre(field: Field, group: float, over_positions: bool, centred: bool) -> NDArray[np.float64]:
    """Covariances of the mean that is taken away, (2, columns) or (2, 1) where it is that of all positions."""
    covariances = field.level - field.gaps
    shared = covariances[:, -1:] if over_positions else covariances
    return (shared / group + (1 - 1 / group) * field.mean**2) if centred else np.zeros((2, 1))


def _normalised(field: Field, level: float, gaps: NDArray[np.float64], mean: float, certain: bool = False) -> Field:
    inherited = 0.0 if certain else field.variance
    settled = {"variance": inherited, "inherited": inherited, "pre": None, "function": IDENTITY}
    return replace(field, level=level, gaps=gaps, mean=mean, gaussian=field.straight, **settled)


def through_dropout(field: Field, rate: float, whole_channels: bool = False) -> Field:
    """Behind inverted dropout: means and covariances stay, the level grows by 1/(1 - rate); the mask's noise joins the
    signal. whole_channels: one mask for all positions of a channel."""
    if rate >= 1:
        return replace(field, level=0.0, gaps=np.zeros_like(field.gaps), mean=0.0, pre=None, gaussian=False)
    noise = field.level * rate / (1 - rate)
    gaps = field.gaps + noise
    if whole_channels:
        gaps[0] = field.gaps[0] / (1 - rate)
    gaps[0, 0] = 0.0
    settled = {"pre": None, "function": IDENTITY, "gaussian": False}
    variance = field.inherited + ((1 + _own(field)) / (1 - rate) - 1) / field.units
    return replace(field, level=field.level + noise, gaps=gaps, variance=variance, **settled)


def _own(field: Field) -> float:
    """Relative variance of a single unit's squared difference; at least a Gaussian's, as it is hidden by normalisation."""
    return max((field.variance - field.inherited) * field.units, 2.0) if math.isfinite(field.units) else 2.0


def through_alpha_dropout(field: Field, rate: float, whole_channels: bool = False) -> Field:
    """Behind alpha dropout, which sets values to SELU's limit and restores mean 0 and variance 1 (Klambauer 2017)."""
    if rate >= 1:
        return through_dropout(field, rate)
    a = ((1 - rate) * (1 + rate * ALPHA_PRIME**2)) ** -0.5
    b = -a * rate * ALPHA_PRIME
    fixed = a * rate * ALPHA_PRIME + b
    kept = a * (1 - rate)
    moved = a * a * ((1 - rate) * field.level + rate * ALPHA_PRIME**2) + b * b
    level = moved + 2 * a * b * ((1 - rate) * field.mean + rate * ALPHA_PRIME)
    covariances = kept**2 * (field.level - field.gaps) + 2 * kept * fixed * field.mean + fixed**2
    gaps = level - covariances
    if whole_channels:
        gaps[0] = a * kept * field.gaps[0]
    gaps[0, 0] = 0.0
    mean = kept * field.mean + fixed
    return replace(field, level=level, gaps=gaps, mean=mean, pre=None, function=IDENTITY, gaussian=False)


def through_sum(fields: Sequence[Field], factors: Sequence[float] = ()) -> Field:
    """Behind the addition of uncorrelated fields, each times a factor (-1 where it is subtracted): gaps add up, and so do
    levels but for what the means have in common. A sum with a Gaussian part is taken as Gaussian. No prediction for fields
    with a common origin."""
    if not independent(fields):
        return unknown(fields, fields[0].gaps.shape[1])
    if factors:
        fields = [_through_affine(field, factor, 0.0) for field, factor in zip(fields, factors, strict=True)]
    mean = sum(field.mean for field in fields)
    level = sum(field.level - field.mean**2 for field in fields) + mean**2
    gaps = np.sum([field.gaps for field in fields], axis=0)
    found = _joined(fields, level, gaps, mean, gaussian=any(field.straight for field in fields))
    # the products of uncorrelated parts, zero on average over the units
    crossed = 2 * (1 - sum((field.signal / (found.signal or 1.0)) ** 2 for field in fields)) / found.units
    return replace(found, variance=found.variance + crossed)


def through_product(fields: Sequence[Field]) -> Field:
    """Behind the product of uncorrelated fields (a gate): covariances multiply."""
    if not independent(fields):
        return unknown(fields, fields[0].gaps.shape[1])
    first, *others = fields
    level, gaps = first.level, first.gaps
    for other in others:
        gaps = level * other.gaps + other.level * gaps - gaps * other.gaps
        level = level * other.level
    found = _joined(fields, level, gaps, math.prod(field.mean for field in fields), gaussian=False)
    inherited = sum(math.sqrt(field.inherited) for field in fields) ** 2  # relative errors of factors add up
    own = math.prod(1 + _own(field) for field in fields) - 1
    return replace(found, inherited=inherited, variance=inherited + own / found.units)


def through_concatenation(fields: Sequence[Field], units: Sequence[float]) -> Field:
    """Behind the concatenation of units: averages, weighted by how many units each brings."""
    shares = np.asarray(units, float) / sum(units)
    level = float(sum(s * field.level for s, field in zip(shares, fields, strict=True)))
    gaps = np.sum([s * field.gaps for s, field in zip(shares, fields, strict=True)], axis=0)
    mean = float(sum(s * field.mean for s, field in zip(shares, fields, strict=True)))
    return _joined(fields, level, gaps, mean, all(field.straight for field in fields), shares)


def _joined(
    fields: Sequence[Field],
    level: float,
    gaps: NDArray[np.float64],
    mean: float,
    gaussian: bool,
    shares: Sequence[float] | NDArray[np.float64] = (),
) -> Field:
    """The relative errors of what is joined may be fully correlated: they add up, weighted by the share of the signal.
    shares: of the units, where they lie side by side."""
    signals = [s * f.signal for s, f in zip(shares, fields, strict=True)] if len(shares) else [f.signal for f in fields]
    total = sum(signals) or 1.0

    def joint(variances: Sequence[float]) -> float:
        return sum(s / total * math.sqrt(v) for s, v in zip(signals, variances, strict=True)) ** 2

    return Field(
        level,
        gaps,
        mean,
        variance=joint([field.variance for field in fields]),
        inherited=joint([field.inherited for field in fields]),
        units=min(field.units for field in fields),
        gaussian=gaussian,
        origins=frozenset().union(*(field.origins for field in fields)),
    )


def through_average(field: Field, window: tuple[int, ...] = (), stride: int = 1, positions: int = 0) -> Field:
    """Behind average pooling of a window, or of all `positions`: covariances are averaged over pairs of positions."""
    columns = field.gaps.shape[1]
    alike = np.tile(everywhere(max(positions, 1), columns), (columns, 1))
    weights = alike if positions else windowed(window, stride, columns)
    lost = float(weights[0] @ field.gaps[0])
    gaps = np.stack([weights @ field.gaps[0] - lost, weights @ field.gaps[1] - lost])
    gaps[0, 0] = 0.0
    settled = {"pre": None, "function": IDENTITY, "gaussian": field.straight}
    return replace(field, level=field.level - lost, gaps=np.maximum(gaps, 0.0), **settled)


def through_padding(field: Field, share: float) -> Field:
    """Behind padding with zeros of which `share` is what was there before: every power times that share; of any two
    positions both were there in share^2 of the cases."""
    gaps = share * field.gaps
    gaps[:, FAR] = share * (1 - share) * field.level + share * gaps[:, FAR]
    settled = {"pre": None, "function": IDENTITY, "gaussian": field.straight}
    return replace(field, level=share * field.level, gaps=gaps, mean=share * field.mean, **settled)
