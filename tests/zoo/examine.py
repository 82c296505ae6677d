"""One network of the zoo under gs.check: what was understood, and whether anything was left behind."""

from __future__ import annotations

import traceback
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import gainstage as gs
from gainstage.signal import Graph
from tests.tools import quiet, random_states, same_states
from tests.zoo.entries import Entry


@dataclass(frozen=True)
class Result:
    """What became of a network. understood, operations: counts. unknown: what was not understood. reached: share of the
    parameters that were seen at work. left: what the check changed. error: the exception that came out of it, or nothing."""

    name: str
    operations: int = 0
    understood: int = 0
    stages: int = 0
    parameters: int = 0
    reached: float = 0.0
    seconds: float = 0.0
    unknown: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    shape: str = ""
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return asdict(self)


def examine(entry: Entry) -> Result:
    """Check a network on the smallest batch that it accepts; an error is part of the result."""
    model = quiet(entry.build)
    batch, error = _smallest(model, entry)
    if batch is None:
        return Result(entry.name, error=f"the network itself fails: {error}")
    before, began = _state(model), perf_counter()
    try:
        checkup = gs.check(model, entry.loss, DataLoader(_Same(), batch_size=None, collate_fn=lambda _: batch))
    except Exception as raised:
        where = traceback.extract_tb(raised.__traceback__)[-1]
        place = f"{where.filename.rpartition('/')[2]}:{where.lineno}"
        return Result(
            entry.name, left=_changes(model, before), error=f"{type(raised).__name__}: {raised} ({place})"[:500]
        )
    graph = checkup.graph
    return Result(
        entry.name,
        operations=len(graph.operations),
        understood=len(graph.operations) - len(graph.unknown),
        stages=len(graph.stages),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        reached=_reached(model, graph),
        seconds=round(perf_counter() - began, 2),
        unknown=tuple(sorted({op.name for op in graph.unknown})),
        left=_changes(model, before),
        findings=tuple(checkup.codes),
        shape=_shape(batch[0]),
    )


def _reached(model: nn.Module, graph: Graph) -> float:
    """Share of a network's parameters that some operation on the signal has used."""
    used = {name for operation in graph.operations for name in operation.parameters}
    named = dict(model.named_parameters())
    return len(used & named.keys()) / max(len(named), 1)


class _Same(torch.utils.data.Dataset):
    """A data set of one item, the batch that the loader puts in its place."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        if index:
            raise IndexError(index)
        return index


def _smallest(model: nn.Module, entry: Entry) -> tuple[Any, str]:
    """The first batch that the network itself accepts, forward and loss; what it said of the last one where none is."""
    error = "there is no batch"
    for x, y in entry.batches():
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                output = model(*x) if isinstance(x, tuple) else model(**x) if isinstance(x, dict) else model(x)
                _ = output["loss"] if entry.loss is None else entry.loss(output, y)
            return (x, y), ""
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"[:300]
    return None, error


def _shape(x: Any) -> str:
    first = x[0] if isinstance(x, tuple) else next(iter(x.values())) if isinstance(x, dict) else x
    first = first[0] if isinstance(first, list) else first
    return "x".join(map(str, first.shape))


def _hooks(model: nn.Module) -> list[int]:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [len(getattr(module, name)) for module in model.modules() for name in names]


def _state(model: nn.Module) -> dict[str, Any]:
    """All that a check must leave as it is: weights and buffers by value, the rest as it stands."""
    return {
        "state_dict": {name: tensor.detach().clone() for name, tensor in model.state_dict().items()},
        "random states": random_states(),
        "hooks": _hooks(model),
        "train flags": [module.training for module in model.modules()],
        "gradients": [parameter.grad is None for parameter in model.parameters()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grad mode": torch.is_grad_enabled(),
    }


def _changes(model: nn.Module, before: dict[str, Any]) -> tuple[str, ...]:
    now = _state(model)
    equal = {key: now[key] == before[key] for key in before if key not in ("state_dict", "random states")}
    equal["random states"] = same_states(now["random states"], before["random states"])
    mine, theirs = now["state_dict"], before["state_dict"]
    equal["state_dict"] = mine.keys() == theirs.keys() and all(
        torch.equal(mine[name].nan_to_num(), theirs[name].nan_to_num()) for name in mine
    )
    return tuple(sorted(key for key, same in equal.items() if not same))
