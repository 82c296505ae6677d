"""How levels travel through one operation of a wide random network: forward signal and offset, backward gradient.

All quantities are powers (squares of RMS values). A forward level is split as the ledger splits it: `signal`, the part
that differs between samples, and `offset`, the part that all samples share. Independent zero-mean weights map both
parts alike; only an activation mixes them. Sources: Glorot & Bengio 2010, He 2015, Poole 2016, Schoenholz 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

from gainstage.theory.activations import Activation
from gainstage.theory.moments import level_after, moments, signal_power


@dataclass(frozen=True)
class Level:
    """Power of a stage's output, averaged over units: what differs between samples, and what does not."""

    signal: float
    offset: float

    @property
    def total(self) -> float:
        """Signal and offset together: the plain mean square."""
        return self.signal + self.offset


def through_layer(level: Level, fan_in: float, weight_power: float, bias_power: float = 0.0) -> Level:
    """Behind a layer whose weights have mean square `weight_power`: every power times fan_in * weight_power.

    The bias is the same for all samples, so its power joins the offset.
    """
    gain = fan_in * weight_power
    return Level(gain * level.signal, gain * level.offset + bias_power)


def through_activation(level: Level, activation: Activation) -> Level:
    """Behind an activation, for Gaussian pre-activations of the given level."""
    total = level_after(activation, level.total)
    signal = signal_power(activation, level.total, level.signal) if level.total > 0 else 0.0
    return Level(signal, max(total - signal, 0.0))


def through_batch_norm(level: Level, weight_power: float = 1.0, bias_power: float = 0.0) -> Level:
    """Behind batch normalisation: unit signal, no offset, then its own scale and shift."""
    return Level(weight_power if level.signal > 0 else 0.0, bias_power)


def through_layer_norm(level: Level, weight_power: float = 1.0, bias_power: float = 0.0) -> Level:
    """Behind layer normalisation: unit level, the proportion of signal and offset kept, then its own scale and shift."""
    scale = weight_power / level.total if level.total > 0 else 0.0
    return Level(level.signal * scale, level.offset * scale + bias_power)


def through_dropout(level: Level, rate: float) -> Level:
    """Behind inverted dropout: the mean stays, and the mask's noise, rate/(1 - rate) of the level, joins the signal."""
    if rate >= 1:
        return Level(0.0, 0.0)
    return Level(level.signal + level.total * rate / (1 - rate), level.offset)


def gradient_gain(
    activation: Activation | None, q: float, fan_out: float, weight_power: float, normalization: float = 1.0
) -> float:
    """Gain (ratio of RMS values) of the gradient from a stage's output back to its input.

    sqrt(fan_out * weight_power * E f'(z)^2) for pre-activations z of power `q`; `normalization` is the power by which
    a normalisation between layer and activation multiplies its input.
    """
    slope = 1.0 if activation is None else moments(activation, max(q, 1e-12)).slope
    return (fan_out * weight_power * slope * normalization) ** 0.5
