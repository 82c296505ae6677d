"""Initialisers without chance: zeros, constants, and biases that start the output at what is known of the targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gainstage.errors import BadInput
from gainstage.nn.initializers import check_floating
from gainstage.theory import Fans
from gainstage.theory.checks import finite, shown


@dataclass(frozen=True)
class Constant:
    """Every weight the same; zeros by default. Never for the weights of hidden layers: equal units stay equal.

    Raises BadInput for a value that is not finite.
    """

    value: float = 0.0

    def __post_init__(self) -> None:
        finite(self.value, "a constant weight")

    @torch.no_grad()
    def __call__(self, weight: Tensor, fans: Fans | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Fill `weight` in place and return it."""
        check_floating(weight)
        return weight.fill_(self.value)


def prior_bias(shares: Sequence[float] | Tensor) -> Tensor:
    """Output biases (classes,) with which softmax gives each class its share before any training: log of the shares.

    Takes shares or counts, at least two, all positive; raises BadInput otherwise.
    """
    try:
        counts = torch.as_tensor(torch.as_tensor(shares).tolist(), dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"class shares must be a list of numbers, got {shown(shares)}") from error
    if counts.ndim != 1 or len(counts) < 2 or not bool((counts > 0).all()) or not bool(counts.isfinite().all()):
        raise BadInput("class shares must be at least two positive numbers; leave classes without samples out")
    return (counts / counts.sum()).log().float()


def prior_bias_binary(share: float) -> float:
    """Bias of one logistic output that starts at the share of positives: log(share / (1 - share))."""
    share = finite(share, "the share of positives")
    if not 0 < share < 1:
        raise BadInput(f"the share of positives must lie between 0 and 1, got {share}")
    return math.log(share) - math.log1p(-share)


def mean_bias(targets: Tensor) -> Tensor:
    """Output biases (outputs,) of a regression that starts at the mean of the targets (samples, outputs) or (samples,).

    Raises BadInput for targets that are no floating-point numbers, that are NaN or infinite, and where there are none.
    """
    if not isinstance(targets, Tensor):
        raise BadInput(f"the targets are a tensor, got {shown(targets)}")
    if targets.ndim == 0 or targets.numel() == 0 or not targets.is_floating_point():
        raise BadInput("the mean needs floating-point targets of at least one sample")
    means = targets.detach().reshape(len(targets), -1).float().mean(0)
    if not bool(means.isfinite().all()):
        raise BadInput("the targets hold values that are NaN or infinite; remove or impute them")
    return means
