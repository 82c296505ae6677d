"""What the theory takes: numbers, sizes and functions of one number. Anything else gets one sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from gainstage.errors import BadInput

# where a function is asked whether it takes each number by itself: off round numbers, and far out; every other one of them
# has neither the smallest nor the largest
_NEAR, _FAR = [0.2 * step - 8.9863 for step in range(90)], [-30, -3e3, 40, 7e3, -300, 500]
PROBES = torch.tensor([*_NEAR, *_FAR], dtype=torch.float64, device="cpu")
LONGEST = 60  # characters of a value in a sentence
DEEPEST = 100_000  # layers of a network


def shown(value: object) -> str:
    """A value as Python writes it, or its type where that is long."""
    text = repr(value)
    return text if len(text) <= LONGEST and "\n" not in text else f"a {type(value).__name__}"


def _float(value: object) -> float | None:
    """A real number, also one in a tensor of no dimensions; None for anything else, a bool included."""
    if type(value) is float:  # the usual case, at once
        return value
    if isinstance(value, Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:  # of an int
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]


def number(value: object, what: str) -> float:
    """A real number, infinity and NaN included; BadInput for anything else."""
    found = _float(value)
    if found is None:
        raise BadInput(f"{what} must be a number, got {shown(value)}")
    return found


def finite(value: object, what: str) -> float:
    """A finite number; BadInput for anything else."""
    found = _float(value)
    if found is None or not math.isfinite(found):
        raise BadInput(f"{what} must be a finite number, got {shown(value)}")
    return found


def positive(value: object, what: str) -> float:
    """A positive and finite number; BadInput for anything else."""
    found = _float(value)
    if found is None or not 0 < found < math.inf:
        raise BadInput(f"{what} must be positive and finite, got {shown(value)}")
    return found


def not_negative(value: object, what: str) -> float:
    """Zero or a positive and finite number; BadInput for anything else."""
    found = _float(value)
    if found is None or not 0 <= found < math.inf:
        raise BadInput(f"{what} must be zero or more, and finite, got {shown(value)}")
    return found


def power(value: object, what: str) -> float:
    """Zero or more, infinity, or NaN, which stands for "not known"; BadInput for anything else."""
    found = _float(value)
    if found is None or found < 0:
        raise BadInput(f"{what} must be zero or more, got {shown(value)}")
    return found


def whole(value: object, what: str, least: int = 1) -> int:
    """A whole number from `least`; BadInput for anything else, 3.0 and True included."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise BadInput(f"{what} must be a whole number of at least {least}, got {shown(value)}")
    return int(value)


def network_depth(value: object) -> int:
    """The depth of a network: a whole number from 1 to DEEPEST; BadInput for anything else."""
    depth = whole(value, "the depth of a network, in layers,")
    if depth > DEEPEST:
        raise BadInput(f"the depth of a network may be {DEEPEST} layers at most, got {shown(value)}")
    return depth


def flag(value: object, what: str) -> bool:
    """True or False; BadInput for anything else."""
    if not isinstance(value, bool):
        raise BadInput(f"{what} must be True or False, got {shown(value)}")
    return value


def check_known(name: object, known: Iterable[str], kind: str) -> None:
    """BadInput, with the known names, for what is none of them."""
    if not isinstance(name, str) or name not in known:
        raise BadInput(f"no {kind} is called {shown(name)}; known are: {', '.join(known)}")


def function_name(function: Any) -> str:
    """The name of a function, of the class of a callable object, or of what a partial application calls."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", None) or type(function).__name__


def check_function(function: object, what: str = "a function of one number") -> None:
    """BadInput for what cannot be called, or not be remembered."""
    if not callable(function) or not isinstance(function, Hashable):
        raise BadInput(f"{what} must be something that can be called and hashed, got {shown(function)}")


def check_pointwise(function: Callable[[Tensor], Tensor]) -> None:
    """BadInput for a function that does not make of each number one number of the same kind, whatever stands beside it."""
    check_function(function)
    _check_pointwise(function)


@lru_cache(maxsize=1024)
def _check_pointwise(function: Callable[[Tensor], Tensor]) -> None:
    z, some = PROBES.clone(), PROBES[::2].flip(0).view(6, -1)
    try:
        with torch.no_grad():
            alone = function(z)
        among = alone if _fault(z, alone) else _differentiated(function, some)
    except Exception as error:
        said = str(error).partition("\n")[0]
        raise _no_activation(function, f"on a tensor of {z.dtype} it fails ({said})") from error
    why = _fault(z, alone)
    if not why and not torch.allclose(alone[::2].flip(0).view(6, -1), among, rtol=1e-9, atol=1e-9, equal_nan=True):
        why = "what it makes of a number depends on the numbers beside it, or on chance"
    if why:
        raise _no_activation(function, why)


def _no_activation(function: object, why: str) -> BadInput:
    return BadInput(f"{function_name(function)} cannot be an activation, a function of one number: {why}")


def _fault(z: Tensor, value: object) -> str:
    """What is wrong with a function's value for PROBES, which were handed over as z."""
    if not isinstance(value, Tensor):
        return f"it returns {shown(value)}, not a tensor"
    if value.dtype != z.dtype:
        return f"it returns {value.dtype} for {z.dtype}; keep the dtype, for example by .to(z.dtype)"
    if value.shape != z.shape:
        return f"it returns shape {tuple(value.shape)} for shape {tuple(z.shape)}"
    return "" if torch.equal(z, PROBES) else "it changes its input in place; use the variant that does not"


@contextmanager
def differentiating() -> Iterator[None]:
    """Gradients, whatever is going on around: with hooks of our own for what is saved, so that activation checkpointing does
    not take it for a part of the network."""
    hooks = torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is)
    with torch.inference_mode(False), torch.enable_grad(), hooks:
        yield


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _differentiated(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """A function's value where its slope is asked for too, which may fail."""
    with differentiating():
        z = z.clone().requires_grad_(True)
        value = function(z)
        if value.requires_grad:
            torch.autograd.grad(value.sum(), z, allow_unused=True)
    return value.detach()
