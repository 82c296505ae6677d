"""Checkups, fixes, runs and initialisations as rich renderables."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gainstage.checkup import Checkup
from gainstage.display import render
from gainstage.initialization import Initialization
from gainstage.remedies import REGISTRY as REMEDIES
from gainstage.repair import Attempt, Fix
from gainstage.report import figures
from gainstage.rules import Finding, flatten
from gainstage.training import Run

STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}


def card(finding: Finding) -> RenderableType:
    """One root cause: its numbers, what it leads to, what may cure it."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    head = Text(f"{finding.code} {finding.name}", style="bold")
    grid.add_row(Text(finding.severity, style=STYLES[finding.severity]), head)
    grid.add_row("", Text(finding.message))
    for each in flatten(finding.consequences):
        grid.add_row("", Text(f"leads to {each.code} {each.name}: {each.message}", style="dim"))
    if finding.remedies:
        names = ", ".join(f"{name} ({REMEDIES[name].safety})" for name in finding.remedies)
        grid.add_row("", Text(f"remedies: {names}"))
    grid.add_row("", f"more: gainstage explain {finding.code}")
    return grid


@render.register
def _(checkup: Checkup, width: int) -> Group:
    parts: list[RenderableType] = []
    if checkup.ledger is not None:
        parts += [render(checkup.ledger, width), ""]
    if checkup.prediction is not None:
        parts += [render(checkup.prediction, width), ""]
    for finding in checkup.findings:
        parts += [card(finding), ""]
    parts.append(verdict(checkup))
    return Group(*parts)


def verdict(checkup: Checkup) -> Text:
    """The last line of a checkup."""
    found, folded = len(checkup.findings), len(flatten(checkup.findings)) - len(checkup.findings)
    text = (
        Text("healthy: no rule fired", style="bold green")
        if not found
        else Text(figures.count(found, "finding"), style="bold")
    )
    if folded:
        text.append(f" with {figures.count(folded, 'consequence')}")
    if checkup.ledger is not None:
        text.append(
            f"; measured on {figures.count(checkup.ledger.samples, 'sample')}, loss {checkup.ledger.loss:.4g}",
            style="dim",
        )
    return text.append(f"; {checkup.graph.coverage}", style="dim")


def attempt_line(attempt: Attempt) -> Text:
    """One remedy tried: kept or undone, and why."""
    mark, style = ("kept  ", "bold green") if attempt.kept else ("undone", "bold yellow")
    text = Text.assemble(
        (mark, style), f"  {attempt.remedy} ({attempt.safety}) for {attempt.finding}: {attempt.reason}"
    )
    if attempt.trial is not None:
        losses = [attempt.trial.unchanged, attempt.trial.redrawn, attempt.trial.treated]
        mean = [f"{sum(values) / len(values):.3g}" for values in losses]
        text.append(
            f"; loss after a short training over {len(losses[0])} seeds: {mean[2]}, against {mean[0]} unchanged and "
            f"{mean[1]} with new weights alone",
            style="dim",
        )
    return text


@render.register
def _(fix: Fix, width: int) -> Group:
    if fix.before.healthy:
        return Group(Text("nothing to fix: no rule fired", style="bold green"))
    parts: list[RenderableType] = [attempt_line(attempt) for attempt in fix.attempts]
    parts += ["", _side_by_side(fix), ""]
    if fix.hidden_unsafe:
        kinds = figures.count(fix.hidden_unsafe, "unsafe remedy").replace("remedys", "remedies")
        parts.append(Text(f"{kinds} not tried: allow with unsafe=True (--unsafe)", style="yellow"))
    parts.append(_outcome(fix))
    return Group(*parts)


def _outcome(fix: Fix) -> Text:
    if fix.after.healthy:
        return Text("cured: no rule fires any more", style="bold green")
    if not fix.applied:
        return Text("no remedy proved better: the network is as it was", style="bold yellow")
    return Text(f"better, not cured: {figures.count(len(fix.after.findings), 'finding')} left", style="bold yellow")


def _side_by_side(fix: Fix) -> Table:
    table = Table(box=None, padding=(0, 2), pad_edge=False, header_style="bold")
    for heading in ("", "before", "after"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, value in (
        ("findings", _codes),
        ("signal at the last hidden stage, dB", lambda c: _hidden(c, "signal", last=True)),
        ("gradient at the first stage, dB", lambda c: _hidden(c, "gradient", last=False)),
        (
            "loss on the measured batch",
            lambda c: figures.number(c.ledger.loss) if c.ledger else figures.NOT_OBSERVED,
        ),
    ):
        table.add_row(name, value(fix.before), value(fix.after))
    return table


def _codes(checkup: Checkup) -> str:
    return ", ".join(dict.fromkeys(checkup.codes)) or "none"


def _hidden(checkup: Checkup, quantity: str, last: bool) -> str:
    path = checkup.graph.main_path()
    if checkup.ledger is None or not path:
        return figures.NOT_OBSERVED
    index = path[max(len(path) - 2, 0)] if last else path[0]
    return figures.level(getattr(checkup.ledger.rows[index], quantity))


@render.register
def _(run: Run, width: int) -> Group:
    best = ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}" for name, value in run.best.items() if name not in ("epoch", "seconds")
    )
    lines: list[RenderableType] = [
        f"trained {figures.count(len(run.history), 'epoch')} in {run.seconds:.1f} s (watching took {run.overhead:.1%})",
        f"best epoch {run.best.get('epoch', 0):.0f}: {best}" if best else "no epoch ended with a finite loss",
    ]
    if run.stopped:
        lines.append(Text(f"stopped early: {run.stopped}", style="yellow"))
    lines += _cards(run.findings)
    return Group(*lines)


def _cards(findings: Iterable[Finding]) -> list[RenderableType]:
    return [part for finding in findings for part in ("", card(finding))]


@render.register
def _(table: Initialization, width: int) -> Group:
    grid = Table(box=None, padding=(0, 2), pad_edge=False, header_style="bold")
    for heading in ("stage", "follows", "scheme", "variance", "reason"):
        grid.add_column(heading, justify="right" if heading == "variance" else "left")
    for row in table.rows:
        grid.add_row(*map(Text, (row.stage, row.follows, row.scheme, f"{row.variance:.4g}", row.reason)))
    skipped = [Text(f"left alone: {', '.join(table.skipped)}", style="yellow")] if table.skipped else []
    return Group(grid, *skipped)
