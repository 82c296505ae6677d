"""The activations that theory knows by name: what they compute, and which row of the chapter's table they belong to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gainstage.errors import BadInput
from gainstage.theory.quadrature import derivative, find_kinks

Family = Literal["linear", "logistic", "relu", "selu", "other"]


def selu_constants() -> tuple[float, float]:
    """(alpha, scale) of SELU, in closed form from the fixed point mean 0, variance 1 (Klambauer 2017, eq. 14)."""
    root = math.erfc(1 / math.sqrt(2)) * math.exp(0.5)
    alpha = math.sqrt(2 / math.pi) / (1 - root)
    # E z+ = 1/sqrt(2 pi), E z+^2 = 1/2; the negative branch alpha (e^z - 1) makes the mean vanish
    negative = 0.5 * math.erfc(math.sqrt(2)) * math.exp(2) - root + 0.5
    return alpha, 1 / math.sqrt(0.5 + alpha**2 * negative)


@dataclass(frozen=True)
class Activation:
    """A pointwise function with what theory needs to know about it.

    `family` is its row in the chapter's table of variances: "linear" and "logistic" take Glorot, "relu" takes He,
    "selu" takes LeCun; "other", a user's own function, has none.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    family: Family

    @property
    def kinks(self) -> tuple[float, ...]:
        """Places where f or f' jumps."""
        return _kinks(self.function)

    @property
    def responsive(self) -> tuple[float, float]:
        """The interval outside of which |f'| stays below 5 % of its maximum; infinite where it never falls so low."""
        return _responsive(self.function)

    @property
    def saturates(self) -> bool:
        """True when the function is steep around 0 and flattens on both sides, as the logistic function and tanh do."""
        low, high = self.responsive
        return -math.inf < low < 0 < high < math.inf


@lru_cache(maxsize=256)
def _kinks(function: Callable[[Tensor], Tensor]) -> tuple[float, ...]:
    return find_kinks(function)


@lru_cache(maxsize=256)
def _responsive(function: Callable[[Tensor], Tensor], share: float = 0.05) -> tuple[float, float]:
    z = torch.linspace(-60, 60, 240_001, dtype=torch.float64)
    slope = derivative(function, z).abs().nan_to_num(0.0, 0.0)
    alive = (slope >= share * slope.max()).nonzero().flatten()
    low = -math.inf if alive[0] == 0 else float(z[alive[0]])
    high = math.inf if alive[-1] == len(z) - 1 else float(z[alive[-1]])
    return low, high


def _identity(z: Tensor) -> Tensor:
    return z


@lru_cache(maxsize=256)
def leaky_relu(slope: float) -> Activation:
    """ReLU with slope `slope` for negative inputs."""
    return Activation(f"leaky_relu({slope:g})", partial(F.leaky_relu, negative_slope=slope), "relu")


LEAKS = {"leaky_relu": 0.01, "huge_leaky_relu": 0.2, "keras_leaky_relu": 0.3}  # PyTorch's, the chapter's, Keras's layer
KNOWN: dict[str, Activation] = {name: leaky_relu(slope) for name, slope in LEAKS.items()} | {
    activation.name: activation
    for activation in (
        Activation("identity", _identity, "linear"),
        Activation("logistic", torch.sigmoid, "logistic"),
        Activation("tanh", torch.tanh, "logistic"),
        Activation("relu", F.relu, "relu"),
        Activation("rrelu", partial(F.leaky_relu, negative_slope=(1 / 8 + 1 / 3) / 2), "relu"),
        Activation("prelu", partial(F.leaky_relu, negative_slope=0.25), "relu"),
        Activation("elu", F.elu, "relu"),
        Activation("selu", F.selu, "selu"),
        Activation("celu", F.celu, "relu"),
        Activation("gelu", F.gelu, "relu"),
        Activation("silu", F.silu, "relu"),
        Activation("mish", F.mish, "relu"),
        Activation("softplus", F.softplus, "relu"),
        Activation("relu6", F.relu6, "relu"),
        Activation("hardswish", F.hardswish, "relu"),
        Activation("hardtanh", F.hardtanh, "logistic"),
        Activation("hardsigmoid", F.hardsigmoid, "logistic"),
        Activation("softsign", F.softsign, "logistic"),
    )
}
ALIASES = {  # PyTorch's, Keras's and the chapter's other names
    "linear": "identity",
    "none": "identity",
    "sigmoid": "logistic",
    "swish": "silu",
    "hard_silu": "hardswish",
    "scaled_elu": "selu",
    "randomized_leaky_relu": "rrelu",
    "randomised_leaky_relu": "rrelu",
    "parametric_leaky_relu": "prelu",
    "parametric_relu": "prelu",
}


def canonical_name(name: str, known: Iterable[str]) -> str:
    """`name` in PyTorch's, Keras's or the chapter's spelling, as one of `known`: only its letters and digits count.

    Raises BadInput, with the known names and their aliases, for any other.
    """
    known = tuple(known)
    names = {candidate: candidate for candidate in known}
    names |= {alias: meant for alias, meant in ALIASES.items() if meant in known}
    for candidate, meant in names.items():
        if _bare(candidate) == _bare(name):
            return meant
    raise BadInput(f"no activation is called {name!r}; known are: {', '.join(sorted(names))}")


def _bare(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def lookup(name: str) -> Activation:
    """The activation called `name`, in any spelling; BadInput lists the known ones."""
    return KNOWN[canonical_name(name, KNOWN)]
