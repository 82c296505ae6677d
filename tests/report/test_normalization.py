"""Statistics of batch normalisations, and foldings, as text and HTML."""

import pytest
import torch
from torch import nn

from gainstage.nn import Absorbed, Folding, LayerStatistics, PopulationStatistics, RefusedNorm
from gainstage.nn.edits import Edits
from gainstage.report import to_html, to_text

ROW = LayerStatistics(
    "norm [1]", 2, torch.tensor([0.0, 10.0]), torch.tensor([1.0, 4.0]), torch.tensor([3.0, 9.0]), torch.tensor([100.0, 4.0]), 0.0
)  # fmt: skip
STATISTICS = """\
moving averages against the population, which took their place
layer     units  values  std, dB   worst  mean, stds  worst
norm [1]      2       2   +10.00  +20.00       +2.15  +3.00
never ran: unused, [b]other[/b]"""
FOLDING = """\
normalisation    folded into
[norm]           conv, in front
0.norm           1, behind
left alone: late: in front, [relu] stands there
largest change of an output: 1.8e-07 of the largest"""

RESULTS = {
    "statistics": (PopulationStatistics((ROW,), ("unused", "[b]other[/b]")), STATISTICS),
    "folding": (
        Folding(
            (Absorbed("[norm]", "conv", "in front"), Absorbed("0.norm", "1", "behind")),
            (RefusedNorm("late", "in front, [relu] stands there"),),
            1.8e-7,
            Edits(),
        ),
        FOLDING,
    ),
}
results = pytest.mark.parametrize(("result", "expected"), RESULTS.values(), ids=RESULTS)


@results
def test_every_number_and_every_reason_is_shown(result, expected):
    lines = [text.splitlines() for text in (to_text(result, width=100), expected)]
    assert [line.split() for line in lines[0]] == [line.split() for line in lines[1]]


@results
@pytest.mark.parametrize("width", [60, 80])
def test_nothing_stands_beside_the_screen(result, expected, width):
    assert max(map(len, to_text(result, width=width).splitlines())) <= width


@results
def test_a_notebook_shows_the_same(result, expected):
    assert "<pre" in to_html(result)
    assert expected.split()[-1] in result._repr_html_()


def test_without_refusals_there_is_no_line_for_them():
    text = to_text(Folding((Absorbed("a", "b", "behind"),), (), 0.0, Edits()))
    assert "left alone" not in text
    assert "never ran" not in to_text(PopulationStatistics((ROW,)))


def test_undo_is_the_edits():
    model, edits = nn.Sequential(nn.ReLU()), Edits()
    edits.replace_module(model, model[0], nn.Identity())
    Folding((), (), 0.0, edits).undo()
    assert isinstance(model[0], nn.ReLU)
