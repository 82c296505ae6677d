"""The conditions of self-normalisation as rich renderables."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gainstage.display import render
from gainstage.nn import SelfNormalization
from gainstage.report import figures

STATES = {  # a word as narrow as a column, and its colour
    "holds": ("holds", "bold green"),
    "holds in practice, not guaranteed": ("in practice", "bold yellow"),
    "fails": ("fails", "bold red"),
    "cannot be told": ("unknown", "bold cyan"),
}


@render.register
def _(found: SelfNormalization, width: int) -> Group:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for clause in found.clauses:
        word, style = STATES[clause.state]
        grid.add_row(Text(word, style=style), Text.assemble((clause.name, "bold"), f": {clause.reason}"))
        if clause.advice:
            grid.add_row("", Text(clause.advice, style="dim"))
    return Group(grid, "", _verdict(found))


def _verdict(found: SelfNormalization) -> Text:
    if found.holds:
        proof = "" if found.guaranteed else ", in practice at least"
        return Text(f"self-normalising: every condition holds{proof}", style="bold green")
    failing = sum(clause.holds is False for clause in found.clauses)
    if failing:
        return Text(f"not self-normalising: {figures.count(failing, 'condition')} not kept", style="bold red")
    unknown = sum(clause.holds is None for clause in found.clauses)
    return Text(f"perhaps self-normalising: {figures.count(unknown, 'condition')} cannot be told", style="bold cyan")
