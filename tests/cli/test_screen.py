"""What the commands print on: plain in a pipe, colour on a terminal, one sentence for an error."""

from __future__ import annotations

import re

import pytest
import typer
from rich.text import Text

from gainstage.cli.screen import BAD_INPUT, FINDINGS, HEALTHY, clear_errors, console, show, write
from gainstage.errors import BadInput, GainstageError, MissingExtra
from gainstage.signal import Ledger, Row

COLOUR = re.compile(r"\x1b\[[0-9;]*3\d[0-9;]*m")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """None of the variables that decide on colour is set."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLORTERM", "JUPYTER_COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def ledger() -> Ledger:
    return Ledger((Row(0, "hidden1", "linear", 8, signal=1.0),), None, 64, 1.0, "")


def test_the_exit_codes_are_the_documented_ones():
    assert (HEALTHY, FINDINGS, BAD_INPUT) == (0, 1, 2)


def test_a_pipe_gets_plain_text_without_trailing_blanks(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    show(ledger())
    text = capsys.readouterr().out
    assert "hidden1" in text
    assert "\x1b" not in text
    assert text.endswith("\n")
    assert not re.search(r"[ \t]$", text, re.MULTILINE)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_pipe_is_as_wide_as_columns_says(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    show(Text("word " * 100))
    widths = [len(line) for line in capsys.readouterr().out.splitlines()]
    assert columns - 5 <= max(widths) <= columns


def test_colour_is_forced_when_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    show(Text("fault", style="red"))
    assert COLOUR.search(capsys.readouterr().out)


def test_no_color_is_honoured(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    show(Text("fault", style="red"))
    text = capsys.readouterr().out
    assert "fault" in text
    assert not COLOUR.search(text)


def test_figures_are_not_coloured_on_their_own(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    show("loss 0.123")
    assert capsys.readouterr().out == "loss 0.123\n"


def test_the_console_writes_to_standard_output(capsys):
    console().print("here")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("here\n", "")


def test_plain_text_is_shown_as_it_is(capsys):
    show("written to runs/[first]/")
    assert capsys.readouterr().out == "written to runs/[first]/\n"


def test_text_for_other_programs_is_neither_wrapped_nor_changed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    text = '{"name": "[bold] :smile:", "long": "' + "x" * 200 + '"}'
    write(text)
    assert capsys.readouterr().out == text + "\n"


@pytest.mark.parametrize("error", [BadInput("no such file"), GainstageError("no such file")])
def test_an_error_of_the_user_is_one_sentence_and_exit_code_2(capsys, error):
    with pytest.raises(typer.Exit) as caught, clear_errors():
        raise error
    captured = capsys.readouterr()
    assert caught.value.exit_code == BAD_INPUT
    assert (captured.out, captured.err) == ("", "gainstage: no such file\n")


def test_a_missing_extra_says_what_to_install(capsys):
    with pytest.raises(typer.Exit), clear_errors():
        raise MissingExtra("pandas", "frames")
    assert "pip install 'gainstage[frames]'" in capsys.readouterr().err


def test_an_error_of_ours_is_shown_whole_and_is_no_verdict(capsys):
    with pytest.raises(typer.Exit) as caught, clear_errors():
        raise ZeroDivisionError("ours")
    assert caught.value.exit_code == 3
    assert "ZeroDivisionError: ours" in capsys.readouterr().err


def test_success_passes_through(capsys):
    with clear_errors():
        write("fine")
    assert capsys.readouterr() == ("fine\n", "")
