"""Gaussian expectations of functions with kinks, in float64.

Gauss-Hermite quadrature converges slowly across a kink (201 nodes give 1.481 for ReLU's gradient gain of
sqrt 2). Here the real line is cut into panels at the kinks, and each panel gets its own Gauss-Legendre rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from gainstage.errors import BadInput

SPAN = 12.0  # standard deviations integrated on each side; the Gaussian mass beyond is below 1e-32
ORDER = 8  # Gauss-Legendre nodes in one panel, at most half a standard deviation wide

Function = Callable[[Tensor], Tensor]

_WIDE = torch.linspace(-SPAN, SPAN, 49, dtype=torch.float64)  # panel edges in standard deviations
_BENDS = torch.linspace(-20, 20, 81, dtype=torch.float64)  # and where functions bend
_NODES, _WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(ORDER))


def gaussian_nodes(variance: float, breaks: Sequence[float] = (0.0,), centre: float = 0.0) -> tuple[Tensor, Tensor]:
    """Nodes z and weights w, float64 of shape (N,), such that sum(w g(z)) = E g(z) for z ~ N(0, variance).

    `breaks` are the places where g or one of its derivatives jumps, `centre` is the middle of the 40 units in which it bends.
    Raises BadInput for a variance that is not positive and finite.
    """
    if not (variance > 0 and math.isfinite(variance)):
        raise BadInput(f"a variance must be positive and finite, got {variance}")
    scale = math.sqrt(variance)
    edges = _edges(scale, breaks, centre)
    half = (edges[1:] - edges[:-1]) / 2
    middle = (edges[1:] + edges[:-1]) / 2
    z = (middle[:, None] + half[:, None] * _NODES).flatten()
    density = torch.exp(-0.5 * (z / scale) ** 2) / (scale * math.sqrt(2 * math.pi))
    return z, (half[:, None] * _WEIGHTS).flatten() * density


def _edges(scale: float, breaks: Sequence[float], centre: float) -> Tensor:
    """Panel edges that resolve both the Gaussian (width `scale`) and an activation (width about 1)."""
    edges = torch.cat([_WIDE * scale, _BENDS + centre, torch.tensor([0.0, *breaks], dtype=torch.float64)])
    return edges[edges.abs() <= SPAN * scale].sort().values  # a panel between equal edges has no weight


def expectation(function: Function, variance: float = 1.0, breaks: Sequence[float] = (0.0,)) -> float:
    """E f(z) for z ~ N(0, variance)."""
    z, weights = gaussian_nodes(variance, breaks)
    return float((weights * function(z)).sum())


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def derivative(function: Function, z: Tensor) -> Tensor:
    """f'(z) elementwise by automatic differentiation; zeros where the function does not depend on z."""
    # hooks of our own, so that activation checkpointing around us does not take this for a part of the network
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):
        z = z.detach().requires_grad_(True)
        value = function(z)
        if not value.requires_grad:
            return torch.zeros_like(z)
        (slope,) = torch.autograd.grad(value.sum(), z, allow_unused=True)
    return torch.zeros_like(z) if slope is None else slope.detach()


def find_kinks(function: Function, limit: float = 20.0, step: float = 2.0**-6) -> tuple[float, ...]:
    """Places in (-limit, limit) where f or f' jumps, found by bisection of the cells whose slope changes most.

    A smooth function's change of slope within a cell shrinks with the cell; a kink's does not.
    """
    offset = step / math.pi  # keep the grid off round numbers, where kinks usually sit
    left = torch.arange(-limit, limit, step, dtype=torch.float64) + offset
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


def _change(function: Function, left: Tensor, right: Tensor) -> Tensor:
    slope = (derivative(function, right) - derivative(function, left)).abs()
    return slope + (function(right) - function(left)).detach().abs()
