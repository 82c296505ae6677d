"""Models that something is wrapped around: measured as the plain model, and as trainable afterwards as before."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch import nn

import gainstage as gs
from gainstage.program import unwrapped
from gainstage.signal import trace
from tests.tools import blobs, quiet

LOSS = nn.CrossEntropyLoss()
pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, about its parts


class Plain(nn.Module):
    """Two layers, and a product with a parameter of the outermost module."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(20, 32), nn.Linear(32, 32)
        self.head = nn.Parameter(torch.randn(32, 3) / 6)

    def forward(self, x):
        return torch.tanh(self.second(torch.relu(self.first(x)))) @ self.head


def plain():
    return quiet(Plain)


@contextmanager
def one_process():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def compiled(model):
    """Compiled, and run once: hooks that are added from now on are not called."""
    whole = torch.compile(model, backend="eager")
    whole(blobs()[0])
    return whole


def compiled_in_place(model):
    model.compile(backend="eager")
    model(blobs()[0])
    return model


WRAPPED = {
    "compiled": compiled,
    "compiled in place": compiled_in_place,
    "data parallel": nn.DataParallel,
    "both": lambda model: nn.DataParallel(compiled(model)),
}


def test_only_what_is_wrapped_is_unwrapped():
    class Keeper(nn.Module):
        """Has a part of the name that wrappers use."""

        def __init__(self):
            super().__init__()
            self.module = plain()

    model, keeper = plain(), Keeper()
    assert unwrapped(model) is model
    assert unwrapped(keeper) is keeper
    assert unwrapped(nn.DataParallel(torch.compile(model))) is model


@pytest.mark.parametrize("level", ["preflight", "static"])
@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_a_wrapped_model_has_the_plain_ones_ledger(wrap, level):
    expected, found = (gs.check(model, LOSS, blobs(), level=level) for model in (plain(), wrap(plain())))
    assert found.to_dict() == expected.to_dict()
    assert found.ledger is None or all(row.gradient for row in found.ledger.rows)


def test_fix_and_initialize_change_the_model_inside():
    model = torch.compile(plain(), backend="eager")
    before = unwrapped(model).first.weight.detach().clone()
    assert gs.fix(model, LOSS, blobs()).model is unwrapped(model)
    gs.initialize(model, blobs()[0], generator=torch.Generator().manual_seed(3))
    assert not torch.equal(unwrapped(model).first.weight, before)


def test_distributed_data_parallel_is_measured_as_the_plain_model():
    with one_process():
        found = gs.check(nn.parallel.DistributedDataParallel(plain()), LOSS, blobs())
    assert found.to_dict() == gs.check(plain(), LOSS, blobs()).to_dict()


def sharded(parts: bool):
    """FSDP2 over one process: parameters are shards, whole only while their module runs."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, mesh = plain(), init_device_mesh("cpu", (1,))
    if parts:
        fully_shard(model.first, mesh=mesh)
        fully_shard(model.second, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def trained(model, steps=3):
    optimizer, (x, y) = torch.optim.SGD(model.parameters(), 0.1), blobs()
    for _ in range(steps):
        optimizer.zero_grad()
        LOSS(model(x), y).backward()
        optimizer.step()
    return [p.full_tensor() if hasattr(p, "full_tensor") else p.detach() for p in model.parameters()]


@pytest.mark.parametrize("parts", [True, False], ids=["in parts", "whole"])
def test_fsdp2_is_measured_as_the_plain_model_and_trains_on(parts):
    with one_process():
        model = sharded(parts)
        for level in ("preflight", "static"):
            found, expected = (gs.check(each, LOSS, blobs(), level=level) for each in (model, plain()))
            assert found.to_dict() == expected.to_dict()
        graph = trace(model, blobs()[0])
        assert [stage.layer.weight for stage in graph.stages] == ["first.weight", "second.weight", "head"]
        assert all(hasattr(parameter, "full_tensor") for parameter in model.parameters()), "shards, as before"
        assert all(parameter.grad is None for parameter in model.parameters())
        together = zip(trained(model), trained(plain()), strict=True)
        assert all(torch.allclose(mine, theirs) for mine, theirs in together)
