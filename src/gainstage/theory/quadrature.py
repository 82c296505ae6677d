"""Gaussian expectations of functions with kinks, in float64.

Gauss-Hermite quadrature converges slowly across a kink (201 nodes give 1.481 for ReLU's gradient gain of
sqrt 2). Here the real line is cut into panels at the kinks, and each panel gets its own Gauss-Legendre rule. Towards a
singularity the panels halve in width. An integral of which a noticeable part comes from where the range is cut off, or from
the panels next to a singularity, has not converged: it is infinite, or beyond these means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from gainstage.errors import BadInput
from gainstage.theory.checks import check_pointwise, differentiating, finite, positive, shown

SPAN = 12.0  # standard deviations integrated on each side; the Gaussian mass beyond is below 1e-32
ORDER = 8  # Gauss-Legendre nodes in one panel, at most half a standard deviation wide
HALVINGS = 28  # of the panels towards a singularity, whose place is known to nine digits
RESIDUE = 1e-4  # largest share of a converged integral that comes from its ends

Function = Callable[[Tensor], Tensor]

_WIDE = torch.linspace(-SPAN, SPAN, 49, dtype=torch.float64, device="cpu")  # panel edges in standard deviations
_BENDS = torch.linspace(-20, 20, 81, dtype=torch.float64, device="cpu")  # and where functions bend
LEGENDRE_NODES, LEGENDRE_WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(ORDER))


def gaussian_nodes(variance: float, breaks: Sequence[float] = (0.0,), centre: float = 0.0) -> tuple[Tensor, Tensor]:
    """Nodes z and weights w, float64 of shape (N,), such that sum(w g(z)) = E g(z) for z ~ N(0, variance).

    `breaks` are the places where g or one of its derivatives jumps, `centre` is the middle of the 40 units in which it bends.
    Raises BadInput for a variance that is not positive and finite, and for breaks or a centre that are not finite.
    """
    scale = math.sqrt(positive(variance, "a variance"))
    edges = _edges(scale, _places(breaks), finite(centre, "the centre"))
    half = (edges[1:] - edges[:-1]) / 2
    middle = (edges[1:] + edges[:-1]) / 2
    z = (middle[:, None] + half[:, None] * LEGENDRE_NODES).flatten()
    density = torch.exp(-0.5 * (z / scale) ** 2) / (scale * math.sqrt(2 * math.pi))
    return z, (half[:, None] * LEGENDRE_WEIGHTS).flatten() * density


def _places(breaks: Sequence[float]) -> Tensor:
    try:
        places = torch.tensor([0.0, *breaks], dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"breaks must be a list of numbers, got {shown(breaks)}") from error
    if not bool(places.isfinite().all()):
        raise BadInput(f"breaks must be finite, got {shown(breaks)}")
    return places


def _edges(scale: float, places: Tensor, centre: float) -> Tensor:
    """Panel edges that resolve both the Gaussian (width `scale`) and an activation (width about 1)."""
    edges = torch.cat([_WIDE * scale, _BENDS + centre, places])
    return edges[edges.abs() <= SPAN * scale].unique()  # ordered


def ends(z: Tensor, variance: float, singularities: Sequence[float] = (), centre: float = 0.0) -> Tensor:
    """Which nodes lie in the last half standard deviation of the range around `centre`, or next to a singularity."""
    last = (z - centre).abs() > (SPAN - 0.5) * math.sqrt(variance)
    for place in singularities:
        last |= (z - place).abs() < 2.0 ** (1 - HALVINGS)
    return last


def integrals(terms: Tensor, last: Tensor) -> list[float]:
    """The sum of each row of terms (integrals, nodes); where it has not converged infinity, or NaN if the terms differ in
    sign. last: see ends."""
    sizes = terms.abs()
    sums, totals, rests = (found.sum(1).tolist() for found in (terms, sizes, sizes[:, last]))
    return [
        found if not rest > RESIDUE * total else math.inf if abs(found) == total else math.nan
        for found, total, rest in zip(sums, totals, rests, strict=True)
    ]


def expectation(function: Function, variance: float = 1.0, breaks: Sequence[float] = (0.0,)) -> float:
    """E f(z) for z ~ N(0, variance); infinite, or NaN, where it does not converge.

    Raises BadInput for a variance that is not positive and finite, and for what is no function of one number.
    """
    check_pointwise(function)
    z, weights = gaussian_nodes(variance, breaks)
    singularities = find_singularities(function, breaks)
    if singularities:
        z, weights = gaussian_nodes(variance, (*breaks, *approached(singularities)))
    return integrals((weights * function(z))[None], ends(z, variance, singularities))[0]


def value_and_slope(function: Function, z: Tensor) -> tuple[Tensor, Tensor]:
    """f(z) and f'(z) elementwise by automatic differentiation; slope 0 where the function does not depend on z."""
    with differentiating():
        z = z.detach().clone().requires_grad_(True)
        value = function(z)
        if not value.requires_grad:
            return value, torch.zeros_like(z)
        (slope,) = torch.autograd.grad(value.sum(), z, allow_unused=True)
    return value.detach(), torch.zeros_like(z) if slope is None else slope.detach()


def derivative(function: Function, z: Tensor) -> Tensor:
    """f'(z) alone."""
    return value_and_slope(function, z)[1]


def find_kinks(function: Function, limit: float = 20.0, step: float = 2.0**-6) -> tuple[float, ...]:
    """Places in (-limit, limit) where f or f' jumps, found by bisection of the cells whose slope changes most.

    A smooth function's change of slope within a cell shrinks with the cell; a kink's does not.
    """
    offset = step / math.pi  # keep the grid off round numbers, where kinks usually sit
    left = torch.arange(-limit, limit, step, dtype=torch.float64, device="cpu") + offset
    right = left + step
    scale = float(derivative(function, left).abs().max()) or 1.0
    jump = _change(function, left, right)
    candidates = jump > 1e-3 * scale
    left, right, before = left[candidates], right[candidates], jump[candidates]
    for _ in range(40):
        middle = (left + right) / 2
        in_left = _change(function, left, middle) >= _change(function, middle, right)
        left, right = torch.where(in_left, left, middle), torch.where(in_left, middle, right)
    is_kink = _change(function, left, right) > 0.5 * before
    return tuple(sorted({round(float(z), 9) + 0.0 for z in (left[is_kink] + right[is_kink]) / 2}))


def find_singularities(function: Function, kinks: Sequence[float] = ()) -> tuple[float, ...]:
    """Places in (-20, 20) towards which the slope grows without end, as those of log |z| and 1 / z do. Those where it grows
    but slowly, as that of |z - 1|^0.9, are found among the kinks."""
    places = torch.tensor(sorted({0.0, *kinks, *_peaks(function)}), dtype=torch.float64, device="cpu")
    aside = torch.tensor([[-1e-4, -1e-6], [1e-4, 1e-6]], dtype=torch.float64, device="cpu")
    slopes = derivative(function, places[:, None, None] + aside).abs()
    grows = (slopes[..., 1] > 1.2 * slopes[..., 0]).any(1)
    return tuple(places[grows].tolist())


def find_jumps(function: Function, kinks: Sequence[float]) -> tuple[float, ...]:
    """Those of the kinks where f itself jumps, as a sign does at 0: what it jumps by does not shrink with the distance."""
    places = torch.tensor(kinks, dtype=torch.float64, device="cpu")
    far, near = (torch.abs(function(places + aside) - function(places - aside)) for aside in (1e-6, 1e-8))
    return tuple(places[near > 0.5 * far].tolist())


def _peaks(function: Function) -> list[float]:
    """Where the slope is larger than 1.5 times that two cells of a grid away, on both sides: for 1 / z it is 9 times."""
    width = 2.0**-6
    z = torch.arange(-20, 20, width, dtype=torch.float64, device="cpu") + width / math.pi
    slopes = _steepness(function, z)
    middle, beside = slopes[2:-2], torch.maximum(slopes[:-4], slopes[4:])
    around = slopes.unfold(0, 3, 1).amax(1)[1:-1]
    place = z[2:-2][(middle > 1.5 * beside) & (middle == around)]
    while len(place) and width > 1e-10:
        near = place[:, None] + width * torch.linspace(-1, 1, 5, dtype=torch.float64, device="cpu")
        place = near.gather(1, _steepness(function, near).argmax(1, keepdim=True)).flatten()
        width /= 2
    return [round(float(z), 9) + 0.0 for z in place]


def _steepness(function: Function, z: Tensor) -> Tensor:
    return derivative(function, z).abs().nan_to_num(0.0, math.inf)


def approached(singularities: Sequence[float]) -> tuple[float, ...]:
    """Breaks on both sides of each singularity, at halved distances."""
    distances = [2.0**-halving for halving in range(2, HALVINGS + 1)]
    return tuple(place + side * distance for place in singularities for side in (-1, 1) for distance in distances)


def _change(function: Function, left: Tensor, right: Tensor) -> Tensor:
    (low, before), (high, after) = value_and_slope(function, left), value_and_slope(function, right)
    return (after - before).abs() + (high - low).abs()
