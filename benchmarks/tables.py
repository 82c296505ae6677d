"""The page of benchmarks.measure: its figures as tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.tools import table

MIB = 2**20
Row = dict[str, Any]  # the figures of a network
Column = tuple[str, Callable[[Row], str]]


def page(figures: dict[str, Any], processor: bool) -> str:
    """The whole page. processor: whether the processor's time is told beside the wall time."""

    def ratio(value: Any, digits: int = 2) -> str:
        if value is None or isinstance(value, str):
            return value or "–"
        wall, own = (f"{number:.{digits}f}" for number in value)
        return f"{wall} ({own})" if processor else wall

    networks = figures["networks"]
    parts = [_head(figures["environment"], processor)]
    for title, text, columns in _sections(ratio):
        rows = [[name, *(cell(row) for _, cell in columns)] for name, row in networks.items()]
        parts.append([f"## {title}", "", text, "", *table(["network", *(head for head, _ in columns)], rows)])
    parts.append(_depth(figures["depth"], ratio))
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _head(here: dict[str, Any], processor: bool) -> list[str]:
    both = " In brackets the same in processor time of the thread." if processor else ""
    return [
        "# What measuring costs",
        "",
        f"`make bench`, torch {here['torch']}, device {here['device']}, threads: {here['threads']}. A plain step is zero_grad, "
        "forward, backward and SGD on the same batch. Each party has a twin of the network for itself; all take turns in one "
        f"run. Ratios are to the plain step: 1.00 is free.{both}",
    ]


def _sections(ratio: Callable[..., str]) -> list[tuple[str, str, list[Column]]]:
    """Title, explanation and columns of each table that has a row a network."""
    return [
        (
            "`check`",
            "One `check` of a step's batch (trace, measuring, theory, rules); one step under module hooks with `.item()` on "
            "every leaf; one fit of skorch's doctor for one batch. Medians.",
            [
                ("one plain step", lambda row: f"{1e3 * row['steps']['step_s'][0]:.1f} ms"),
                ("`check`", lambda row: ratio(row["steps"]["check"])),
                ("goal", lambda row: "3"),
                ("module hooks", lambda row: ratio(row["steps"]["hooks"])),
                ("SkorchDoctor", lambda row: ratio(row["steps"]["doctor"])),
            ],
        ),
        (
            "Memory of `check`",
            "Peak of what torch allocates beyond the weights and the data, in that of a plain step; beside it the peak of "
            "Python's own objects in a check.",
            [
                ("plain step", lambda row: f"{row['memory']['plain'] / MIB:.1f} MiB"),
                ("`check`", lambda row: _share(row, "check")),
                ("goal", lambda row: "1.2"),
                ("its Python objects", lambda row: f"{row['memory']['python'] / MIB:.1f} MiB"),
                ("module hooks", lambda row: _share(row, "hooks")),
                ("SkorchDoctor", lambda row: _share(row, "doctor")),
            ],
        ),
        (
            "`watch` at every step",
            "`every=1`: the median of measured steps; and a whole loop from its first step on, with the steps that rules and "
            'theory judge and with garbage collection. Cockpit tracks its cheapest set, "economy", at every step (with batch '
            "normalisation its own warning says that the numbers may mean nothing).",
            [
                ("measured step", lambda row: ratio(row["steps"]["watch"])),
                ("goal", lambda row: f"{row['goal']:.2f}"),
                ("whole loop", lambda row: f"{ratio(row['loop']['every'])}, {row['loop']['steps']} steps"),
                ("module hooks", lambda row: ratio(row["steps"]["hooks"])),
                ("Cockpit", lambda row: ratio(row["steps"]["cockpit"])),
            ],
        ),
        (
            "`watch` as it comes",
            "A budget of 1 %: a whole loop from its first step on, where measuring is dense; and its part behind the first 100 "
            "steps.",
            [
                ("steps", lambda row: str(row["loop"]["steps"])),
                ("measured", lambda row: str(row["loop"]["measured"])),
                ("whole loop", lambda row: ratio(row["loop"]["adaptive"], 3)),
                ("behind 100 steps", lambda row: ratio(row["loop"]["settled"], 3)),
                ("goal", lambda row: "1.01"),
                ("Cockpit, every step", lambda row: ratio(row["steps"]["cockpit"])),
            ],
        ),
        (
            "Waits for the device in a watched step",
            "The most beyond those of a plain step: in a measured step, in one that is judged too, in the very first one.",
            [
                ("measured step", lambda row: str(row["waits"]["measured"])),
                ("goal", lambda row: "1"),
                ("judged step", lambda row: str(row["waits"]["judged"])),
                ("first step", lambda row: str(row["waits"]["first"])),
            ],
        ),
    ]


def _share(row: Row, name: str) -> str:
    value = row["memory"][name]
    return value if isinstance(value, str) else f"{value / row['memory']['plain']:.2f}"


def _depth(depth: dict[str, Row], ratio: Callable[..., str]) -> list[str]:
    """One row an action, one column a depth."""
    small, large = depth["plain"]
    what = {"plain": "a plain step", "check": "`check`", "watch": "what `watch` adds to a step"}
    rows = [
        [
            text,
            *(ratio([1e6 * seconds for seconds in depth[name][each]], 0) for each in (small, large)),
            ratio([b / a for a, b in zip(depth[name][small], depth[name][large], strict=True)]),
            "–" if name == "plain" else "1.2",
        ]
        for name, text in what.items()
    ]
    text = "Plain networks of 100 SELU units a layer, batch 32; microseconds per stage, medians."
    return [
        "## Depth",
        "",
        text,
        "",
        *table(["per stage", f"{small} layers", f"{large} layers", "ratio", "goal"], rows),
    ]
