"""From whatever a user calls data to batches of tensors: arrays in memory, a Dataset, or a DataLoader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from gainstage.errors import BadInput
from gainstage.randomness import seeded

Batch = tuple[Any, Any]  # inputs, targets
SURVEYED = 10_000


class Source(Protocol):
    """Anything that yields batches of (inputs, targets)."""

    @property
    def samples(self) -> int | None:
        """Number of samples; None when unknown."""
        ...

    def sample(self, size: int, seed: int) -> Batch:
        """One representative batch of at most `size` samples, the same for the same seed."""
        ...

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """One epoch; in random order when a generator is given."""
        ...

    def survey(self, batch: Batch) -> Batch:
        """Many samples in their own order, where they lie in memory; else `batch`."""
        ...


def training_batches(source: Source, size: int, generator: torch.Generator | None) -> Iterator[Batch]:
    """One epoch of batches to train on: a last batch of one sample behind larger ones is left out, for no statistics over
    a batch can be taken of it. BadInput when there is no batch at all."""
    largest = 0
    for x, y in source.batches(size, generator):
        if len(y) > 1 or largest < 2:
            yield x, y
        largest = max(largest, len(y))
    if not largest:
        raise BadInput("the training data yields no batch: it is empty, or smaller than a batch with drop_last")


def as_source(data: Any) -> Source:
    """Recognise `data`: (x, y) of tensors or arrays, a map-style Dataset, or a DataLoader.

    Raises BadInput, in one sentence, for anything else and for data without samples (a DataLoader shows only when it is
    asked for a batch).
    """
    if isinstance(data, (InMemory, FromDataset, FromLoader)):
        return data
    if isinstance(data, DataLoader):
        return FromLoader(data)
    if isinstance(data, Dataset) or _looks_like_dataset(data):
        return FromDataset(data)  # type: ignore[arg-type]
    pair = _pair(data)
    if pair is not None:
        return InMemory.of(*pair)
    raise BadInput(f"data must be (x, y) arrays, a Dataset or a DataLoader, not {_describe(data)}")


def _looks_like_dataset(data: Any) -> bool:
    """Map-style without the base class; tensors, arrays, lists and dictionaries are something else."""
    indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    is_table = hasattr(data, "columns")  # a pandas or polars frame
    return indexed and not is_table and not isinstance(data, (Tensor, np.ndarray, Sequence, Mapping))


def _describe(data: Any) -> str:
    size = f" of {len(data)}" if isinstance(data, (tuple, list)) else ""
    return f"a {type(data).__name__}{size}"


def _as_tensor(values: Any, what: str) -> Tensor:
    """A tensor as it is; an array in torch's usual types (float32, int64)."""
    if isinstance(values, Tensor):
        return values
    try:
        array = np.array(values)  # a copy: torch cannot hold a read-only array
        if array.dtype.kind == "f":
            return torch.as_tensor(array, dtype=torch.get_default_dtype())
        if array.dtype.kind in "iu" and what == "targets":
            return torch.as_tensor(array.astype(np.int64))
        return torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"the {what} cannot be made a tensor ({type(values).__name__}): {error}") from error


@dataclass(frozen=True)
class InMemory:
    """Arrays in memory, batched by index; `x` may be one tensor or a tuple or dict of tensors."""

    x: Any
    y: Tensor

    @classmethod
    def of(cls, x: Any, y: Any) -> InMemory:
        """Check and convert a user's (x, y)."""
        x = mapped(x, lambda value: _as_tensor(value, "inputs"))
        y = _as_tensor(y, "targets")
        sizes = {len(leaf) if leaf.ndim else 0 for leaf in _leaves(x)}
        size = len(y) if y.ndim else 0
        if sizes != {size}:
            raise BadInput(
                f"inputs and targets differ in length ({', '.join(map(str, sorted(sizes)))} and {size}); "
                "give one target for each input"
            )
        if size == 0:
            raise BadInput("the data set is empty: there is no sample to measure; give at least two")
        return cls(x, y)

    @property
    def samples(self) -> int:
        return len(self.y)

    def sample(self, size: int, seed: int) -> Batch:
        if size >= self.samples:
            return mapped(self.x, torch.clone), self.y.clone()  # a network may work in place on what it is given
        order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(seed))
        return self._take(order[:size])

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        if generator is None:
            for start in range(0, self.samples, size):
                stop = start + size
                yield mapped(self.x, lambda leaf, a=start, b=stop: leaf[a:b].clone()), self.y[start:stop]
            return
        for index in torch.randperm(self.samples, generator=generator).split(size):
            yield self._take(index)

    def survey(self, batch: Batch) -> Batch:
        """At most 10,000 samples, evenly spread over the data and in their own order."""
        index = torch.linspace(0, self.samples - 1, min(self.samples, SURVEYED)).round().long()
        return self._take(index)

    def _take(self, index: Tensor) -> Batch:
        return mapped(self.x, lambda leaf: leaf[index.to(leaf.device)]), self.y[index.to(self.y.device)]


@dataclass(frozen=True)
class FromDataset:
    """A map-style Dataset, collated as a DataLoader would."""

    dataset: Dataset

    def __post_init__(self) -> None:
        if not hasattr(self.dataset, "__len__"):
            raise BadInput("this Dataset has no length; wrap it in a DataLoader")
        if self.samples == 0:
            raise BadInput("the Dataset is empty: there is no sample to measure; give at least two")

    @property
    def samples(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def sample(self, size: int, seed: int) -> Batch:
        order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(seed))
        with seeded(seed):  # the data set itself may draw
            return self._collate(order[: min(size, self.samples)].tolist())

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        order = torch.arange(self.samples) if generator is None else torch.randperm(self.samples, generator=generator)
        for index in order.split(size):
            yield self._collate(index.tolist())

    def survey(self, batch: Batch) -> Batch:
        return batch

    def _collate(self, index: list[int]) -> Batch:
        return _as_pair(default_collate([self.dataset[i] for i in index]), "Dataset")


@dataclass(frozen=True)
class FromLoader:
    """A DataLoader, taken as it is: its own batch size, order and workers."""

    loader: DataLoader

    @property
    def samples(self) -> int | None:
        try:
            return len(self.loader.dataset)  # type: ignore[arg-type]
        except TypeError:
            return None

    def sample(self, size: int, seed: int) -> Batch:
        """The loader's own next batches, joined until `size` samples are there where they are plain tensors."""
        collected: list[Batch] = []
        with seeded(seed), generators_kept(self.loader):
            for batch in self.loader:
                collected.append(_as_pair(batch, "DataLoader"))
                if not isinstance(collected[0][0], Tensor) or sum(len(x) for x, _ in collected) >= size:
                    break
        if not collected:
            raise BadInput(
                "the DataLoader yields no batch: its data set is empty, or smaller than a batch with drop_last"
            )
        x, y = zip(*collected, strict=True)
        try:
            return torch.cat(x)[:size], torch.cat(y)[:size]
        except (RuntimeError, TypeError):
            return collected[0]

    def batches(self, size: int, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """The loader's own batches in its own order, whatever `size` and `generator` say."""
        for batch in self.loader:
            yield _as_pair(batch, "DataLoader")

    def survey(self, batch: Batch) -> Batch:
        return batch


def order_kept(source: Source) -> AbstractContextManager[None]:
    """The source's own generators, where it has some, are afterwards as before."""
    return generators_kept(source.loader) if isinstance(source, FromLoader) else nullcontext()


@contextmanager
def generators_kept(loader: DataLoader) -> Iterator[None]:
    """A loader's own generators are afterwards as before, so that looking at a batch does not change the user's order."""
    owners = (loader, getattr(loader, "sampler", None), getattr(loader.batch_sampler, "sampler", None))
    found = {id(g): g for owner in owners if (g := getattr(owner, "generator", None)) is not None}
    states = [(generator, generator.get_state()) for generator in found.values()]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def _as_pair(batch: Any, what: str) -> Batch:
    pair = _pair(batch)
    if pair is None:
        raise BadInput(f"each item of the {what} must be (inputs, targets), got {_describe(batch)}")
    return pair


def _pair(batch: Any) -> Batch | None:
    """Inputs and targets; of a dictionary all it holds and its "labels", from which transformers' models compute their loss
    themselves. None for anything else."""
    if isinstance(batch, Mapping) and "labels" in batch:
        return dict(batch), batch["labels"]
    return (batch[0], batch[1]) if isinstance(batch, (tuple, list)) and len(batch) == 2 else None


def mapped(value: Any, function) -> Any:
    """`function` of every leaf of a tuple or dict of tensors (a list is an array to be)."""
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(mapped(item, function) for item in value)
    if isinstance(value, Mapping):
        return {key: mapped(item, function) for key, item in value.items()}
    return function(value)


def _leaves(value: Any) -> list[Tensor]:
    if isinstance(value, tuple):
        return [leaf for item in value for leaf in _leaves(item)]
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    return [value]
