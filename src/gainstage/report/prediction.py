"""A prediction as a table."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gainstage.display import render
from gainstage.report import figures
from gainstage.signal import ExpectedStage, Prediction

HEADINGS = ("stage", "", "signal\ndB", "offset\ndB", "simi-\nlarity", "+-\ndB", "gradient\ndB", "+-\ndB")


@render.register
def _(prediction: Prediction, width: int) -> Group:
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold", collapse_padding=True)
    for heading in HEADINGS:
        left = heading in ("stage", "")
        table.add_column(
            heading, justify="left" if left else "right", no_wrap=not left, vertical="bottom", overflow="fold"
        )
    for row in prediction.rows:
        table.add_row(*_cells(row))
    legend = (
        "theory for random weights of the size they have, from the network's input; gradient relative to the output's; "
        f"{figures.NOT_OBSERVED} no prediction"
    )
    return Group(table, Text(legend, style="dim"))


def _cells(row: ExpectedStage) -> list[str]:
    alike = figures.NOT_OBSERVED if row.similarity is None else f"{row.similarity:.3f}"
    return [
        row.name,
        row.description,
        figures.level(row.signal),
        figures.level(row.offset),
        alike,
        _error(row.signal_error),
        figures.level(row.gradient),
        _error(row.gradient_error),
    ]


def _error(relative: float | None) -> str:
    """A relative standard error in dB."""
    return figures.NOT_OBSERVED if relative is None else figures.level(1 + relative)
