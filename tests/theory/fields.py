"""Tensors with the moments that a Field states, and the moments of a tensor unit by unit, for the tests of the theory.

Every unit is an independent draw, so tolerances are standard errors over the units. Where a real layer is tested, its
inputs have exactly the stated inner products: its outputs are then exactly jointly Gaussian.
"""

import math
from itertools import product

import numpy as np
import torch

from gainstage.theory import Field, Slot, Step, field
from tests.tools import normal

UNITS = 20_000


def images(level, within, across, mean=0.0, **settings):
    """A field with positions; `within`, `across`: its gaps in one sample and in two."""
    return Field(level, np.array([within, across], float), mean, **settings)


FLAT = field(1.5, 2.5)
PIXELS = images(3.0, [0, 0.5, 0.8, 1.0, 1.0], [1.5, 1.7, 1.8, 1.9, 1.9])  # neighbours are more alike
SWAPPABLE = images(3.0, [0, 1, 1, 1, 1], [1.5, 1.8, 1.8, 1.8, 1.8])  # any two positions are equally alike


def gap(given, row, distance):
    """The gap at a distance: straight lines over the logarithm of the distance between those that are known."""
    known = given.gaps[row]
    if distance == 0:
        return known[0]
    if len(known) == 2 or distance > 2 ** (len(known) - 3):
        return known[-1]
    return np.interp(math.log2(distance), range(len(known) - 2), known[1:-1])


def covariance(given, samples=1, sides=()):
    """Of all values of one unit, (samples * positions) squared, about the units' common mean."""
    places = list(product(*(range(side) for side in sides)))
    apart = torch.tensor([[math.dist(a, b) for b in places] for a in places], dtype=torch.float64)
    within, across = (apart.clone().apply_(lambda d, row=row: gap(given, row, d)) for row in (0, 1))
    gaps = torch.block_diag(*[within - across] * samples) + across.repeat(samples, samples)
    return given.level - given.mean**2 - gaps


def root(matrix):
    """R with R R^T = matrix; refuses one that is no covariance."""
    values, vectors = torch.linalg.eigh(matrix)
    assert values.min() > -1e-9 * values.max(), "no field has these gaps"
    return vectors * values.clamp_min(0).sqrt()


def drawn(given, samples=4, sides=(), units=UNITS, seed=0):
    """(samples, units, *sides) of Gaussian values with a field's moments."""
    factor = root(covariance(given, samples, sides))
    values = given.mean + factor @ normal(len(factor), units, seed=seed).double()
    return values.reshape(samples, *sides, units).movedim(-1, 1)


def exact(given, channels=64, samples=4, sides=(), seed=0):
    """(samples, channels, *sides) whose mean products over the channels are exactly a field's."""
    factor = root(covariance(given, samples, sides) + given.mean**2)
    directions = torch.linalg.qr(normal(channels, len(factor), seed=seed).double()).Q.T * math.sqrt(channels)
    return (factor @ directions).reshape(samples, *sides, channels).movedim(-1, 1)


def moments_of(x, columns=2):
    """Every unit's level, mean and gaps, by name, each of shape (units,); x: (samples, units, *sides)."""
    x = x.movedim(1, 0)
    samples, sides = x.shape[1], range(2, x.ndim)
    everything = tuple(range(1, x.ndim))
    found = {"level": x.square().mean(everything), "mean": x.mean(everything)}
    for column in range(columns - 1):
        step = 2 ** (column - 1) if column else 0
        along = [axis for axis in sides if x.shape[axis] > step] if step else [1]
        if along:
            pairs = [_products(x, axis, step) for axis in along]
            for row in (0, 1):
                found[row, column] = found["level"] - sum(pair[row] for pair in pairs) / len(pairs)
    if x.ndim > 2 and math.prod(x.shape[2:]) > 1:
        values = x.flatten(2)
        same, pairs = values.square().sum((1, 2)), samples * values.shape[2] * (values.shape[2] - 1)
        within = values.sum(2).square().sum(1) - same
        across = (
            values.sum((1, 2)).square() - values.sum(2).square().sum(1) - values.sum(1).square().sum(1) + same
        ) / (samples - 1)
        within, across = within / pairs, across / pairs
        found[0, -1], found[1, -1] = found["level"] - within, found["level"] - across
    return found


def _products(x, axis, step):
    """Mean products of values `step` apart: in one sample, and in two."""
    samples, size = x.shape[1], x.shape[axis]
    one, other = (x.narrow(axis, 0, size - step), x.narrow(axis, step, size - step)) if step else (x, x)
    within = one * other
    across = (one.sum(1) * other.sum(1) - within.sum(1)) / (samples * (samples - 1))
    return tuple(values.reshape(len(x), -1).mean(1) for values in (within, across))


def deviations(x, given, sigmas=4.0, far=True, slack=0.0, leave=()):
    """By quantity, how far a tensor is from a field, as a share of what is allowed: `sigmas` standard errors over the units,
    and `slack`, the relative error that the formula itself admits. far: compare the gaps of any two positions too."""
    shares = {"no gap to itself": abs(given.gaps[0, 0]) * 1e12}
    for name, values in moments_of(x, given.gaps.shape[1]).items():
        if name == (0, 0) or name in leave or (name[1] == -1 and not far):
            continue
        expected = given.gaps[name] if isinstance(name, tuple) else getattr(given, name)
        allowed = sigmas * float(values.std()) / len(values) ** 0.5 + slack * abs(expected) + 1e-12
        shares[name] = abs(float(values.mean()) - expected) / allowed
    return shares


def agree(x, given, **settings):
    """The tensor has the field's moments; no prediction (NaN) agrees with nothing."""
    return all(share < 1 for share in deviations(x, given, **settings).values())


def step(function, *arguments, **keywords):
    """A call of a function; without arguments, of its one variable."""
    return Step(function, arguments or (Slot(0),), tuple(sorted(keywords.items())))
