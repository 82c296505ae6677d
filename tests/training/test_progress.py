"""Progress of a training: a bar on a terminal, plain lines in a pipe, nothing when not wanted."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from gainstage.training.progress import reporting, summary

ROW = {"epoch": 1.0, "train_loss": 0.2125, "valid_loss": 0.25, "valid_accuracy": 0.9375}


@pytest.fixture(autouse=True)
def no_colour_asked_for(monkeypatch):
    """Whether there is a terminal is seen from the file alone."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def bar_at_rest():
    """The bar's refreshing thread is told to stop, but not waited for: wait for it."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)


def shown(epochs: int, wanted: bool = True, **console) -> str:
    """All that a training of so many epochs prints."""
    screen = Console(file=io.StringIO(), width=80, **console)
    with reporting(epochs, wanted, "original", screen) as report:
        for epoch in range(1, epochs + 1):
            report({**ROW, "epoch": float(epoch)})
    return screen.file.getvalue()


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"train_loss": 0.2125}, "loss 0.212"),
        ({"train_loss": 0.2125, "valid_loss": 0.25}, "loss 0.212  valid 0.250"),
        (ROW, "loss 0.212  valid 0.250  accuracy 0.938"),
        ({"train_loss": float("nan")}, "loss nan"),
    ],
)
def test_an_epoch_is_summed_up_by_what_was_measured(row, text):
    assert summary(row) == text


def test_a_pipe_gets_one_plain_line_an_epoch():
    assert shown(2) == (
        "original: epoch 1/2  loss 0.212  valid 0.250  accuracy 0.938\n"
        "original: epoch 2/2  loss 0.212  valid 0.250  accuracy 0.938\n"
    )


@pytest.mark.parametrize("epochs", [1, 9, 10, 25, 100, 1234])
def test_the_first_and_the_last_epoch_have_a_line(epochs):
    lines = shown(epochs).splitlines()
    assert lines[0].startswith(f"original: epoch 1/{epochs} ")
    assert lines[-1].startswith(f"original: epoch {epochs}/{epochs} ")


@pytest.mark.parametrize("epochs", [1, 10, 11, 19, 20, 29, 99, 105, 1000])
def test_a_pipe_gets_at_most_ten_lines(epochs):
    assert len(shown(epochs).splitlines()) <= 10


@pytest.mark.parametrize("epochs", [50, 100, 1000])
def test_a_long_training_does_not_print_each_epoch(epochs):
    assert len(shown(epochs).splitlines()) < 20


@pytest.mark.parametrize("console", [{}, {"force_terminal": True}])
def test_nothing_is_printed_when_it_is_not_wanted(console):
    assert shown(20, wanted=False, **console) == ""


def test_a_terminal_gets_one_bar_with_the_latest_figures():
    text = shown(3, force_terminal=True)
    assert "3/3 loss 0.212  valid 0.250  accuracy 0.938" in text
    assert "original: epoch" not in text


def test_a_pipe_gets_no_control_codes():
    assert "\x1b" not in shown(3)
    assert "\x1b" in shown(3, force_terminal=True)


def test_progress_goes_to_standard_error(capsys):
    with reporting(1, True) as report:
        report(ROW)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("training: epoch 1/1  loss 0.212")


def test_the_bar_is_taken_down_after_an_error():
    screen = Console(file=io.StringIO(), force_terminal=True, width=80)
    with pytest.raises(KeyError), reporting(2, True, console=screen) as report:
        report({})
    assert screen._live_stack == []


@pytest.mark.parametrize("label", ["a[0]", "[bold]x"])
def test_a_label_is_shown_as_it_is(label):
    screen = Console(file=io.StringIO(), width=80)
    with reporting(1, True, label, screen) as report:
        report(ROW)
    assert screen.file.getvalue().startswith(f"{label}: epoch 1/1")
