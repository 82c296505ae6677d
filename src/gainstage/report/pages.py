"""The rule book and comparisons of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gainstage.report import figures
from gainstage.rules import HEADINGS, Rule, sections
from gainstage.training import Run


def rules_table(records: Sequence[Mapping[str, str]]) -> Table:
    """One line a rule."""
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="bold")
    for heading in ("code", "name", "depth", "status", "summary"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("code", "depth", "status"))
    for record in records:
        table.add_row(*(Text(record[key]) for key in ("code", "name", "depth", "status", "summary")))
    return table


def rule_page(rule: type[Rule]) -> Group:
    """The documentation of a rule, from its docstring."""
    parts = sections(rule)
    lines: list[RenderableType] = [
        Text(f"{rule.code} {rule.name}", style="bold"),
        Text(f"speaks at depth {rule.depth}; {rule.status}", style="dim"),
        "",
        _reflow(parts[""]),
    ]
    for heading in HEADINGS:
        lines += ["", Text(heading, style="bold"), Padding(_reflow(parts[heading]), (0, 0, 0, 2))]
    if rule.remedies:
        lines += ["", Text("Remedies", style="bold"), Padding(Text(", ".join(rule.remedies)), (0, 0, 0, 2))]
    return Group(*lines)


def _reflow(text: str) -> Text:
    return Text(" ".join(text.split()))


def comparison_table(runs: Mapping[str, Run]) -> Table:
    """Validation figures of several runs side by side, each at its best epoch."""
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="bold")
    for heading in ("network", "validation accuracy", "validation loss", "best epoch", "seconds"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name, run in runs.items():
        best = run.best
        table.add_row(
            Text(name),
            figures.NOT_OBSERVED if "valid_accuracy" not in best else f"{best['valid_accuracy']:.3f}",
            figures.number(best.get("valid_loss")),
            f"{best.get('epoch', 0):.0f} of {len(run.history)}",
            f"{run.seconds:.1f}",
        )
    return table
