"""run.sqlite: what goes in comes out, also through a second connection while the first one writes."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch.optim import SGD

from gainstage.errors import BadInput
from gainstage.monitor import RunStore
from gainstage.rules import Finding
from tests.monitor.trainings import Chain, same_bits, steps_of, told, train, watched
from tests.tools import quiet

ROWS = [
    {"index": 0, "name": "hidden1", "description": "linear", "units": 8, "signal": 0.5, "gain": 2.0, "dead": None},
    {"index": 1, "name": "output", "description": "linear", "units": 3, "signal": 0.25, "gain": None, "dead": 0.0},
]
NUMBERS = [
    (7, "hidden1", "gain", 2.0),
    (7, "hidden1", "signal", 0.5),
    (7, "output", "dead", 0.0),
    (7, "output", "signal", 0.25),
]
FINDING = Finding(
    "S103", "vanishing-signal", "error", ("hidden1",), {"fall_db": 30.0}, "the signal falls", ("use-selu",)
)


@pytest.fixture
def store(tmp_path):
    store = RunStore(tmp_path)
    yield store
    store.close()


def read(folder: Path, query: str) -> list[tuple]:
    """What a second connection sees now."""
    with closing(sqlite3.connect(folder / "run.sqlite", timeout=0)) as database:
        return database.execute(query).fetchall()


def strict(text: str) -> Any:
    """Parse JSON as RFC 8259 has it, without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_every_number_of_every_stage_is_a_reading(store, tmp_path):
    store.add_readings(7, ROWS)
    assert read(tmp_path, "SELECT * FROM readings ORDER BY stage, quantity") == NUMBERS


def test_metrics_are_kept_by_epoch_and_name(store, tmp_path):
    store.add_metrics(1, {"train_loss": 2.0, "valid_loss": 2.5})
    store.add_metrics(2, {"train_loss": 1.0})
    found = read(tmp_path, "SELECT epoch, name, value FROM metrics ORDER BY epoch, name")
    assert found == [(1, "train_loss", 2.0), (1, "valid_loss", 2.5), (2, "train_loss", 1.0)]


def test_metrics_of_an_epoch_carry_one_time(store, tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1234.5)
    store.add_metrics(1, {"train_loss": 2.0, "valid_loss": 2.5})
    assert read(tmp_path, "SELECT DISTINCT time FROM metrics") == [(1234.5,)]


def test_a_finding_is_kept_with_its_evidence(store, tmp_path):
    store.add_finding(3, FINDING)
    (row,) = read(tmp_path, "SELECT * FROM findings")
    assert row[:4] == (3, "S103", "error", "the signal falls")
    assert strict(row[4]) == json.loads(json.dumps(FINDING.to_dict()))


def test_the_details_of_a_finding_are_strict_json(store, tmp_path):
    store.add_finding(3, Finding("S103", "vanishing-signal", "error", (), {"fall_db": float("inf")}, "to exactly zero"))
    ((details,),) = read(tmp_path, "SELECT details FROM findings")
    assert strict(details)["code"] == "S103"


def test_a_number_that_is_not_finite_does_not_stop_the_record(store, tmp_path):
    store.add_readings(1, [{"name": "a", "signal": float("inf"), "gain": float("nan"), "offset": 1.0}])
    found = dict(read(tmp_path, "SELECT quantity, value FROM readings"))
    assert found == {"signal": float("inf"), "gain": None, "offset": 1.0}  # SQLite knows no NaN


def test_a_second_connection_reads_while_the_first_is_open(store, tmp_path):
    counts = []
    for step in range(3):
        store.add_readings(step, ROWS)
        counts += read(tmp_path, "SELECT count(*) FROM readings")
    assert counts == [(4,), (8,), (12,)]


def test_a_reader_does_not_stop_the_writer(store, tmp_path):
    store.add_readings(0, ROWS)
    with closing(sqlite3.connect(tmp_path / "run.sqlite")) as reader:
        reader.execute("BEGIN")
        before = reader.execute("SELECT count(*) FROM readings").fetchone()
        store.add_readings(1, ROWS)
        assert reader.execute("SELECT count(*) FROM readings").fetchone() == before  # its own moment
    assert read(tmp_path, "SELECT count(*) FROM readings") == [(8,)]


def test_the_write_ahead_log_is_on(store, tmp_path):
    assert read(tmp_path, "PRAGMA journal_mode") == [("wal",)]


def test_half_a_reading_is_never_seen(store, tmp_path):
    with pytest.raises(sqlite3.Error):
        store.add_readings(1, [ROWS[0], {"name": object(), "signal": 1.0}])
    assert read(tmp_path, "SELECT count(*) FROM readings") == [(0,)]


def test_a_closed_store_stays_readable_as_one_file(store, tmp_path):
    store.add_readings(7, ROWS)
    store.close()
    store.close()  # may be called twice
    assert [path.name for path in tmp_path.iterdir()] == ["run.sqlite"]
    assert len(read(tmp_path, "SELECT * FROM readings")) == 4


def test_a_store_that_is_opened_again_goes_on(tmp_path):
    for step in range(2):
        store = RunStore(tmp_path)
        store.add_readings(step, ROWS)
        store.close()
    assert read(tmp_path, "SELECT DISTINCT step FROM readings") == [(0,), (1,)]


@pytest.mark.parametrize("as_text", [True, False])
def test_folders_on_the_way_are_made(tmp_path, as_text):
    folder = tmp_path / "a" / "b"
    RunStore(str(folder) if as_text else folder).close()
    assert (folder / "run.sqlite").is_file()


def occupied(folder: Path) -> Path:
    (folder / "file").write_text("", encoding="utf-8")
    return folder / "file"


def damaged(folder: Path) -> Path:
    (folder / "run.sqlite").write_bytes(b"no database " * 100)
    return folder


def blocked(folder: Path) -> Path:
    (folder / "run.sqlite").mkdir()
    return folder


@pytest.mark.parametrize("spoil", [occupied, damaged, blocked])
def test_a_folder_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, spoil):
    with pytest.raises(BadInput, match=r"^the run folder [^\n]* cannot be written \([^\n]+\); choose another folder$"):
        RunStore(spoil(tmp_path))


# ---------------------------------------------------------------- killed, and full
TRAINING = """
import sys
import torch, gainstage as gs
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x, y = torch.randn(16, 6), torch.arange(16) % 2
with gs.watch(model, optimizer, every=1, folder=sys.argv[1]):
    print("ready", flush=True)
    while True:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
"""


def steps_in(folder: Path) -> dict[int, int]:
    """For each step, how many readings there are."""
    return dict(read(folder, "SELECT step, count(*) FROM readings GROUP BY step ORDER BY step"))


@pytest.mark.parametrize("steps", [1, 60])
def test_a_run_that_is_killed_at_any_moment_leaves_whole_steps(tmp_path, steps):
    with subprocess.Popen([sys.executable, "-c", TRAINING, str(tmp_path)], stdout=subprocess.PIPE) as training:
        assert training.stdout is not None
        try:
            assert training.stdout.readline() == b"ready\n"
            deadline, counts = time.monotonic() + 60, {}
            while (
                len(counts) < steps and time.monotonic() < deadline
            ):  # read all the time, killed in the middle of something
                counts = steps_in(tmp_path)
                assert len(set(counts.values())) <= 1, "half a step was read"
        finally:
            training.kill()
    counts = steps_in(tmp_path)
    assert len(counts) >= steps
    assert list(counts) == list(range(len(counts)))
    assert len(set(counts.values())) == 1
    assert read(tmp_path, "PRAGMA integrity_check") == [("ok",)]


LATER = 12  # steps, more than fit in what is left of a page


def trained(folder: Path, spoil: Callable[[Any], None]) -> tuple[Any, list[str], nn.Module]:
    """Watched steps with the folder spoilt after the first; what is warned of, and the model."""
    model = quiet(Chain)
    monitor, optimizer = watched(model, folder=folder)
    train(model, optimizer, 1)
    with told() as warned:
        spoil(monitor)
        train(model, optimizer, LATER)
    return monitor, warned, model


def filled(monitor: Any) -> None:
    """As a full disk: the file may not grow any more."""
    pages = monitor.store._database.execute("PRAGMA page_count").fetchone()[0]
    monitor.store._database.execute(f"PRAGMA max_page_count = {pages}")


def read_only(monitor: Any) -> None:
    monitor.store._database.execute("PRAGMA query_only = 1")


@pytest.mark.parametrize(("spoil", "message"), [(filled, "full"), (read_only, "readonly")])
def test_a_folder_that_takes_no_more_is_told_of_once_and_the_training_goes_on(tmp_path, spoil, message):
    monitor, warned, model = trained(tmp_path, spoil)
    twin = quiet(Chain)
    slow = SGD(twin.parameters(), lr=0.1)
    for steps in (1, LATER):
        train(twin, slow, steps)
    assert same_bits(model.state_dict(), twin.state_dict())
    assert steps_of(monitor) == list(range(1 + LATER))
    assert len(warned) == 1
    assert "switched the run folder off" in warned[0]
    assert message in warned[0]
    monitor.close()
    kept = steps_in(tmp_path)
    assert list(kept) == list(range(len(kept)))
    assert 1 <= len(kept) < 1 + LATER
    assert len(set(kept.values())) == 1
