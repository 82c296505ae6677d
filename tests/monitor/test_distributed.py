"""Several processes: every figure is the one of a single process on all their samples together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, Adam

import gainstage as gs
from gainstage.monitor.distributed import (
    Contribution,
    Sums,
    Team,
    combined,
    fired,
    is_first,
    levels,
    replicating_group,
    sharding_group,
    sums_of,
)
from gainstage.signal import statistics
from tests.monitor import processes
from tests.monitor.processes import Pictures, another, images
from tests.monitor.trainings import Chain, figures_differ, loss_of, measured, same_bits, step
from tests.tools import blobs, normal, quiet


# ---------------------------------------------------------------- the formulas
def added(parts: list[Sums]) -> Sums:
    return Sums(*(sum(values) for values in zip(*parts, strict=True)))


SPLITS = {"halves": (32, 32), "uneven": (50, 13, 1), "single": (64,), "none": (64, 0)}


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("offset", [0.0, 3.0, 1e4])
@pytest.mark.parametrize("shape", [(7,), (3, 4, 4)], ids=str)
def test_levels_of_parts_are_those_of_the_whole(split, offset, shape):
    x = normal(64, *shape).double() + offset * normal(1, *shape, seed=1).double()
    x[5] = 0.0  # has no direction
    found = levels(added([sums_of(part) for part in x.split(split)]))
    centre, signal = x.mean(0), x.var(0).mean()
    assert found["signal"].item() == pytest.approx(signal.item(), rel=1e-6)
    assert found["offset"].item() == pytest.approx(max((centre.square().mean() - signal / 64).item(), 0.0), rel=1e-6)
    others = torch.cat([x[:5], x[6:]]).flatten(1)
    cosines = F.cosine_similarity(others[:, None], others[None], dim=2)
    assert found["similarity"].item() == pytest.approx((cosines.sum().item() - 63) / (63 * 62), rel=1e-6)


@pytest.mark.parametrize("x", [normal(16, 5), 2 + normal(16, 5), torch.zeros(16, 5)], ids=["normal", "offset", "zero"])
def test_levels_are_defined_as_for_one_process(x):
    signal, offset = statistics.signal_and_offset(x)
    found = levels(sums_of(x))
    right = {"signal": signal, "offset": offset, "similarity": statistics.Stack(x[None]).similarity[0]}
    for name, value in right.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-9, nan_ok=True)


def contribution(x: Tensor, gradient: Tensor, share: float) -> Contribution:
    means = {("gradient", 0): gradient.square().mean(), ("saturated", 0): torch.tensor(share)}
    weights = dict.fromkeys(means, float(len(x)))
    return Contribution(len(x), means, weights, {0: sums_of(x)}, {0: fired(x.relu(), 1)})


def test_means_are_weighted_gradients_divided_and_a_unit_is_dead_where_it_is_dead_everywhere():
    x = normal(30, 4)
    x[:, 0] = -1.0  # dead
    x[:20, 1] = -1.0  # dead in the first part only
    x[20:, 1] = 1.0
    g = normal(30, 4, seed=1)
    parts = [contribution(x[:20], g[:20], 0.3), contribution(x[20:], g[20:], 0.6)]
    totals = [sum(terms) for terms in zip(*(part.packed() for part in parts), strict=True)]
    values, samples = combined(parts[0], totals, 2)
    assert values["gradient", 0].item() == pytest.approx(g.square().mean().item() / 4, rel=1e-5)
    assert values["saturated", 0].item() == pytest.approx(0.4, rel=1e-6)
    assert values["dead", 0].item() == 0.25
    assert values["signal", 0].item() == pytest.approx(x.var(0).mean().item(), rel=1e-5)
    assert samples == 30


def test_what_is_not_the_same_has_another_signature():
    x, g = normal(8, 4), normal(8, 4)
    one = contribution(x, g, 0.1)
    assert one.signature == contribution(normal(6, 4, seed=3), g, 0.9).signature
    assert one.signature != contribution(normal(8, 5), g, 0.1).signature
    fewer = Contribution(8, {("gradient", 0): g.mean()}, {("gradient", 0): 8.0}, one.sums, one.fired)
    assert one.signature != fewer.signature


def test_a_process_alone_has_no_group_and_no_team():
    assert replicating_group(quiet(Chain)) is sharding_group(quiet(Chain)) is None
    assert is_first()
    assert not Team().is_complete(None)


# ---------------------------------------------------------------- two processes
@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    """What each of two processes found in each scenario."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    folder: Path = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(processes.work, (folder,), nprocs=2)
    found = [torch.load(folder / f"results{rank}", weights_only=False) for rank in range(2)]
    for each in found:
        errors = [result["error"] for result in each.values() if "error" in result]
        assert not errors, errors[0]
    return found


def alone(make, optimizer, batches, number: int = 0) -> list[dict]:
    """The same training in one process on the whole batches."""
    model = another(make, number)
    made = optimizer(model.parameters())
    monitor = gs.watch(model, made, every=1)
    for batch in batches:
        step(model, made, batch)
    return [measured(reading.ledger) for reading in monitor.history]


ONE_PROCESS = {
    "plain": lambda: alone(Chain, lambda p: Adam(p, lr=1e-2), [blobs(32, seed=i) for i in range(3)]),
    "sharded": lambda: alone(Chain, lambda p: Adam(p, lr=1e-2), [blobs(32, seed=i) for i in range(3)], 7),
    "sharded_whole": lambda: alone(Chain, lambda p: Adam(p, lr=1e-2), [blobs(32, seed=i) for i in range(3)], 8),
    "inner": lambda: alone(Chain, lambda p: SGD(p, lr=0.1), [blobs(32, seed=i) for i in range(2)]),
    "convolutional": lambda: alone(Pictures, lambda p: SGD(p, lr=0.1), [images(0)]),
}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ONE_PROCESS)
def test_every_figure_is_that_of_one_process(results, name, rank):
    expected = ONE_PROCESS[name]()
    found = results[rank][name]
    assert found["steps"] == list(range(len(expected)))
    assert [figures_differ(rows, right, rel=2e-4) for rows, right in zip(found["rows"], expected, strict=True)] == [
        {} for _ in expected
    ]
    assert len(set(found["samples"])) == 1
    assert found["samples"][0] == (8 if name == "convolutional" else 32)


def test_forward_figures_of_uneven_parts_are_those_of_all_samples(results):
    (expected,) = alone(Chain, lambda p: SGD(p, lr=0.1), [blobs(32)])
    forward = ("signal", "offset", "similarity", "gain", "dead", "saturated", "weight")
    right = {name: {k: row[k] for k in forward} for name, row in expected.items()}
    for found in results:
        assert figures_differ(found["uneven"]["rows"][0], right) == {}


def test_of_micro_batches_the_last_is_read_in_all_processes(results):
    model = quiet(Chain)
    optimizer = SGD(model.parameters(), lr=0.1)
    monitor = gs.watch(model, optimizer, every=1)
    for number in range(2):
        (loss_of(model, *blobs(32, seed=number)) / 2).backward()
    optimizer.step()
    for found in results:
        assert figures_differ(found["accumulated"]["rows"][0], measured(monitor.ledger), rel=2e-4) == {}


@pytest.mark.parametrize("name", ["plain", "sharded"])
def test_a_watched_training_of_two_processes_stays_the_same_bit_by_bit(results, name):
    for found in results:
        assert same_bits(found[name]["weights"], found[f"{name}, unwatched"]["weights"])


@pytest.mark.parametrize("name", ["sharded", "sharded_whole"])
def test_sharded_weights_are_no_operations_and_no_reason_to_warn(results, name):
    for found in results:
        assert found[name]["warned"] == []
        for coverage in found[name]["coverage"]:
            understood, total = coverage.split(" operations")[0].split(" of ")
            assert understood == total


def test_all_processes_measure_the_steps_that_the_first_one_decides_on(results):
    first, second = (found["adaptive"]["steps"] for found in results)
    assert first == second == [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 80]


def test_a_process_that_watches_alone_waits_for_nobody(results):
    assert results[0]["one_alone"]["steps"] == [0, 1, 2]
    assert set(results[0]["one_alone"]["samples"]) == {16}


def test_a_process_that_stops_leaves_the_others_with_their_own_figures(results):
    assert results[0]["one_stops"]["samples"] == [32, 32, 16, 16]
    assert results[1]["one_stops"]["samples"] == [32, 32]


def test_a_process_that_cannot_measure_a_step_costs_all_of_them_the_reading(results):
    """Steps 1, 3, 4 and 5: then the second process gives up, and the first goes on alone."""
    first, second = (found["one_fails"] for found in results)
    assert (second["steps"], len(second["warned"])) == ([0, 2], 1)
    assert (first["steps"], first["warned"]) == ([0, 2, 6, 7], [])
    assert first["samples"] == [32, 32, 16, 16]


def test_processes_that_run_different_operations_have_no_common_reading(results):
    for found in results:
        assert (found["differently"]["steps"], found["differently"]["step"]) == ([], 2)


def test_only_the_first_process_writes(results):
    assert [found["files"]["written"] for found in results] == [True, False]
