"""The ledger as a table: one on a wide screen, forward and backward halves below each other on a narrow one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gainstage.display import render
from gainstage.report import figures
from gainstage.signal import Ledger, Row
from gainstage.theory import decibels

WIDE = 118  # columns that the whole table takes
MOST_ROWS = 60  # a longer network is shown by its two ends
STAGE_WIDTH = 22


def _plain(row: Row) -> str:
    return ""


@dataclass(frozen=True)
class Column:
    """A heading, how a row fills it, and in which colour."""

    heading: str
    cell: Callable[[Row], str]
    style: Callable[[Row], str] = _plain


def _gain_style(value: float | None) -> str:
    """Green within 1 dB of unity, yellow within 6 dB, red beyond."""
    db = decibels(value)
    return "" if db is None else "green" if abs(db) <= 1 else "yellow" if abs(db) <= 6 else "red"


def _share_style(value: float | None) -> str:
    return "" if value is None or value < 0.2 else "yellow" if value < 0.5 else "red"


STAGE = Column("stage", lambda row: _shorten(row.name))
FORWARD = (
    Column("signal\ndB", lambda row: figures.level(row.signal)),
    Column("offset\ndB", lambda row: figures.level(row.offset)),
    Column("simi-\nlarity", lambda row: _similarity(row)),
    Column("gain\nratio (dB)", lambda row: figures.gain(row.gain), lambda row: _gain_style(row.gain)),
    Column("theory\ndB", lambda row: figures.gain_db(row.expected_gain)),
    Column("\ndead", lambda row: figures.share(row.dead), lambda row: _share_style(row.dead)),
    Column("satu-\nrated", lambda row: figures.share(row.saturated), lambda row: _share_style(row.saturated)),
)
BACKWARD = (
    Column("gradient\ndB", lambda row: figures.level(row.gradient)),
    Column(
        "back gain\nratio (dB)", lambda row: figures.gain(row.backward_gain), lambda row: _gain_style(row.backward_gain)
    ),
    Column("theory\ndB", lambda row: figures.gain_db(row.expected_backward_gain)),
    Column("weight\nRMS", lambda row: figures.number(row.weight)),
    Column("its gra-\ndient", lambda row: figures.number(row.weight_gradient)),
)


def _similarity(row: Row) -> str:
    return figures.NOT_OBSERVED if row.similarity is None else f"{row.similarity:.3f}"


def _shorten(name: str) -> str:
    return name if len(name) <= STAGE_WIDTH else "…" + name[1 - STAGE_WIDTH :]


@render.register
def _(ledger: Ledger, width: int) -> Group:
    panes = [FORWARD + BACKWARD] if width >= WIDE else [FORWARD, BACKWARD]
    legend = "dB = 20 log10(RMS); gain = out over in; theory = expected for the level that came in; – not observed"
    parts = [_outline(ledger), *(_table(ledger, pane) for pane in panes), Text(legend, style="dim")]
    if ledger.unknown:
        parts.append(Text(f"not understood: {', '.join(ledger.unknown)}", style="yellow"))
    return Group(*parts)


def _outline(ledger: Ledger) -> Text:
    """What the network is made of: "20 x linear + sigmoid, linear"."""
    runs = [(text, len(list(group))) for text, group in groupby(row.description for row in ledger.rows)]
    shown = [f"{n} x {text}" if n > 1 else text for text, n in runs]
    if len(shown) > 8:
        shown = [*shown[:4], "…", *shown[-3:]]
    return Text(f"{figures.count(len(ledger), 'stage')}: {', '.join(shown)}")


def _table(ledger: Ledger, columns: Sequence[Column]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold", collapse_padding=True)
    for column in (STAGE, *columns):
        left = column is STAGE
        table.add_column(column.heading, justify="left" if left else "right", no_wrap=True, vertical="bottom")
    rows = [] if ledger.source is None else [ledger.source]
    rows += ledger.rows
    for row in _ends(rows):
        if row is None:
            table.add_row("…")
        else:
            table.add_row(*(Text(column.cell(row), style=column.style(row)) for column in (STAGE, *columns)))
    return table


def _ends(rows: Sequence[Row]) -> list[Row | None]:
    if len(rows) <= MOST_ROWS:
        return list(rows)
    half = MOST_ROWS // 2
    return [*rows[:half], None, *rows[-half:]]
