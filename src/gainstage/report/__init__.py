"""From results to terminal, text and HTML: functions of plain facts."""

from __future__ import annotations

import io
import shutil
from typing import Any

from rich.console import Console

# importing a family registers how its results are drawn
from gainstage.report import ledger, normalization, prediction, results, self_normalization
from gainstage.report.pages import comparison_table as comparison_table
from gainstage.report.pages import rule_page as rule_page
from gainstage.report.pages import rules_table as rules_table
from gainstage.report.results import attempt_line as attempt_line

FAMILIES = (ledger, prediction, results, normalization, self_normalization)
NOTEBOOK_WIDTH = 120
PAGE = '<pre style="font-family:monospace;line-height:1.3;overflow-x:auto">{code}</pre>'


def to_text(result: Any, width: int | None = None) -> str:
    """Plain text without colour, `width` columns wide (the terminal's, or 100 when there is none)."""
    console = _console(width or shutil.get_terminal_size((100, 24)).columns)
    console.print(result)
    return str(console.file.getvalue()).rstrip("\n")  # type: ignore[attr-defined]


def to_html(result: Any) -> str:
    """HTML with inline styles, for a notebook cell."""
    console = _console(NOTEBOOK_WIDTH, record=True, force_terminal=True)
    console.print(result)
    return console.export_html(inline_styles=True, code_format=PAGE)


def _console(width: int, **options: Any) -> Console:
    defaults = {"force_terminal": False, "color_system": "truecolor" if options.get("record") else None}
    return Console(file=io.StringIO(), width=width, highlight=False, **{**defaults, **options})
