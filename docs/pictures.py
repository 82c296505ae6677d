"""Draws the README's pictures from real output: `make pictures`."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console
from torch import nn

import gainstage as gs
from gainstage.cli.demo import villain
from gainstage.data import load_digits

FOLDER = Path(__file__).parent
WIDTH = 120


def draw(checkup: gs.Checkup, title: str, name: str) -> None:
    """One checkup as an SVG of a terminal."""
    console = Console(
        record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor", highlight=False
    )
    console.print(checkup)
    console.save_svg(str(FOLDER / name), title=title)


def main() -> None:
    """The demo's network, before and after `fix`."""
    train, _ = load_digits()
    model, loss = villain(), nn.CrossEntropyLoss()
    draw(gs.check(model, loss, train), "20 x 100 logistic units, weights from N(0, 1)", "broken.svg")
    gs.fix(model, loss, train, unsafe=True)
    draw(gs.check(model, loss, train), "the same network after gs.fix(model, loss, data, unsafe=True)", "repaired.svg")


if __name__ == "__main__":
    main()
