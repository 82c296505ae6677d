"""Initialisers: one engine, and the names that PyTorch, Keras and the chapter use for its presets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from gainstage.errors import BadInput
from gainstage.theory import GLOROT, HE, LECUN, Fans, Scheme
from gainstage.theory.checks import check_known, positive, shown

Distribution = Literal["normal", "truncated_normal", "uniform"]
DISTRIBUTIONS: tuple[str, ...] = ("normal", "truncated_normal", "uniform")
CUT = 2.0  # a truncated normal is cut at two of its own standard deviations


def truncated_std(cut: float = CUT) -> float:
    """Standard deviation of N(0, 1) cut at +-cut: sqrt(1 - 2 cut phi(cut) / (2 Phi(cut) - 1))."""
    density = math.exp(-(cut**2) / 2) / math.sqrt(2 * math.pi)
    return math.sqrt(1 - 2 * cut * density / math.erf(cut / math.sqrt(2)))


@dataclass(frozen=True)
class VarianceScaling:
    """Draws weights of variance scale / fan (Glorot & Bengio 2010, He 2015, LeCun 1998).

    mode: "fan_in", "fan_out" or "fan_avg". distribution: "normal"; "truncated_normal", widened before the cut at two
    standard deviations so that the variance is right after it; "uniform" on +-sqrt(3 variance).
    Raises BadInput for an unknown mode or distribution and for a scale that is not positive.
    """

    scale: float = 1.0
    mode: str = "fan_in"
    distribution: str = "normal"

    def __post_init__(self) -> None:
        self._scheme()
        check_distribution(self.distribution)

    def _scheme(self) -> Scheme:
        return Scheme("", self.scale, self.mode)  # type: ignore[arg-type]

    def variance(self, fans: Fans) -> float:
        """Variance of each weight of a layer with these fans; BadInput for fans that no weight has."""
        return self._scheme().variance(fans)

    def __call__(self, weight: Tensor, fans: Fans, generator: torch.Generator | None = None) -> Tensor:
        """Fill `weight` in place and return it."""
        return fill(weight, self.variance(fans), self.distribution, generator)


@torch.no_grad()
def fill(
    weight: Tensor, variance: float, distribution: str = "normal", generator: torch.Generator | None = None
) -> Tensor:
    """Draw `weight` in place from a zero-mean distribution of the given variance, and return it.

    Half precision is drawn in float32 and rounded, within the distribution's bounds. A generator of another device draws
    there. On the meta device there is nothing to draw. Raises BadInput for an unknown distribution, for a variance that
    is not positive and finite, for weights that are no floating-point numbers, and for a seed in place of a generator.
    """
    check_distribution(distribution)
    check_variance(variance)
    check_floating(weight)
    check_generator(generator)
    if weight.is_meta:
        return weight
    target = _drawing_board(weight, generator)
    bound = _draw(target, math.sqrt(variance), distribution, generator)
    if target is not weight:
        weight.copy_(target)
    if bound < math.inf:
        limit = _rounded_down(bound, weight.dtype)
        weight.clamp_(-limit, limit)
    return weight


def _drawing_board(weight: Tensor, generator: torch.Generator | None) -> Tensor:
    """The weight itself, or an empty tensor where its precision or its device is not the one to draw in."""
    dtype = weight.dtype if weight.dtype in (torch.float32, torch.float64) else torch.float32
    device = weight.device if generator is None else generator.device
    same = dtype == weight.dtype and device == weight.device
    return weight if same else torch.empty_like(weight, dtype=dtype, device=device)


def _draw(target: Tensor, std: float, distribution: str, generator: torch.Generator | None) -> float:
    """Fill `target`, and return the bound of its values."""
    if distribution == "normal":
        target.normal_(0.0, std, generator=generator)
        return math.inf
    if distribution == "uniform":
        bound = math.sqrt(3.0) * std
        target.uniform_(-bound, bound, generator=generator)
        return bound
    wide = std / truncated_std()
    nn.init.trunc_normal_(target, 0.0, wide, -CUT * wide, CUT * wide, generator=generator)
    return CUT * wide


def _rounded_down(bound: float, dtype: torch.dtype) -> float:
    """The largest number of `dtype` that is not above `bound`."""
    nearest = float(torch.tensor(bound, dtype=dtype, device="cpu"))
    if nearest <= bound:
        return nearest
    info = torch.finfo(dtype)
    below = bound - max(bound, info.smallest_normal) * info.eps / 2  # half a step of the finest grid around it
    return float(torch.tensor(below, dtype=dtype, device="cpu"))


def check_distribution(name: str) -> None:
    """BadInput, with the known names, for a distribution that is not known."""
    check_known(name, DISTRIBUTIONS, "distribution")


def check_variance(variance: float) -> None:
    """BadInput for a variance that is not positive and finite."""
    positive(variance, "the variance of weights")


def check_floating(weight: Tensor) -> None:
    """BadInput for weights that are no tensor of floating-point numbers."""
    if not isinstance(weight, Tensor):
        raise BadInput(f"weights are a tensor, got {shown(weight)}")
    if not weight.is_floating_point():
        raise BadInput(f"weights are floating-point numbers, got {weight.dtype}")


def check_generator(generator: torch.Generator | None) -> None:
    """BadInput for anything else, such as a seed."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise BadInput(f"give a torch.Generator, such as torch.Generator().manual_seed(0), not {shown(generator)}")


def from_scheme(scheme: Scheme, distribution: str = "normal") -> VarianceScaling:
    """The initialiser of a row of the chapter's table. Raises BadInput for what is no Scheme."""
    if not isinstance(scheme, Scheme):
        raise BadInput(f"a scheme is a row of the table, such as gainstage.theory.HE, got {shown(scheme)}")
    return VarianceScaling(scheme.scale, scheme.mode, distribution)


PRESETS: dict[str, VarianceScaling] = {
    f"{name}_{distribution}": from_scheme(scheme, distribution)
    for names, scheme in ((("glorot", "xavier"), GLOROT), (("he", "kaiming"), HE), (("lecun",), LECUN))
    for name in names
    for distribution in ("normal", "uniform")
}


def get(name: str | VarianceScaling, distribution: str | None = None) -> VarianceScaling:
    """The initialiser called `name` ("he_normal", "xavier_uniform", ...); BadInput lists the known names."""
    if isinstance(name, VarianceScaling):
        found = name
    else:
        check_known(name, PRESETS, "initialiser")
        found = PRESETS[name]
    return found if distribution is None else replace(found, distribution=distribution)
