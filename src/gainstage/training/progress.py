"""Progress of a training: a live bar on a terminal, plain lines when piped."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Reporter(Protocol):
    """Told of every finished epoch."""

    def __call__(self, row: dict[str, float]) -> None: ...


@contextmanager
def reporting(epochs: int, shown: bool, label: str = "training", console: Console | None = None) -> Iterator[Reporter]:
    """Yields what is to be called after each epoch. On a terminal one bar; piped, at most ten lines in all."""
    console = console or Console(stderr=True)
    if not shown:
        yield lambda row: None
    elif console.is_terminal:
        with _bar(console) as progress:
            task = progress.add_task(label, total=epochs, text="")
            yield lambda row: progress.update(task, advance=1, text=summary(row))
    else:
        step = math.ceil(epochs / 8)

        def line(row: dict[str, float]) -> None:
            if row["epoch"] % step == 0 or row["epoch"] in (1, epochs):
                line = f"{label}: epoch {row['epoch']:.0f}/{epochs}  {summary(row)}"
                console.print(line, soft_wrap=True, markup=False)

        yield line


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
        console=console,
    )


def summary(row: dict[str, float]) -> str:
    """For example "loss 0.21  valid 0.25  accuracy 0.93"."""
    parts = [f"loss {row['train_loss']:.3f}"]
    if "valid_loss" in row:
        parts.append(f"valid {row['valid_loss']:.3f}")
    if "valid_accuracy" in row:
        parts.append(f"accuracy {row['valid_accuracy']:.3f}")
    return "  ".join(parts)
