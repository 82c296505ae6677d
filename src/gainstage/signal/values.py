"""Quantities as probes compute them: gathered on their device, moved in one transfer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gainstage.signal.statistics import Stack

Key = tuple[str, int]  # quantity, and stage (of a layer and its activation) or operation (of everything else)
Kind = tuple[int | None, int]  # channels and their dimension, of a Stack

LARGE = 2**16  # elements of a tensor that is read by itself
MOST = 2**18  # elements of copies that wait to be read together


class Values:
    """Numbers by quantity and place."""

    def __init__(self) -> None:
        self._parts: list[tuple[str, Sequence[int], Tensor]] = []

    def add(self, quantity: str, places: Sequence[int], values: Tensor) -> None:
        """One number a place, (places,); later ones replace earlier ones. A device without values is passed over."""
        if places and not values.is_meta:
            self._parts.append((quantity, places, values.detach()))

    def read(self) -> dict[Key, float]:
        """All numbers, moved in one transfer from each device."""
        found: dict[Key, float] = {}
        for device in dict.fromkeys(values.device for *_, values in self._parts):
            here = [part for part in self._parts if part[2].device == device]
            keys = [(quantity, place) for quantity, places, _ in here for place in places]
            packed = torch.cat([values.reshape(-1).float() for *_, values in here])
            found.update(zip(keys, packed.tolist(), strict=True))
        return found


class Stacks:
    """Gathers small tensors of one shape, by copies, until enough of them wait to be read together."""

    def __init__(self, read: Callable[[Sequence[int], Stack], None]):
        self._read = read
        self._waiting: dict[tuple, tuple[list[int], list[Tensor], Kind]] = {}
        self._elements = 0

    def add(self, place: int, tensor: Tensor, kind: Kind) -> None:
        """A tensor (samples, *units) of a place; it may change afterwards."""
        tensor = tensor.detach()
        if tensor.numel() >= LARGE:
            self._read([place], Stack(tensor.unsqueeze(0), *kind))
            return
        group = (tensor.shape, tensor.dtype, tensor.device, kind)
        places, copies, _ = self._waiting.setdefault(group, ([], [], kind))
        places.append(place)
        copies.append(tensor.clone())
        self._elements += tensor.numel()
        if self._elements >= MOST:
            self.flush()

    def flush(self) -> None:
        """Read all that wait."""
        waiting, self._waiting, self._elements = self._waiting, {}, 0
        for places, copies, kind in waiting.values():
            self._read(places, Stack(torch.stack(copies), *kind))
