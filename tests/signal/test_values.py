"""Numbers gathered on their device, and tensors gathered to be read together."""

import pytest
import torch

from gainstage.signal.values import MOST, Stacks, Values
from tests.tools import normal


def test_numbers_come_back_by_quantity_and_place():
    values = Values()
    values.add("signal", (3, 1), torch.tensor([0.5, 2.0]))
    values.add("dead", (1,), torch.tensor([0.25], dtype=torch.float64))
    assert values.read() == {("signal", 3): 0.5, ("signal", 1): 2.0, ("dead", 1): 0.25}


def test_the_latest_number_of_a_place_counts():
    values = Values()
    values.add("signal", (1,), torch.tensor([1.0]))
    values.add("signal", (1,), torch.tensor([2.0]))
    assert values.read() == {("signal", 1): 2.0}


def test_a_device_without_values_gives_none():
    values = Values()
    values.add("signal", (1,), torch.ones(1, device="meta"))
    assert values.read() == {}


def test_everything_moves_in_one_transfer(monkeypatch):
    transfers = []
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: transfers.append(len(self)) or original(self))
    values = Values()
    for place in range(50):
        values.add("signal", (place,), torch.ones(1))
    values.read()
    assert transfers == [50]


def test_as_many_numbers_as_places():
    values = Values()
    values.add("signal", (1, 2), torch.ones(3))
    with pytest.raises(ValueError, match=r"shorter|longer"):
        values.read()


def test_small_tensors_wait_and_large_ones_do_not():
    stacks = []
    gathered = Stacks(lambda places, stack: stacks.append((list(places), stack.values.clone())))
    x, large = normal(8, 4), normal(2**10, 2**6)
    gathered.add(1, x, (4, -1))
    gathered.add(2, large, (64, -1))
    gathered.add(3, x + 1, (4, -1))
    gathered.add(4, x, (2, -1))
    x.zero_()
    assert [places for places, _ in stacks] == [[2]]
    gathered.flush()
    assert [places for places, _ in stacks] == [[2], [1, 3], [4]], "of one shape and one layer's channels"
    assert torch.equal(stacks[1][1][0] + 1, stacks[1][1][1]), "as they were when they came"
    gathered.flush()
    assert len(stacks) == 3


def test_what_waits_is_bounded():
    read = []
    gathered = Stacks(lambda places, stack: read.append(stack.values.numel()))
    for place in range(200):
        gathered.add(place, torch.zeros(64, 100), (100, -1))
    assert read
    assert max(read) <= MOST + 6400
