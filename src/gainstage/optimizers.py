"""Optimisers by name, through torch.optim."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from gainstage.errors import BadInput

OptimizerLike = str | Optimizer | Callable[[Any], Optimizer] | None

BY_NAME: dict[str, Callable[..., Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=1e-2),
    "momentum": partial(torch.optim.SGD, lr=1e-2, momentum=0.9),
    "nesterov": partial(torch.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True),
    "adagrad": torch.optim.Adagrad,
    "rmsprop": partial(torch.optim.RMSprop, lr=1e-3),
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "adamw": torch.optim.AdamW,
}
DEFAULT = "adam"


def make_optimizer(spec: OptimizerLike, model: nn.Module) -> Optimizer:
    """The optimiser that `spec` means for `model`: a name, an instance, or a callable that takes the parameters.

    Raises BadInput for an unknown name (it lists the known ones) and for a callable that returns no optimiser.
    """
    check_optimizer(spec)
    if isinstance(spec, Optimizer):
        check_trains(spec, model)
        return spec
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise BadInput("the model has nothing to train: all its parameters are frozen, or it has none")
    factory = BY_NAME[(DEFAULT if spec is None else spec).lower()] if spec is None or isinstance(spec, str) else spec
    optimizer = factory(parameters)
    if not isinstance(optimizer, Optimizer):
        raise BadInput(f"the optimizer callable must return a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return optimizer


def check_optimizer(spec: OptimizerLike) -> None:
    """BadInput for what make_optimizer could not use: an unknown name, or neither a name, an instance nor a callable."""
    if isinstance(spec, str) and spec.lower() not in BY_NAME:
        raise BadInput(f"no optimiser is called {spec!r}; known are: {', '.join(BY_NAME)}")
    if spec is not None and not isinstance(spec, (str, Optimizer)) and not callable(spec):
        raise BadInput(f"the optimizer must be a name, an instance or a callable, got {spec!r}")


def check_trains(optimizer: Optimizer, model: nn.Module) -> None:
    """BadInput when none of the optimiser's parameters belongs to the model."""
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise BadInput("the optimizer trains none of the model's parameters; give the optimizer of this model")
