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
    if isinstance(spec, Optimizer):
        return spec
    if spec is None or isinstance(spec, str):
        name = (spec or DEFAULT).lower()
        if name not in BY_NAME:
            raise BadInput(f"no optimiser is called {spec!r}; known are: {', '.join(BY_NAME)}")
        spec = BY_NAME[name]
    optimizer = spec([p for p in model.parameters() if p.requires_grad])
    if not isinstance(optimizer, Optimizer):
        raise BadInput(f"the optimizer callable must return a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return optimizer
