"""Which loss it is, found out from what it does: its derivative at drawn outputs, beside those of the textbook's losses.

A name or a type tells nothing of a loss that somebody wrote himself; the derivative tells all. Of cross-entropy on logits it
is w (softmax(o) - t), whatever the targets t and the weights w are, so that between two outputs it changes in proportion to
the change of softmax(o); of squared error in proportion to the change of o, and so on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gainstage.data import Batch
from gainstage.program import Loss, run_loss, tensors_in
from gainstage.randomness import preserved

LossKind = Literal["cross-entropy", "binary-cross-entropy", "squared-error", "absolute-error", "poisson", "unknown"]
Domain = Literal["logits", "probabilities", "log-probabilities", "values"]

DRAWS = 6
SAMPLES = 32  # that a loss is tried on, where it takes so few
TOLERANCE = 0.02  # of a derivative in single precision, relative
SPREAD = 1.5  # of the drawn outputs: far enough from zero for softmax and identity to part


@dataclass(frozen=True)
class Objective:
    """kind: the textbook loss whose derivative it has. takes: what it takes the network's output for. class_dim: the
    dimension of the output along which cross-entropy's classes exclude each other; None for every other kind."""

    kind: LossKind
    takes: Domain
    class_dim: int | None = None

    @property
    def is_classification(self) -> bool:
        """True where the outputs stand for probabilities of classes."""
        return self.kind in ("cross-entropy", "binary-cross-entropy")


UNKNOWN = Objective("unknown", "values")


@dataclass(frozen=True)
class _Candidate:
    """A loss of the textbook. draw: outputs to which it applies. factor: by it its derivative is multiplied, at outputs o; the
    product then changes from draw to draw in proportion to `follows`, or not at all where that is None."""

    objective: Objective
    draw: Callable[[Tensor], Tensor]
    factor: Callable[[Tensor], Tensor]
    follows: Callable[[Tensor], Tensor] | None
    symmetric: bool = False  # not the change, but the derivative itself is in proportion


def recognise(loss: Loss, output: Any, targets: Any) -> Objective:
    """What kind of loss `loss(output, targets)` is; of an output of one floating tensor, else "unknown".

    The loss is called a few dozen times on drawn outputs of that shape, a copy of it where it is a module; its random state
    and the process's stay as they are. Losses that cannot be called so, or have another derivative, are "unknown".
    """
    floating = [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]
    if len(floating) != 1 or not isinstance(output, Tensor) or output.ndim == 0 or output.numel() == 0:
        return UNKNOWN
    with preserved(), warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # of shapes that broadcast
        twin = deepcopy(loss) if isinstance(loss, nn.Module) else loss
        output, targets = _tried(twin, output, targets)
        fitting = (c.objective for c in _candidates(output.ndim) if _fits(c, twin, output, targets))
        return next(fitting, UNKNOWN)


def _tried(loss: Loss, output: Tensor, targets: Any) -> Batch:
    """The batch to try a loss on: the first samples in double precision, where the loss takes that."""
    few = output, targets
    if isinstance(targets, Tensor) and targets.ndim and len(targets) == len(output):
        few = output[:SAMPLES], targets[:SAMPLES]
    for batch in (_double(*few), few, _double(output, targets)):
        if _derivative(loss, *batch) is not None:
            return batch
    return output, targets


def _double(output: Tensor, targets: Any) -> Batch:
    floating = isinstance(targets, Tensor) and targets.is_floating_point()
    return output.double(), targets.double() if floating else targets


def _candidates(dimensions: int) -> list[_Candidate]:
    """In the order in which they are tried: what fits the first fits none of the others but by chance."""
    dims = [1, -1] if dimensions > 2 else [-1]
    exclusive = [candidate for dim in dims for candidate in _exclusive(dim)]
    return [*exclusive, *ELEMENTWISE]


def _exclusive(dim: int) -> list[_Candidate]:
    def softmax(o: Tensor) -> Tensor:
        return o.softmax(dim)

    def log_softmax(o: Tensor) -> Tensor:
        return o.log_softmax(dim)

    logits = Objective("cross-entropy", "logits", dim)
    probabilities = Objective("cross-entropy", "probabilities", dim)
    logarithms = Objective("cross-entropy", "log-probabilities", dim)
    return [
        _Candidate(logits, _same, _one, softmax),
        _Candidate(probabilities, softmax, _same, _same),  # divides by the sum of the probabilities
        _Candidate(probabilities, softmax, _same, None),
        _Candidate(logarithms, log_softmax, _one, None),
    ]


def _same(o: Tensor) -> Tensor:
    return o


def _one(o: Tensor) -> Tensor:
    return torch.ones_like(o)


def _far(o: Tensor) -> Tensor:
    return o * 1e4


ELEMENTWISE = (
    _Candidate(Objective("squared-error", "values"), _same, _one, _same),
    _Candidate(Objective("binary-cross-entropy", "logits"), _same, _one, torch.sigmoid),
    _Candidate(Objective("binary-cross-entropy", "probabilities"), torch.sigmoid, lambda p: p * (1 - p), _same),
    _Candidate(Objective("poisson", "values"), _same, _one, torch.exp),
    _Candidate(Objective("absolute-error", "values"), _far, _one, torch.sign, symmetric=True),
)


def _fits(candidate: _Candidate, loss: Loss, output: Tensor, targets: Any) -> bool:
    generator = torch.Generator().manual_seed(0)
    slopes, products, followed = [], [], []
    for _ in range(DRAWS):
        drawn = torch.randn(output.shape, generator=generator).to(output) * SPREAD
        at = candidate.draw(drawn)
        slope = _derivative(loss, at, targets)
        if slope is None:
            return False
        slopes.append(slope)
        products.append(slope * candidate.factor(at))
        followed.append(at if candidate.follows is None else candidate.follows(at))
    made = torch.stack(products).double()
    if candidate.follows is None:
        return _is_still(made) and _picks(made[0], candidate.objective.class_dim)
    rounding = 64 * torch.finfo(output.dtype).eps
    return not _is_still(torch.stack(slopes), rounding) and _in_proportion(
        made, torch.stack(followed).double(), candidate.symmetric
    )


def _derivative(loss: Loss, output: Tensor, targets: Any) -> Tensor | None:
    """Of the loss with respect to the outputs; None where it cannot be had or is not finite."""
    leaf = output.detach().clone().requires_grad_()
    try:
        (slope,) = torch.autograd.grad(run_loss(loss, leaf, targets), leaf)
    except Exception:
        return None
    return slope if bool(torch.isfinite(slope).all()) else None


def _in_proportion(products: Tensor, followed: Tensor, symmetric: bool) -> bool:
    """From draw to draw each product changes by the same, positive multiple of what it follows, which is zero only where a
    sample does not count."""
    if not symmetric:
        products, followed = products - products.mean(0), followed - followed.mean(0)
    multiple = (products * followed).sum(0) / followed.square().sum(0).clamp_min(1e-30)
    left = (products - multiple * followed).norm(dim=0)
    size = products.norm(dim=0)
    counts = size > 1e-3 * size.max()
    return bool(
        counts.any() and size.max() > 0 and (multiple[counts] > 0).all() and (left <= TOLERANCE * size)[counts].all()
    )


def _is_still(products: Tensor, tolerance: float = TOLERANCE) -> bool:
    size = products[0].abs().max()
    return bool(size > 0 and (products - products[0]).abs().max() <= tolerance * size)


def _picks(product: Tensor, class_dim: int | None) -> bool:
    """Minus the targets' probabilities: nowhere positive, and of the classes of a sample not all alike."""
    assert class_dim is not None
    uneven = product.amax(class_dim) - product.amin(class_dim)
    return bool((product <= 0).all() and product.shape[class_dim] > 1 and uneven.max() > 0.5 * product.abs().max())
