"""`gainstage demo`: the whole way, on real data, in under a minute."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import torch
from rich.text import Text
from torch import nn

from gainstage.checkup import check
from gainstage.cli.screen import show
from gainstage.data import load_digits
from gainstage.errors import BadInput
from gainstage.nn import dense_network
from gainstage.repair import fix
from gainstage.report import attempt_line, comparison_table
from gainstage.training import Run, fit

HIDDEN, UNITS = 20, 100
BATCH = 32


def villain(seed: int = 1) -> nn.Sequential:
    """20 hidden layers of 100 logistic units, weights from N(0, 1): what everyone did before 2010."""
    generator = torch.Generator().manual_seed(seed)
    return dense_network(
        64,
        [UNITS] * HIDDEN,
        10,
        activation="logistic",
        initializer=lambda weight: weight.normal_(generator=generator),
    )


def optimizer(parameters) -> torch.optim.Optimizer:
    """The same for both trainings."""
    return torch.optim.SGD(parameters, lr=0.02)


def run(folder: Path, epochs: int) -> None:
    """Check, fix, train before and after, and write everything to `folder`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small gain nothing from more, and lose much on a busy machine
    try:
        _run(_writable(folder), epochs)
    finally:
        torch.set_num_threads(threads)


def _run(folder: Path, epochs: int) -> None:
    train, valid = load_digits()
    loss = nn.CrossEntropyLoss()
    original = villain()
    repaired = copy.deepcopy(original)

    _title(f"check: {HIDDEN} hidden layers of {UNITS} logistic units, weights from N(0, 1), on {train.samples} digits")
    checkup = check(original, loss, train)
    show(checkup)

    _title("fix: remedies one by one, each proved by short trainings, else undone")
    result = fix(
        repaired, loss, train, optimizer=optimizer, batch_size=BATCH, level="trial", unsafe=True,
        on_attempt=lambda attempt: show(attempt_line(attempt)),
    )  # fmt: skip
    show("")
    show(result.after)

    _title(f"fit: both networks, {epochs} epochs, the same optimiser and order of data")
    for name in ("original", "repaired"):
        shutil.rmtree(folder / name, ignore_errors=True)  # of an earlier demo
    settings = {"optimizer": optimizer, "epochs": epochs, "batch_size": BATCH}
    runs: dict[str, Run] = {
        name: fit(model, loss, train, valid, folder=folder / name, label=name, **settings)
        for name, model in (("original", original), ("repaired", repaired))
    }
    show("")
    show(comparison_table(runs))
    show("chance: 0.100 (ten classes)")
    _save(folder, {"check": checkup.to_json(), "fix": result.to_json()})


def _title(text: str) -> None:
    show("")
    show(Text(text, style="bold underline"))


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder} cannot be written ({error}); choose another with --folder") from error
    return folder


def _save(folder: Path, documents: dict[str, str]) -> None:
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(document + "\n", encoding="utf-8")
    show(
        f"written to {folder}/: check.json, fix.json; original/ and repaired/ with run.sqlite, run.json, weights.safetensors"
    )
