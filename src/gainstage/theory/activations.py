"""The activations that theory knows by name: what they compute, and which row of the chapter's table they belong to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from gainstage.errors import BadInput
from gainstage.theory.checks import PROBES, check_function, check_known, check_pointwise, finite, function_name, shown
from gainstage.theory.quadrature import approached, derivative, find_jumps, find_kinks, find_singularities

Family = Literal["linear", "logistic", "relu", "selu", "other"]
FAMILIES: tuple[str, ...] = get_args(Family)


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
    Raises BadInput for an unknown family and for what cannot be called.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    family: Family

    def __post_init__(self) -> None:
        check_function(self.function, "an activation's function")
        if not isinstance(self.name, str):
            raise BadInput(f"an activation's name must be a string, got {shown(self.name)}")
        check_known(self.family, FAMILIES, "family of activations")

    @property
    def kinks(self) -> tuple[float, ...]:
        """Places where f or f' jumps."""
        return _kinks(self.function)

    @property
    def singularities(self) -> tuple[float, ...]:
        """Places towards which f' grows without end."""
        return _singularities(self.function)

    @property
    def jumps(self) -> tuple[float, ...]:
        """Those of the kinks where f jumps."""
        return _jumps(self.function)

    @property
    def breaks(self) -> tuple[float, ...]:
        """Where an integral over the function is to be cut: at its kinks, and ever finer towards its singularities."""
        return _breaks(self.function)

    @property
    def responsive(self) -> tuple[float, float]:
        """The interval outside of which |f'| stays below 5 % of its maximum; infinite where it never falls so low, and where
        it has no maximum, as that of z^2."""
        return _responsive(self.function)

    @property
    def saturates(self) -> bool:
        """True when the function is steep around 0 and flattens on both sides, as the logistic function and tanh do."""
        low, high = self.responsive
        return -math.inf < low < 0 < high < math.inf


ActivationLike: TypeAlias = Activation | str | Callable[[Tensor], Tensor]  # what lookup takes


@lru_cache(maxsize=256)
def _kinks(function: Callable[[Tensor], Tensor]) -> tuple[float, ...]:
    check_pointwise(function)
    return find_kinks(function)


@lru_cache(maxsize=256)
def _singularities(function: Callable[[Tensor], Tensor]) -> tuple[float, ...]:
    return find_singularities(function, _kinks(function))


@lru_cache(maxsize=256)
def _jumps(function: Callable[[Tensor], Tensor]) -> tuple[float, ...]:
    return find_jumps(function, _kinks(function))


@lru_cache(maxsize=256)
def _breaks(function: Callable[[Tensor], Tensor]) -> tuple[float, ...]:
    return _kinks(function) + approached(_singularities(function))


@lru_cache(maxsize=256)
def _responsive(function: Callable[[Tensor], Tensor], share: float = 0.05) -> tuple[float, float]:
    check_pointwise(function)
    z = torch.linspace(-60, 60, 240_001, dtype=torch.float64, device="cpu")
    slope = derivative(function, z).abs().nan_to_num(0.0, math.inf)
    grows = slope[[0, -1]].max() > 1.1 * slope[len(z) // 4 : -len(z) // 4].max() or slope.max().isinf()
    if grows or find_singularities(function):
        return -math.inf, math.inf
    alive = (slope >= share * slope.max()).nonzero().flatten()
    low = -math.inf if alive[0] == 0 else float(z[alive[0]])
    high = math.inf if alive[-1] == len(z) - 1 else float(z[alive[-1]])
    return low, high


def _identity(z: Tensor) -> Tensor:
    return z


def leaky_relu(slope: float) -> Activation:
    """ReLU with slope `slope` for negative inputs. Raises BadInput for a slope that is not finite."""
    return _leaky_relu(finite(slope, "the slope of a leaky ReLU"))


@lru_cache(maxsize=256)
def _leaky_relu(slope: float) -> Activation:
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


def canonical_name(name: str | type, known: Iterable[str]) -> str:
    """`name` in PyTorch's, Keras's or the chapter's spelling, as one of `known`: only its letters and digits count.

    A class of PyTorch's, such as nn.Tanh, counts by its name. Raises BadInput, with the known names and their aliases, for
    any other.
    """
    known = tuple(known)
    if isinstance(name, type) and name.__module__ == torch.nn.Tanh.__module__:
        name = name.__name__
    if not isinstance(name, str):
        raise BadInput(f"an activation is given by its name, such as 'tanh', or as a function, got {shown(name)}")
    names = {candidate: candidate for candidate in known}
    names |= {alias: meant for alias, meant in ALIASES.items() if meant in known}
    for candidate, meant in names.items():
        if _bare(candidate) == _bare(name):
            return meant
    raise BadInput(f"no activation is called {name!r}; known are: {', '.join(sorted(names))}")


def _bare(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def lookup(activation: ActivationLike) -> Activation:
    """The activation that is meant: by its name, in any spelling; by a function of a tensor; or an Activation itself.

    A function that computes what a known activation does is taken for that; any other has the family "other". Raises
    BadInput for an unknown name, with the known ones, and for what is no function of one number.
    """
    if isinstance(activation, Activation):
        return activation
    if callable(activation) and not isinstance(activation, type):
        if isinstance(activation, torch.nn.Module) and list(activation.parameters()):
            raise BadInput(
                f"{function_name(activation)} has parameters, which change; give the function that it is now"
            )
        check_pointwise(activation)
        return _computed_by(activation)
    return KNOWN[canonical_name(activation, KNOWN)]


@lru_cache(maxsize=256)
def _computed_by(function: Callable[[Tensor], Tensor]) -> Activation:
    value = function(PROBES.clone())
    for known in KNOWN.values():
        if torch.allclose(known.function(PROBES), value, rtol=1e-9, atol=1e-12):
            return known
    return Activation(function_name(function), function, "other")
