"""Helpers that several test files share."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def random_states() -> tuple[Any, ...]:
    """Python's, NumPy's and torch's random states."""
    return random.getstate(), np.random.get_state(), torch.random.get_rng_state()


def same_states(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """True when two results of random_states() are equal, bit by bit."""
    return (
        a[0] == b[0] and all(np.array_equal(x, y) for x, y in zip(a[1], b[1], strict=True)) and torch.equal(a[2], b[2])
    )


def generator(seed: int = 0) -> torch.Generator:
    """A generator of its own, so that a test does not touch the process's."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=generator(seed))


def blobs(samples: int = 256, features: int = 20, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Standardised inputs around one centre a class, and class numbers."""
    draw = generator(seed)
    y = torch.arange(samples) % classes
    centres = torch.randn(classes, features, generator=draw)
    x = centres[y] + 0.5 * torch.randn(samples, features, generator=draw)
    return (x - x.mean(0)) / x.std(0), y


def refill(model: nn.Module, std: float | None = None, seed: int = 0) -> nn.Module:
    """Draw a module's parameters from a generator of its own: weights normal (std, or 1/sqrt(fan_in)), vectors zero."""
    draw = generator(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.normal_(0.0, fan_in**-0.5 if std is None else std, generator=draw)
    return model


def quiet(build):
    """Call `build()` with the process's random state put back afterwards (torch's layers draw from it)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()
