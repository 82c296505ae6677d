"""What an entry of the zoo is: a network, and batches that it may accept, the smallest first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.tools import generator


@dataclass(frozen=True)
class Entry:
    """A network of the zoo. build: makes it, in training mode. batches: (inputs, targets) of rising size. loss: as gs.check
    takes it; None where the network computes it itself."""

    name: str
    build: Callable[[], nn.Module]
    batches: Callable[[], Iterable[tuple[Any, Any]]]
    loss: Callable[[Any, Any], Tensor] | None


def images(samples: int, *shape: int) -> Tensor:
    """Normal numbers, from a generator of their own."""
    return torch.randn(samples, *shape, generator=generator())


def tokens(samples: int, length: int, words: int) -> Tensor:
    """Token numbers, from a generator of their own; none is 0 or 1, which pad or end a text."""
    return torch.randint(2, words, (samples, length), generator=generator())
