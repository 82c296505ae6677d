"""Functions of one number, put together from recorded steps: what a user's own activation looks like to the theory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from gainstage.errors import BadInput
from gainstage.theory.activations import Activation
from gainstage.theory.checks import check_function, shown

PROBES = (-3.25, -1.375, 0.0, 1.0, 2.625, 7.75)  # where a function is asked whether it is affine


@dataclass(frozen=True)
class Slot:
    """Stands for a value in the arguments of a step: 0 is the variable z, i the result of step i - 1."""

    index: int


@dataclass(frozen=True)
class Number:
    """A number where the function was given a tensor of it, as methods of tensors need."""

    value: float


@dataclass(frozen=True)
class Step:
    """One call of a function, with numbers and slots as arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...] = ()

    def __call__(self, values: Sequence[Tensor]) -> Any:
        # every value is handed over as a copy: a step may have been recorded from an in-place function
        arguments = [_filled(argument, values) for argument in self.arguments]
        return self.function(*arguments, **{key: _filled(value, values) for key, value in self.keywords})

    def renumbered(self, places: Sequence[int]) -> Step:
        """The same with each slot i replaced by slot places[i]."""
        arguments = tuple(_moved(argument, places) for argument in self.arguments)
        return Step(self.function, arguments, tuple((key, _moved(value, places)) for key, value in self.keywords))


def _filled(argument: Any, values: Sequence[Tensor]) -> Any:
    if isinstance(argument, Slot):
        return values[argument.index].clone()
    if isinstance(argument, Number):
        return torch.tensor(argument.value, device="cpu")
    return type(argument)(_filled(a, values) for a in argument) if isinstance(argument, (tuple, list)) else argument


def _moved(argument: Any, places: Sequence[int]) -> Any:
    if isinstance(argument, Slot):
        return Slot(places[argument.index])
    return tuple(_moved(a, places) for a in argument) if isinstance(argument, tuple) else argument


@dataclass(frozen=True)
class Composite:
    """A pointwise function of z: steps in order, and which value is its result. Equal steps make equal functions, so that
    what the theory worked out for one serves for all."""

    steps: tuple[Step, ...] = ()
    result: int = 0

    def __call__(self, z: Tensor) -> Tensor:
        if not isinstance(z, Tensor):
            raise BadInput(f"a function of the theory is asked for a tensor of numbers, got {shown(z)}")
        values: list[Any] = [z]
        for step in self.steps:
            values.append(step(values))
        return torch.as_tensor(values[self.result]).to(z.dtype)

    @property
    def name(self) -> str:
        """For example "mul+sigmoid"."""
        names = [getattr(step.function, "__name__", "function").strip("_") for step in self.steps]
        return "+".join(dict.fromkeys(names)) or "identity"

    @property
    def activation(self) -> Activation:
        """What the theory of activations needs to know."""
        return Activation(self.name, self, "other")

    @property
    def affine(self) -> tuple[float, float] | None:
        """(a, b) where the function is a z + b; None where it is not."""
        return _affine(self)


IDENTITY = Composite()


@lru_cache(maxsize=1024)
def _affine(function: Composite) -> tuple[float, float] | None:
    z = torch.tensor(PROBES, dtype=torch.float64, device="cpu")
    values = torch.as_tensor(function(z), dtype=torch.float64).expand_as(z)
    shift = float(values[2])
    slope = float(values[3]) - shift
    scale = abs(slope) + abs(shift) + 1e-300
    straight = bool(((values - slope * z - shift).abs() < 1e-9 * scale * (1 + z.abs())).all())
    return (slope, shift) if straight and math.isfinite(slope + shift) else None


def compose(call: Step, inner: Sequence[Composite]) -> Composite:
    """`call` with each of its slots i filled by the function inner[i]; steps that they have in common run once."""
    steps: dict[Step, int] = {}
    results = [_merge(steps, function) for function in inner]
    last = call.renumbered(results)
    place = steps.setdefault(last, len(steps) + 1)
    return Composite(tuple(steps), place)


def _merge(steps: dict[Step, int], function: Composite) -> int:
    """Enter a function's steps under their new numbers; returns the number of its result."""
    places = [0]
    for step in function.steps:
        places.append(steps.setdefault(step.renumbered(places), len(steps) + 1))
    return places[function.result]


def pointwise(function: Callable[..., Any]) -> Composite:
    """A function of one number as a composite. Raises BadInput for what cannot be called."""
    check_function(function)
    return Composite((Step(function, (Slot(0),)),), 1)
