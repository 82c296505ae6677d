"""The demo: a network that does not learn, repaired so that it does, and everything on disk that it names."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import re
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest
import torch
from torch import nn

from gainstage.cli import demo, main
from gainstage.data import load_digits
from gainstage.errors import BadInput
from gainstage.training import fit, load_weights
from tests.tools import quiet

EPOCHS = inspect.signature(main.demo).parameters["epochs"].default
CHANCE, NEAR_CHANCE, LEARNED = 0.1, 0.35, 0.95


class Demo(NamedTuple):
    """One demo: its folder and what it printed."""

    folder: Path
    text: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Demo:
    """One demo for all tests that look at what it left."""
    folder, shown = tmp_path_factory.mktemp("demo") / "runs", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown):
        patch.setenv("COLUMNS", "1000")
        quiet(lambda: demo.run(folder, EPOCHS))
    return Demo(folder, shown.getvalue())


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def best(folder: Path, name: str) -> float:
    """Validation accuracy of a run at its best epoch, as its file says."""
    return json.loads((folder / name / "run.json").read_text(encoding="utf-8"))["best"]["valid_accuracy"]


def named_files(text: str, folder: Path) -> set[str]:
    """Paths in the folder that the last line names: "a.json, b.json; c/ and d/ with e, f"."""
    told = re.fullmatch(rf"written to {re.escape(str(folder))}/: (.*); (\S+)/ and (\S+)/ with (.*)", text)
    assert told is not None, text
    return set(told[1].split(", ")) | {f"{run}/{file}" for run in told.group(2, 3) for file in told[4].split(", ")}


def test_the_original_stays_near_chance(finished):
    assert CHANCE / 2 < best(finished.folder, "original") < NEAR_CHANCE


def test_the_repaired_network_learns(finished):
    assert best(finished.folder, "repaired") >= LEARNED


def test_the_comparison_shows_what_the_files_say(finished):
    for name in ("original", "repaired"):
        assert re.search(rf"^{name} +{best(finished.folder, name):.3f} ", finished.text, re.MULTILINE)


def test_all_files_that_are_named_are_there_and_no_others(finished):
    there = {str(p.relative_to(finished.folder)) for p in finished.folder.rglob("*") if p.is_file()}
    assert there == named_files(finished.text.splitlines()[-1], finished.folder)


def test_a_file_that_is_not_there_is_noticed():
    line = "written to runs/: check.json, fix.json; a/ and b/ with run.json"
    assert named_files(line, Path("runs")) == {"check.json", "fix.json", "a/run.json", "b/run.json"}


def test_the_weights_load_into_the_networks_that_they_belong_to(finished):
    original = quiet(demo.villain)
    load_weights(original, finished.folder / "original" / "weights.safetensors")
    assert not torch.equal(original.hidden1.weight, quiet(demo.villain).hidden1.weight)


def test_the_demo_finds_the_fault_and_cures_it(finished):
    before, repair = (json.loads((finished.folder / f"{name}.json").read_text()) for name in ("check", "fix"))
    assert [finding["code"] for finding in before["findings"]] == ["I101"]
    assert repair["after"]["findings"] == []
    assert "healthy: no rule fired" in finished.text


def test_each_attempt_is_shown_as_it_is_decided(finished):
    repair = json.loads((finished.folder / "fix.json").read_text())
    shown = re.findall(r"^(kept  |undone)  (\S+) \((\w+)\) for (\w+): ", finished.text, re.MULTILINE)
    keys = ("remedy", "safety", "finding")
    assert [each[1:] for each in shown] == [tuple(attempt[key] for key in keys) for attempt in repair["attempts"]]
    assert [each[0] == "kept  " for each in shown] == [attempt["kept"] for attempt in repair["attempts"]]


def test_the_villain_is_the_network_of_the_chapter():
    model = quiet(demo.villain)
    layers = [module for module in model if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(64, 100), *[(100, 100)] * 19, (100, 10)]
    assert sum(isinstance(module, nn.Sigmoid) for module in model) == 20
    assert all(abs(layer.weight.std().item() - 1) < 0.05 for layer in layers)


def test_a_villain_is_given_by_its_seed():
    first, again, other = (quiet(lambda s=seed: demo.villain(s)).hidden1.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_villains_of_five_seeds_stay_near_chance_by_their_median(digits):
    accuracies = []
    for seed in range(1, 6):
        model = quiet(lambda s=seed: demo.villain(s))
        run = fit(
            model, nn.CrossEntropyLoss(), *digits, optimizer=demo.optimizer, epochs=EPOCHS, batch_size=demo.BATCH,
            progress=False,
        )  # fmt: skip
        accuracies.append(run.best["valid_accuracy"])
    assert CHANCE / 2 < median(accuracies) < NEAR_CHANCE


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(BadInput, match="choose another with --folder"):
        demo.run(tmp_path / "file" / "demo", EPOCHS)
