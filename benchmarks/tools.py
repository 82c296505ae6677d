"""What all benchmarks share: a clock, the environment, and how results are written."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Sequence
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


def write(name: str, text: str, figures: dict[str, Any]) -> None:
    """results/<name>.json and results/<name>.md, and the text on the screen."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)  # noqa: T201


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
