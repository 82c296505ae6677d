"""A prediction as a table: golden texts at two widths, and nothing that sticks out."""

from __future__ import annotations

import pytest

from gainstage.report import to_html, to_text
from gainstage.signal import ExpectedStage, Prediction, predict
from tests.networks import Convolutional, deep
from tests.tools import normal, quiet

FIRST = {
    "signal": 0.5,
    "offset": 0.25,
    "similarity": 0.125,
    "signal_error": 0.05,
    "gradient": 2.0,
    "gradient_error": 0.1,
}
NARROW = """\
                             signal offset  simi-  +- gradient  +-
stage                            dB     dB larity  dB       dB  dB
hidden1 linear + relu          -6.0  -12.0  0.125 0.4      6.0 0.8
hidden2 linear + einsum           –      –      –   –        –   –
output  linear                 -inf   -6.0  1.000 0.0      0.0 0.0
theory for random weights of the size they have, from the network's input;
gradient relative to the output's; – no prediction"""
WIDE = """\
                             signal offset  simi-  +- gradient  +-
stage                            dB     dB larity  dB       dB  dB
hidden1 linear + relu          -6.0  -12.0  0.125 0.4      6.0 0.8
hidden2 linear + einsum           –      –      –   –        –   –
output  linear                 -inf   -6.0  1.000 0.0      0.0 0.0
theory for random weights of the size they have, from the network's input; gradient relative to the output's; – no
prediction"""


def small() -> Prediction:
    last = {
        "signal": 0.0,
        "offset": 0.5,
        "similarity": 1.0,
        "signal_error": 0.0,
        "gradient": 1.0,
        "gradient_error": 0.0,
    }
    rows = (
        ExpectedStage("hidden1", "linear + relu", **FIRST),
        ExpectedStage("hidden2", "linear + einsum"),
        ExpectedStage("output", "linear", **last),
    )
    return Prediction(rows, "5 of 6 operations understood")


def squeezed(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.mark.parametrize(("width", "expected"), [(80, NARROW), (120, WIDE)])
def test_every_quantity_has_its_column_and_what_is_not_predicted_a_dash(width, expected):
    assert squeezed(to_text(small(), width)) == squeezed(expected)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_long_names_are_folded_and_no_line_is_longer_than_the_screen(width):
    names = [f"encoder.layers.{number}.attention.output.dense" for number in (1, 2)]
    rows = tuple(ExpectedStage(name, "linear + dropout + add + layer_norm", **FIRST) for name in names)
    lines = to_text(Prediction(rows, ""), width).splitlines()
    assert max(map(len, lines)) <= width
    assert sum("-12.0" in line for line in lines) == 2
    first_column = "".join(line.split()[0] for line in lines[2:-1] if line.strip() and not line.startswith(" "))
    assert all(name in first_column for name in names)


@pytest.mark.parametrize("build", [lambda: deep(3, "tanh"), Convolutional], ids=["dense", "convolutional"])
def test_real_ones_show_every_stage(build):
    model = quiet(build)
    x = normal(16, 1, 8, 8) if isinstance(model, Convolutional) else normal(16, 20)
    graph, prediction = predict(model, x)
    for text in (str(prediction), prediction._repr_html_(), to_html(prediction)):
        assert all(stage.name in text for stage in graph.stages)
