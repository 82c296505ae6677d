"""Activation modules by name: PyTorch's own wherever they exist."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from gainstage.errors import BadInput
from gainstage.theory import KNOWN, Activation, lookup
from gainstage.theory.activations import LEAKS, ActivationLike, canonical_name
from gainstage.theory.checks import finite, positive, whole
from gainstage.theory.meanfield import tailored_slope

SIMILARITY = 0.9  # of two samples behind a tailored network (Zhang 2022)


def _leaky_relu(default: float, slope: float | None = None) -> nn.Module:
    return nn.LeakyReLU(default if slope is None else slope)


def _prelu(slope: float = 0.25, channels: int = 1) -> nn.Module:
    return nn.PReLU(channels, slope)


def _tailored(depth: int | None = None, similarity: float = SIMILARITY) -> nn.Module:
    if depth is None:
        raise BadInput("tailored_leaky_relu works its slope out from the depth of the network; pass depth=")
    return nn.LeakyReLU(tailored_slope(depth, similarity))


MODULES: dict[str, Callable[..., nn.Module]] = {
    "identity": nn.Identity,
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    **{name: partial(_leaky_relu, slope) for name, slope in LEAKS.items()},
    "tailored_leaky_relu": _tailored,
    "rrelu": nn.RReLU,
    "prelu": _prelu,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "softmax": partial(nn.Softmax, dim=-1),
}
SETTINGS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(LEAKS, ("slope",)),
    "tailored_leaky_relu": ("depth", "similarity"),
    "prelu": ("slope", "channels"),
    "elu": ("alpha",),
    "celu": ("alpha",),
}


def make(
    name: ActivationLike,
    *,
    slope: float | None = None,
    alpha: float | None = None,
    channels: int | None = None,
    depth: int | None = None,
    similarity: float = SIMILARITY,
) -> nn.Module:
    """A new module of the activation `name`, in PyTorch's, Keras's or the chapter's spelling; PyTorch's function (torch.tanh)
    or module (nn.Tanh, nn.Tanh()) will do for a name.

    slope: of a leaky ReLU for negative inputs (without it "leaky_relu" has 0.01, "huge leaky relu" 0.2, as in the
    chapter, and "keras_leaky_relu" 0.3, as Keras's layer), or the one from which a PReLU starts (0.25). channels: slopes
    that a PReLU learns, 1 in all or one a channel, where channels are dimension 1. alpha: of ELU and CELU (1). depth and
    similarity: "tailored_leaky_relu" takes the slope with which a plain network of `depth` layers maps uncorrelated inputs
    to that similarity (Zhang 2022). RReLU draws its slope in training and takes the mean in evaluation (Xu 2015).
    Softmax normalises the last dimension. Raises BadInput for an unknown name and for a setting that is out of range or
    that the activation does not take.
    """
    found = known_name(name)
    given = {"slope": slope, "alpha": alpha, "channels": channels, "depth": depth}
    given["similarity"] = None if isinstance(similarity, float) and similarity == SIMILARITY else similarity
    settings = {key: value for key, value in given.items() if value is not None}
    _check_taken(found, settings)
    return MODULES[found](**{setting: _in_range(setting, value) for setting, value in settings.items()})


def known_name(activation: ActivationLike) -> str:
    """The name among MODULES of an activation that is given by a name, a class of PyTorch's, or a function that computes
    what a known one does. Raises BadInput for any other."""
    if isinstance(activation, type) or not (callable(activation) or isinstance(activation, Activation)):
        return canonical_name(activation, MODULES)
    meant = lookup(activation)
    for name, known in KNOWN.items():
        if known == meant:
            return name
    raise BadInput(f"no module computes {meant.name} as it is given here; give the name of one: {', '.join(MODULES)}")


def pointwise(name: ActivationLike) -> Activation:
    """What theory knows of the activation `name` with its settings as `make` has them by default.

    Raises BadInput for an unknown name, and for those that are not one function of one number (softmax; tailored ones).
    """
    found = known_name(name)
    if found not in KNOWN:
        raise BadInput(f"{found} is not one function of one number; choose from: {', '.join(sorted(KNOWN))}")
    return KNOWN[found]


def _check_taken(name: str, settings: dict[str, float]) -> None:
    for setting in settings:
        if setting not in SETTINGS.get(name, ()):
            takers = ", ".join(taker for taker, taken in SETTINGS.items() if setting in taken)
            raise BadInput(f"{name} takes no {setting}; leave it out, or choose one that does: {takers}")


def _in_range(setting: str, value: float) -> float:
    check = whole if setting in ("channels", "depth") else positive if setting == "alpha" else finite
    return check(value, f"an activation's {setting}")
