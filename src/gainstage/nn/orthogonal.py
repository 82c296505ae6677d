"""Initialisers that keep lengths and angles: orthogonal weights, also for convolutions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gainstage.errors import BadInput
from gainstage.nn.initializers import check_floating, check_generator
from gainstage.theory import Fans
from gainstage.theory.checks import positive, shown, whole


@dataclass(frozen=True)
class Orthogonal:
    """Weights whose rows or columns are orthonormal, times `gain` (Saxe 2014).

    The power of each unit is that of the inputs times gain^2 (a weight with more rows than columns is scaled by
    sqrt(rows / columns)). A convolution's weight counts as a matrix of (out, in * taps).
    Raises BadInput for a gain that is not positive and for weights that are empty, of fewer than two dimensions or no
    floating-point numbers. On the meta device there is nothing to draw.
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        positive(self.gain, "an initialiser's gain")

    @torch.no_grad()
    def __call__(self, weight: Tensor, fans: Fans | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Fill `weight` in place and return it."""
        _check_matrix(weight)
        if weight.is_meta:
            return weight
        return weight.copy_(self.gain * orthogonal_matrix(weight.flatten(1).shape, generator).view_as(weight))


@dataclass(frozen=True)
class DeltaOrthogonal(Orthogonal):
    """A convolution that is zero but for an orthogonal matrix at its centre tap: norm-preserving at any depth (Xiao 2018).

    Raises BadInput for kernels of even size, which have no centre, and where there are fewer outputs than inputs.
    """

    @torch.no_grad()
    def __call__(self, weight: Tensor, fans: Fans | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Fill `weight` (out, in, *kernel) in place and return it."""
        _check_matrix(weight)
        if any(size % 2 == 0 for size in weight.shape[2:]):
            raise BadInput(f"a kernel of even size has no centre tap: weight of shape {tuple(weight.shape)}")
        if weight.shape[0] < weight.shape[1]:
            raise BadInput(
                f"a norm-preserving convolution needs as many outputs as inputs, got {tuple(weight.shape[:2])}"
            )
        if weight.is_meta:
            return weight
        centre = (slice(None), slice(None), *(size // 2 for size in weight.shape[2:]))
        weight.zero_()[centre] = self.gain * orthogonal_matrix(weight.shape[:2], generator).to(weight)
        return weight


def orthogonal_matrix(shape: tuple[int, ...] | torch.Size, generator: torch.Generator | None = None) -> Tensor:
    """A random (rows, columns) matrix, uniform over those that keep the power of each unit (float32).

    From the QR decomposition of a normal matrix, with the signs fixed so that it is uniform (Mezzadri 2007). Raises BadInput
    for a shape that is no pair of whole numbers from 1.
    """
    check_generator(generator)
    if not isinstance(shape, (tuple, list)) or len(shape) != 2:
        raise BadInput(f"the shape of a matrix is (rows, columns), got {shown(shape)}")
    rows, columns = (whole(size, "each number of a matrix's shape") for size in shape)
    device = None if generator is None else generator.device
    draws = torch.randn(max(rows, columns), min(rows, columns), generator=generator, device=device)
    q, r = torch.linalg.qr(draws)
    q = q * r.diagonal().sign()
    return q * math.sqrt(rows / columns) if rows > columns else q.T if rows < columns else q


def _check_matrix(weight: Tensor) -> None:
    check_floating(weight)
    if weight.ndim < 2:
        raise BadInput(f"an orthogonal weight needs at least two dimensions, got shape {tuple(weight.shape)}")
    if weight.numel() == 0:
        raise BadInput(f"a weight without entries cannot be orthogonal, got shape {tuple(weight.shape)}")
