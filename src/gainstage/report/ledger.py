"""The ledger as a table: one on a wide screen, forward and backward halves below each other on a narrow one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from gainstage.display import render
from gainstage.report import figures
from gainstage.signal import Ledger, Row
from gainstage.theory import decibels

MOST_ROWS = 60  # a longer network is shown by its two ends
SHORTEST, LONGEST = 10, 40  # columns for the name of a stage


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


STAGE = Column("stage", lambda row: row.name)
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
UPDATE = Column("true\nupdate", lambda row: figures.number(row.update))


def _similarity(row: Row) -> str:
    return figures.NOT_OBSERVED if row.similarity is None else f"{row.similarity:.3f}"


def _shorten(name: str, width: int) -> str:
    return name if len(name) <= width else "…" + name[1 - width :]


@render.register
def _(ledger: Ledger, width: int) -> Group:
    rows = _ends(([] if ledger.source is None else [ledger.source]) + list(ledger.rows))
    backward = (*BACKWARD, UPDATE) if any(row.update is not None for row in ledger.rows) else BACKWARD
    fits = _room(rows, FORWARD + backward, width) >= min(_longest_name(rows), LONGEST)
    panes = [FORWARD + backward] if fits else [FORWARD, backward]
    legend = "dB = 20 log10(RMS); gain = out over in; theory = expected for the level that came in; – not observed"
    parts = [_outline(ledger), *(_table(rows, pane, width) for pane in panes), Text(legend, style="dim")]
    if ledger.branches:
        parts.append(_branches(ledger))
    if ledger.attention:
        parts.append(_attention(ledger))
    if ledger.noise_scale is not None:
        parts.append(Text(f"gradient noise scale: {figures.number(ledger.noise_scale)} samples"))
    if ledger.non_finite is not None:
        parts.append(Text(f"first not finite: {ledger.non_finite}", style="bold red"))
    if ledger.unknown:
        parts.append(Text(f"not understood: {', '.join(ledger.unknown)}", style="yellow"))
    return Group(*parts)


def _branches(ledger: Ledger) -> Table:
    """Residual branches beside their skips."""
    table = _small_table(("residual addition in", "branch dB", "skip dB", "branch over skip dB"))
    for branch in _ends(ledger.branches):
        if branch is None:
            table.add_row("…")
        else:
            over = figures.NOT_OBSERVED if branch.db is None else f"{branch.db:+.1f}"
            name = Text(_shorten(branch.stage, LONGEST))
            table.add_row(name, figures.level(branch.branch), figures.level(branch.skip), over)
    return table


def _attention(ledger: Ledger) -> Table:
    """The head whose attention is narrowest, and the mean over the heads."""
    table = _small_table(("attention in", "heads", "entropy: least", "mean", "largest logit"))
    for each in _ends(ledger.attention):
        if each is None:
            table.add_row("…")
            continue
        spread = [value for value in each.relative_entropy if value is not None]
        logits = [value for value in each.largest_logit if value is not None]
        least, mean = (min(spread), sum(spread) / len(spread)) if spread else (None, None)
        largest = figures.number(max(logits, default=None))
        name = Text(_shorten(each.stage, LONGEST))
        table.add_row(name, str(len(each.entropy)), figures.share(least), figures.share(mean), largest)
    return table


def _small_table(headings: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold", collapse_padding=True)
    for heading in headings:
        table.add_column(heading, justify="left" if heading is headings[0] else "right", no_wrap=True)
    return table


def _outline(ledger: Ledger) -> Text:
    """What the network is made of: "20 x linear + sigmoid, linear"."""
    runs = [(text, len(list(group))) for text, group in groupby(row.description for row in ledger.rows)]
    shown = [f"{n} x {text}" if n > 1 else text for text, n in runs]
    if len(shown) > 8:
        shown = [*shown[:4], "…", *shown[-3:]]
    return Text(f"{figures.count(len(ledger), 'stage')}: {', '.join(shown)}")


def _longest_name(rows: Sequence[Row | None]) -> int:
    return max(len(row.name) for row in rows if row is not None)


def _room(rows: Sequence[Row | None], columns: Sequence[Column], width: int) -> int:
    """What the columns leave for the name of a stage, one blank between all of them."""
    taken = [
        max([len(line) for line in c.heading.split("\n")] + [len(c.cell(row)) for row in rows if row]) for c in columns
    ]
    return width - sum(taken) - len(taken)


def _table(rows: Sequence[Row | None], columns: Sequence[Column], width: int) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold", collapse_padding=True)
    room = max(SHORTEST, min(LONGEST, _room(rows, columns, width)))
    for column in (STAGE, *columns):
        left = column is STAGE
        table.add_column(column.heading, justify="left" if left else "right", no_wrap=True, vertical="bottom")
    for row in rows:
        if row is None:
            table.add_row("…")
        else:
            cells = [Text(column.cell(row), style=column.style(row)) for column in columns]
            table.add_row(Text(_shorten(row.name, room)), *cells)
    return table


def _ends(rows: Sequence[Any]) -> list[Any]:
    """All rows, or the first and the last of many with None between them."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    half = MOST_ROWS // 2
    return [*rows[:half], None, *rows[-half:]]
