"""What all benchmarks share: a clock, the environment, and how results are written."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = perf_counter()
    action()
    return perf_counter() - began


def environment(threads: int) -> dict[str, Any]:
    """What the figures depend on."""
    return {"torch": torch.__version__, "python": platform.python_version(), "threads": threads}


def write(name: str, title: str, table: Sequence[str], figures: dict[str, Any], rounds: int) -> None:
    """results/<name>.json and results/<name>.md, and the table on the screen."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    here = figures["environment"]
    how = f"`make bench`, torch {here['torch']}, {here['threads']} threads; medians of {rounds} rounds, all in turn in one run."
    text = "\n".join([f"# {title}", "", how, "", *table]) + "\n"
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)  # noqa: T201
