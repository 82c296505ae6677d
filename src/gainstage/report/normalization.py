"""Statistics of batch normalisations, and foldings, as rich renderables."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gainstage.display import render
from gainstage.nn import Folding, PopulationStatistics


@render.register
def _(table: PopulationStatistics, width: int) -> Group:
    grid = Table(box=None, padding=(0, 2), pad_edge=False, header_style="bold")
    for heading in ("layer", "units", "values", "std, dB", "worst", "mean, stds", "worst"):
        grid.add_column(heading, justify="left" if heading == "layer" else "right", overflow="fold")
    for row in table.rows:
        layer, units, values, *numbers = row.to_dict().values()
        grid.add_row(Text(layer), str(units), str(values), *(f"{number:+.2f}" for number in numbers))
    skipped = [Text(f"never ran: {', '.join(table.skipped)}", style="yellow")] if table.skipped else []
    return Group("moving averages against the population, which took their place", grid, *skipped)


@render.register
def _(folding: Folding, width: int) -> Group:
    grid = Table(box=None, padding=(0, 2), pad_edge=False, header_style="bold")
    for heading in ("normalisation", "folded into"):
        grid.add_column(heading, overflow="fold")
    for each in folding.folded:
        grid.add_row(Text(each.normalization), Text(f"{each.layer}, {each.side}"))
    left = [Text(f"left alone: {each.normalization}: {each.reason}", style="yellow") for each in folding.refused]
    return Group(
        grid, *left, Text(f"largest change of an output: {folding.difference:.1e} of the largest", style="dim")
    )
