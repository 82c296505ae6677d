"""Calls of torch functions as they can be repeated on other numbers."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from gainstage.theory.composition import Number, Slot, Step

LARGEST = 2**16  # elements of a constant that is looked through


def is_number(tensor: Tensor) -> bool:
    """True for a tensor that is one number over and over, and can be read without waiting for a device."""
    if tensor.device.type != "cpu" or not 0 < tensor.numel() <= LARGEST:
        return False
    return tensor.numel() == 1 or bool((tensor.detach() == tensor.detach().flatten()[0]).all())


@lru_cache
def body_of(function: Any) -> Any:
    """A function of torch's that is written in Python, without its question whether it is overridden: run under a mode, the
    functions that it calls are seen instead of itself."""
    asks = {name: _never for name in function.__globals__ if name.startswith("has_torch_function")}
    scope = {**function.__globals__, **asks}
    body = FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body


def _never(*_tensors: Any) -> bool:
    return False


_AUGMENTED = {f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod", "and", "or", "xor")}


def written(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tensor that a call writes into: x[mask] = value, x += y, x.mul_(y), relu(x, inplace=True); None for other calls."""
    name = getattr(func, "__name__", "")
    in_place = name in _AUGMENTED or name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    if (in_place or kwargs.get("inplace")) and args and isinstance(args[0], Tensor):
        return args[0]
    out = kwargs.get("out")
    return out if isinstance(out, Tensor) else None


def called_by_fsdp(depth: int = 12) -> bool:
    """True for what FSDP2 does by itself while a module runs: it gathers shards, which is no operation of the network."""
    frame = sys._getframe(1)
    for _ in range(depth):
        if frame is None:
            return False
        if frame.f_globals.get("__name__", "").startswith(("torch.distributed.fsdp", "torch.distributed._composable")):
            return True
        frame = frame.f_back
    return False


def recorded(func, data: Sequence[Tensor], args: Any, kwargs: Mapping[str, Any]) -> Step | None:
    """A call of a torch function with slots in place of its tensors; None where an argument cannot be kept, and where what
    was kept cannot be called."""
    places = {id(tensor): Slot(number) for number, tensor in enumerate(data)}

    def kept(argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return places.get(id(argument)) or Number(argument.detach().flatten()[0].item())
        if isinstance(argument, (tuple, list)):
            return tuple(kept(each) for each in argument)
        if argument is None or isinstance(argument, (bool, int, float, str, torch.dtype)):
            return argument
        raise TypeError(f"a {type(argument).__name__} cannot be recorded")

    try:
        step = Step(func, kept(args), tuple(sorted((key, kept(value)) for key, value in kwargs.items())))
        return step if _works(step, tuple(tensor.dtype == torch.bool for tensor in data)) else None
    except TypeError:
        return None


@lru_cache(maxsize=1024)
def _works(step: Step, masks: tuple[bool, ...]) -> bool:
    """Whether a recorded call can be repeated, number by number."""
    z = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    try:
        return torch.as_tensor(step([z > 0 if mask else z for mask in masks])).shape == z.shape
    except Exception:
        return False
