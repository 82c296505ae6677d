"""Calls of torch functions as they can be repeated on other numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gainstage.theory.composition import Slot, Step


def is_number(tensor: Tensor) -> bool:
    """True for a tensor of one element that can be read without waiting for a device."""
    return tensor.numel() == 1 and tensor.device.type == "cpu"


def recorded(func, data: Sequence[Tensor], args: Any, kwargs: Mapping[str, Any]) -> Step | None:
    """A call of a torch function with slots in place of its tensors; None where an argument cannot be kept."""
    places = {id(tensor): Slot(number) for number, tensor in enumerate(data)}

    def kept(argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return places[id(argument)] if id(argument) in places else argument.item()
        if isinstance(argument, (tuple, list)):
            return tuple(kept(each) for each in argument)
        if argument is None or isinstance(argument, (bool, int, float, str, torch.dtype)):
            return argument
        raise TypeError(f"a {type(argument).__name__} cannot be recorded")

    try:
        return Step(func, kept(args), tuple(sorted((key, kept(value)) for key, value in kwargs.items())))
    except (TypeError, KeyError):
        return None
