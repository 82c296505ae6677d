"""Every model of torchvision and tiny configurations of transformers under one check each: what was understood, what it left
behind. Ends with an error where a check crashed, left a trace, or understood less than 99 % of the operations."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterable, Sequence

import torch

from benchmarks.tools import RESULTS, environment
from tests.zoo import transformer, vision
from tests.zoo.entries import Entry
from tests.zoo.examine import Result, examine

LEAST = 0.99  # of the floating-point operations of a whole list
HEADINGS = (
    "model",
    "input",
    "parameters",
    "operations",
    "understood",
    "stages",
    "at work",
    "seconds",
    "traces left",
    "remarks",
)


def examined(entries: Iterable[Entry]) -> list[Result]:
    """The results, each printed as it comes."""
    results = []
    for entry in entries:
        results.append(examine(entry))
        print(line(results[-1]), flush=True)  # noqa: T201
    return results


def line(result: Result) -> str:
    """One row of the table."""
    share = f"{100 * result.understood / result.operations:.1f} %" if result.operations else "-"
    remarks = result.error or (f"not understood: {', '.join(result.unknown)}" if result.unknown else "")
    cells = (
        result.name, result.shape, f"{result.parameters:,}", str(result.operations), share, str(result.stages),
        f"{100 * result.reached:.0f} %",
        f"{result.seconds:.1f}", ", ".join(result.left) or "none", remarks,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def share(results: Sequence[Result]) -> float:
    """Understood operations over all."""
    return sum(result.understood for result in results) / max(sum(result.operations for result in results), 1)


def summary(what: str, results: Sequence[Result]) -> str:
    """One sentence on a list."""
    errors, traces = sum(bool(r.error) for r in results), sum(bool(r.left) for r in results)
    operations = sum(result.operations for result in results)
    return (
        f"{what}: {len(results)} models, {errors} errors, {traces} with a trace left, {100 * share(results):.2f} % of "
        f"{operations:,} floating-point operations understood, {sum(r.seconds for r in results):.0f} s of checks."
    )


def main() -> int:
    """Write results/zoo.json and results/zoo.md; 1 where something is not as it should be."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    lists = {"torchvision": examined(vision.entries()), "transformers": examined(transformer.entries())}
    here = environment(1)
    how = (
        f"`make zoo`, torch {here['torch']}, one thread: each network once under gs.check, in training mode, on two samples of "
        "the smallest size that it accepts. Understood: the kind of what the operation does to the signal is known. At "
        "work: of the network's parameters, those that an operation on the signal has used."
    )
    text = ["# What is understood of whole lists of models", "", how]
    for what, results in lists.items():
        text += ["", f"## {what}", "", summary(what, results), ""]
        text += [f"| {' | '.join(HEADINGS)} |", f"|{' --- |' * len(HEADINGS)}", *map(line, results)]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "zoo.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    figures = {"environment": here, **{what: [r.to_dict() for r in results] for what, results in lists.items()}}
    (RESULTS / "zoo.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for what, results in lists.items():
        print(summary(what, results))  # noqa: T201
    return int(any(share(found) < LEAST or any(r.error or r.left for r in found) for found in lists.values()))


if __name__ == "__main__":
    sys.exit(main())
