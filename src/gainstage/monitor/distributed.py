"""One ledger of a training on several processes: the figures of one process on all their samples together.

What each process contributes are sums, never means or norms of its own, so that adding them up loses nothing: two
collectives a measured step, one of a few numbers in which all agree that they have the same to add, one of the sums.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Key = tuple[str, int]
LEVELS = ("signal", "offset", "similarity")


class Sums(NamedTuple):
    """Of a tensor of shape (samples, ...), in double precision: the number of samples; for every unit the sum, the sum of
    squares, and the sum of the samples' directions (samples over their norm); the number of samples that are not zero."""

    samples: Tensor
    first: Tensor
    second: Tensor
    directions: Tensor
    alive: Tensor


def sums_of(x: Tensor) -> Sums:
    """The sums of one process. The squares are summed about the mean, so that a large offset hides no small signal."""
    x = x.detach().flatten(1).double()
    first, samples = x.sum(0), x.new_tensor(float(len(x)))
    n = max(len(x), 1)
    second = (x - first / n).square().sum(0) + first.square() / n
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    directions = (x / norms.clamp_min(torch.finfo(torch.float64).tiny)).sum(0)
    return Sums(samples, first, second, directions, (norms > 0).sum().double())


def fired(x: Tensor, channel_dim: int) -> Tensor:
    """Which channels of a tensor are not zero on every sample, at every position."""
    return x.detach().abs().amax(dim=[d for d in range(x.ndim) if d != channel_dim % x.ndim]) > 0


def levels(sums: Sums) -> dict[str, Tensor]:
    """Signal power, offset power and similarity of all samples, as gainstage.signal.statistics defines them; NaN where too
    few samples are left."""
    n, centre = sums.samples, sums.first / sums.samples
    signal = ((sums.second - n * centre.square()).clamp_min(0) / (n - 1)).mean()
    offset = (centre.square().mean() - signal / n).clamp_min(0)
    pairs = sums.alive * (sums.alive - 1)
    similarity = torch.where(pairs > 0, (sums.directions.square().sum() - sums.alive) / pairs, torch.nan)
    return dict(zip(LEVELS, (signal, offset, similarity), strict=True))


@dataclass(frozen=True)
class Contribution:
    """What one process has measured. samples: of its batch. means: mean squares and shares, each with its weight in
    `weights` (a number of samples or of elements). sums: of the stages' outputs. fired: for each stage with a rectifier, the
    channels that were ever not zero."""

    samples: int
    means: Mapping[Key, Tensor]
    weights: Mapping[Key, float]
    sums: Mapping[int, Sums]
    fired: Mapping[int, Tensor]

    @property
    def signature(self) -> int:
        """A number that differs where two processes have not measured the same things."""
        shapes = [(key, tuple(s.first.shape)) for key, s in self.sums.items()]
        text = repr((list(self.means), shapes, [(key, tuple(f.shape)) for key, f in self.fired.items()]))
        return zlib.crc32(text.encode())

    def packed(self) -> list[Tensor]:
        """Everything as terms of sums."""
        first = next(iter(self.means.values()))
        weights = torch.tensor([self.weights[key] for key in self.means], dtype=torch.float64, device=first.device)
        means = torch.stack([mean.detach().reshape(()).double() for mean in self.means.values()])
        fired = [each.double() for each in self.fired.values()]
        samples = means.new_tensor(float(self.samples))
        return [samples, means * weights, weights, *itertools.chain.from_iterable(self.sums.values()), *fired]


class Together(NamedTuple):
    """What all processes have measured: the values, the number of samples, and the intervals that all keep to."""

    values: dict[Key, Tensor]
    samples: int
    intervals: tuple[int, int]


def combined(mine: Contribution, totals: Sequence[Tensor], processes: int) -> tuple[dict[Key, Tensor], int]:
    """The values of all processes together and their number of samples, from the `totals` of their packed contributions. The
    loss that is minimised is the mean of the processes' losses, and a gradient of it one part in `processes` of that of a
    process's own."""
    values = dict(zip(mine.means, totals[1] / totals[2], strict=True))
    values = {key: value / processes**2 if key[0] == "gradient" else value for key, value in values.items()}
    rest = iter(totals[3:])
    for operation in mine.sums:
        sums = Sums(*itertools.islice(rest, len(Sums._fields)))
        values.update({(quantity, operation): value for quantity, value in levels(sums).items()})
    for stage in mine.fired:
        values["dead", stage] = (next(rest) == 0).double().mean()
    return values, int(totals[0])


def all_added(tensors: Sequence[Tensor], group: Any) -> list[Tensor]:
    """Tensors of the same shapes, added up over all processes in one collective."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat, group=group)
    return [part.reshape(t.shape) for part, t in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True)]


# ---------------------------------------------------------------- who measures together
def local(x: Tensor) -> Tensor:
    """The part of a tensor that this process has: all of it, unless it is sharded."""
    part = x.detach()
    return part.to_local() if is_sharded(part) else part  # pyright: ignore


def is_sharded(x: Tensor) -> bool:
    """True for a DTensor, whose class is slow to import."""
    return hasattr(x, "to_local")


def sharding_group(model: nn.Module) -> Any:
    """The process group over which the parameters are sharded, all of them along one dimension; seen from outside of its
    forward pass. None where they are not."""
    meshes = {getattr(p, "device_mesh", None) for p in model.parameters() if is_sharded(p)}
    mesh = meshes.pop() if len(meshes) == 1 else None
    return mesh.get_group() if mesh is not None and mesh.ndim == 1 else None


def replicating_group(model: nn.Module) -> Any:
    """The process group of the DistributedDataParallel in whose forward pass the model runs; None outside of one."""
    around = getattr(DistributedDataParallel, "_active_ddp_module", None)
    return around.process_group if around is not None and any(m is model for m in around.modules()) else None


class Team:
    """The monitors of one training in its processes. All take part in a collective, or none does: a process that does not
    watch, or no longer does, has said so where the others look first, in the store of the process group. That the gradients
    of a step have been added up before its readings are makes sure that they see it in time."""

    def __init__(self) -> None:
        self._name = ""
        self._mine = 0
        self._complete: bool | None = None
        self._store = _default_store()

    def join(self, model: nn.Module) -> None:
        """Say that this process watches `model`; to be called before the backward pass of the first step that is read.
        Processes know each other's models by their weights, or by the shapes of those where each has a part."""
        if self._store is not None and not self._name:
            self._name = f"gainstage/{fingerprint(model)}"
            self._mine = self._store.add(f"{self._name}/{dist.get_rank()}", 1)

    def is_complete(self, group: Any) -> bool:
        """True when all processes watch, since the same step."""
        if self._store is None or group is None:
            return False
        if self._complete is None:
            counts = [self._store.add(f"{self._name}/{rank}", 0) for rank in range(dist.get_world_size())]
            self._complete = set(counts) == {self._mine}
        return self._complete and self._store.add(f"{self._name}/{self._mine}/left", 0) == 0

    def leave(self) -> None:
        """This process watches no longer."""
        if self._store is not None and self._name:
            self._store.add(f"{self._name}/{self._mine}/left", 1)
        self._store = None

    def agree(
        self, group: Any, mine: int | None, step: int, intervals: tuple[int, int], device: Any
    ) -> tuple[int, int] | None:
        """The first process's intervals when all have the same signature at the same step; None when they have not, or when
        one has nothing to add (`mine` is None)."""
        same = [-1.0, -1.0] if mine is None else [float(mine), float(step)]
        first = dist.get_rank(group) == 0
        shared = [float(each if first else 0) for each in intervals]
        votes = [*same, *(-each for each in same), float(mine is None), *shared]
        found = torch.tensor(votes, dtype=torch.float64, device=device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=group)
        high, low, failed = found[:2], -found[2:4], found[4]
        agreed = bool((high == low).all()) and not failed
        return (int(found[5]), int(found[6])) if agreed else None

    def meet(
        self, group: Any, mine: Contribution | None, turn: tuple[int, tuple[int, int]], device: Any
    ) -> Together | None:
        """What all have measured at this `turn` (step, intervals); None where there is no reading of all."""
        intervals = self.agree(group, None if mine is None else mine.signature, *turn, device)
        if mine is None or intervals is None:
            return None
        processes = dist.get_world_size(group)
        return Together(*combined(mine, all_added(mine.packed(), group), processes), intervals)


def is_first() -> bool:
    """True in a process alone, and in the first of several."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def fingerprint(model: nn.Module) -> str:
    """A short text that is the same in all processes that train a model, and another for another model."""
    sizes = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    sharded = any(is_sharded(p) for p in model.parameters())
    sums = [] if sharded else [p.detach().double().sum().item() for p in model.parameters()]
    return f"{zlib.crc32(repr((sizes, sums)).encode()):08x}"


def _default_store() -> Any:
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() < 2:
        return None
    find = getattr(dist.distributed_c10d, "_get_default_store", None)
    return None if find is None else find()
