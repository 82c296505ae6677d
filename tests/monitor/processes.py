"""What runs in each of two processes that train one model; the results come back as a file of each."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Adam

import gainstage as gs
from gainstage.monitor import sampling
from tests.monitor.trainings import Chain, loss_of, measured, step, told
from tests.tools import blobs, normal, quiet


def shard(data, rank: int, parts=(16, 16)):
    """A process's part of a batch."""
    return tuple(each.split(parts)[rank] for each in data)


def images(number: int):
    return normal(8, 1, 8, 8, seed=number), torch.arange(8) % 3


class Pictures(nn.Module):
    """Convolutions, one channel of which is dead, and a pooling."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 4, 3, stride=2), nn.Linear(4, 3)
        with torch.no_grad():
            self.a.bias[0] = -100.0

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.relu(self.a(x)))).mean((2, 3)))


def another(make: Callable[[], nn.Module], number: int) -> nn.Module:
    """A model with other weights than those of other scenarios: processes know each other's models by them."""
    model = quiet(make)
    with torch.no_grad():
        model.c.bias += number
    return model


def figures(monitor) -> dict[str, Any]:
    """All that can be compared of a monitor."""
    return {
        "steps": [reading.step for reading in monitor.history],
        "rows": [measured(reading.ledger) for reading in monitor.history],
        "samples": [reading.ledger.samples for reading in monitor.history],
        "source": [reading.ledger.source.signal for reading in monitor.history],
        "coverage": [reading.ledger.coverage for reading in monitor.history],
        "findings": [finding.code for finding in monitor.findings],
    }


def state(model) -> dict[str, Any]:
    return {name: value.clone() for name, value in model.state_dict().items()}


# ---------------------------------------------------------------- scenarios: (rank) -> results
def plain(rank: int, watch: bool = True) -> dict[str, Any]:
    """Three steps; watched through the wrapper."""
    model = DistributedDataParallel(quiet(Chain))
    optimizer = Adam(model.parameters(), lr=1e-2)
    monitor = gs.watch(model, optimizer, every=1) if watch else None
    for number in range(3):
        step(model, optimizer, shard(blobs(32, seed=number), rank))
    return {"weights": state(model), **(figures(monitor) if monitor else {})}


def inner(rank: int) -> dict[str, Any]:
    """Watched before it is wrapped; only the first process is told to keep files."""
    model = quiet(Chain)
    optimizer = SGD(model.parameters(), lr=0.1)
    monitor = gs.watch(model, optimizer, every=1)
    wrapped = DistributedDataParallel(model)
    for number in range(2):
        step(wrapped, optimizer, shard(blobs(32, seed=number), rank))
    return figures(monitor)


def sharded(rank: int, watch: bool = True, whole: bool = False) -> dict[str, Any]:
    """Weights in parts (FSDP2), layer by layer and the rest together, or as a `whole`."""
    from torch.distributed.fsdp import fully_shard

    model = another(Chain, 7 + whole)
    if not whole:
        for layer in (model.a, model.b):
            fully_shard(layer)
    fully_shard(model)
    optimizer = Adam(model.parameters(), lr=1e-2)
    monitor = gs.watch(model, optimizer, every=1) if watch else None
    with told() as warned:
        for number in range(3):
            step(model, optimizer, shard(blobs(32, seed=number), rank))
    weights = {name: value.to_local().clone() for name, value in model.state_dict().items()}
    return {"weights": weights, "warned": warned, **(figures(monitor) if monitor else {})}


def sharded_whole(rank: int) -> dict[str, Any]:
    return sharded(rank, whole=True)


def convolutional(rank: int) -> dict[str, Any]:
    model = DistributedDataParallel(quiet(Pictures))
    optimizer = SGD(model.parameters(), lr=0.1)
    monitor = gs.watch(model, optimizer, every=1)
    step(model, optimizer, shard(images(0), rank, (4, 4)))
    return figures(monitor)


def uneven(rank: int) -> dict[str, Any]:
    """Parts of different sizes: forward figures are of all samples."""
    model = DistributedDataParallel(quiet(Chain))
    optimizer = SGD(model.parameters(), lr=0.1)
    monitor = gs.watch(model, optimizer, every=1)
    step(model, optimizer, shard(blobs(32), rank, (20, 12)))
    return figures(monitor)


def accumulated(rank: int) -> dict[str, Any]:
    """Two micro-batches, the first without a reduction."""
    model = DistributedDataParallel(quiet(Chain))
    optimizer = SGD(model.parameters(), lr=0.1)
    monitor = gs.watch(model, optimizer, every=1)
    with model.no_sync():
        (loss_of(model, *shard(blobs(32), rank)) / 2).backward()
    (loss_of(model, *shard(blobs(32, seed=1), rank)) / 2).backward()
    optimizer.step()
    return figures(monitor)


def adaptive(rank: int) -> dict[str, Any]:
    """The second process finds measuring far dearer than the first: all keep to the first one's interval."""
    model = DistributedDataParallel(another(Chain, 1))
    optimizer = SGD(model.parameters(), lr=0.1)
    clock = SimpleNamespace(now=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "perf_counter", lambda: clock.now)
        monitor = gs.watch(model, optimizer, budget=0.125)
        for number in range(90):
            clock.now += (2.0, 9.0)[rank] if monitor.sampler.due(number) else 1.0
            step(model, optimizer, shard(blobs(32, seed=number), rank))
    return {"steps": figures(monitor)["steps"]}


def one_alone(rank: int) -> dict[str, Any]:
    """Only the first process watches: it must not wait for the other."""
    model = DistributedDataParallel(another(Chain, 2))
    optimizer = SGD(model.parameters(), lr=0.1)
    monitor = gs.watch(model, optimizer, every=1) if rank == 0 else None
    for number in range(3):
        step(model, optimizer, shard(blobs(32, seed=number), rank))
    return figures(monitor) if monitor else {}


def one_stops(rank: int) -> dict[str, Any]:
    """The second process closes its monitor after a step: the first goes on with its own figures."""
    model = DistributedDataParallel(another(Chain, 3))
    optimizer = SGD(model.parameters(), lr=0.1)
    monitor = gs.watch(model, optimizer, every=1)
    for number in range(4):
        step(model, optimizer, shard(blobs(32, seed=number), rank))
        if rank == 1 and number == 1:
            monitor.close()
    return figures(monitor)


def one_fails(rank: int) -> dict[str, Any]:
    """The tracing fails in the second process at one step, then for good: no reading there, and nobody waits."""
    from gainstage.monitor.recording import Recording

    model, forward_done = DistributedDataParallel(another(Chain, 4)), Recording.forward_done
    optimizer = SGD(model.parameters(), lr=0.1)
    monitor = gs.watch(model, optimizer, every=1)
    with told() as warned:
        for number in range(8):
            fails = rank == 1 and (number == 1 or number > 2)
            Recording.forward_done = (lambda *_: 1 / 0) if fails else forward_done
            step(model, optimizer, shard(blobs(32, seed=number), rank))
    Recording.forward_done = forward_done
    return {**figures(monitor), "warned": warned}


class Branching(Chain):
    """The processes do not run the same operations."""

    def forward(self, x):
        output = super().forward(x)
        return torch.tanh(self.c.weight.sum() + output) if dist.get_rank() else output


def differently(rank: int) -> dict[str, Any]:
    model = DistributedDataParallel(another(Branching, 5))
    optimizer = SGD(model.parameters(), lr=0.1)
    monitor = gs.watch(model, optimizer, every=1)
    for number in range(2):
        step(model, optimizer, shard(blobs(32, seed=number), rank))
    return {**figures(monitor), "step": monitor.step}


def files(rank: int, folder: Path) -> dict[str, Any]:
    """Of several processes the first writes."""
    model = DistributedDataParallel(another(Chain, 6))
    optimizer = SGD(model.parameters(), lr=0.1)
    with gs.watch(model, optimizer, every=1, folder=folder / f"run{rank}"):
        step(model, optimizer, shard(blobs(32), rank))
    return {"written": (folder / f"run{rank}" / "run.sqlite").exists()}


SCENARIOS: dict[str, Callable[..., dict[str, Any]]] = {
    scenario.__name__: scenario
    for scenario in (
        plain, inner, sharded, sharded_whole, convolutional, uneven, accumulated,
        adaptive, one_alone, one_stops, one_fails, differently,
    )
}  # fmt: skip


def work(rank: int, folder: Path) -> None:
    """One process: all scenarios, one after the other; an error in one is its result."""
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    results: dict[str, Any] = {}
    try:
        for name, scenario in SCENARIOS.items():
            results[name] = attempt(scenario, rank)
        results["plain, unwatched"] = attempt(plain, rank, False)
        results["sharded, unwatched"] = attempt(sharded, rank, False)
        results["files"] = attempt(files, rank, folder)
    finally:
        torch.save(results, folder / f"results{rank}")
        dist.destroy_process_group()


def attempt(scenario: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    try:
        return scenario(*arguments)
    except Exception:
        return {"error": traceback.format_exc()}
