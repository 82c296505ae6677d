"""What the commands print on, and how they end."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from gainstage.errors import GainstageError

HEALTHY, FINDINGS, BAD_INPUT, INTERNAL = 0, 1, 2, 3


def console() -> Console:
    """Standard output: colour on a terminal (NO_COLOR honoured), plain text in a pipe, COLUMNS wide."""
    return Console(highlight=False)


def show(result: Any) -> None:
    """Print a result, without trailing blanks in a pipe."""
    result = Text(result) if isinstance(result, str) else result
    out = console()
    if out.is_terminal:
        out.print(result)
    else:
        from gainstage.report import to_text

        lines = to_text(result, out.width).splitlines()
        sys.stdout.write("\n".join(line.rstrip() for line in lines) + "\n")
        sys.stdout.flush()


def write(text: str) -> None:
    """Print text as it is, for other programs to read."""
    sys.stdout.write(text + "\n")


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn an error that the user can solve into one sentence on standard error and exit code 2; exit
    code 3 is an error of ours."""
    try:
        yield
    except GainstageError as error:
        sys.stderr.write(f"gainstage: {error}\n")
        raise typer.Exit(BAD_INPUT) from None
    except typer.Exit:
        raise
    except Exception:
        sys.stderr.write(f"gainstage: an error of its own; please report it:\n{traceback.format_exc()}")
        raise typer.Exit(INTERNAL) from None
