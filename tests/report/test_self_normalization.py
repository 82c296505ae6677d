"""The conditions of self-normalisation as text: each with its verdict in a word, its reason and what to do."""

from __future__ import annotations

import json

import pytest

from gainstage.nn import SelfNormalization, self_normalization
from gainstage.nn.self_normalization import Clause
from gainstage.report import to_html, to_text
from tests.networks import Convolutional, deep
from tests.tools import normal, quiet

HOLDS = Clause("zero biases", True, "all are zero")
WEAKER = Clause("dense layers", True, "conv2d in [0]", "watch the levels", guaranteed=False)
FAILS = Clause("alpha dropout instead of dropout", False, "dropout in drop", "use torch.nn.AlphaDropout")
OPEN = Clause("standardised inputs", None, "no data", "give data=")
ALL = """\
holds        zero biases: all are zero
in practice  dense layers: conv2d in [0]
             watch the levels
fails        alpha dropout instead of dropout: dropout in drop
             use torch.nn.AlphaDropout
unknown      standardised inputs: no data
             give data=

not self-normalising: 1 condition not kept"""


def stripped(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines())


def test_every_clause_is_shown_with_its_verdict_reason_and_advice():
    assert stripped(to_text(SelfNormalization((HOLDS, WEAKER, FAILS, OPEN)), 80)) == ALL


@pytest.mark.parametrize(
    ("clauses", "verdict"),
    [
        ((HOLDS,), "self-normalising: every condition holds"),
        ((HOLDS, WEAKER), "self-normalising: every condition holds, in practice at least"),
        ((HOLDS, OPEN), "perhaps self-normalising: 1 condition cannot be told"),
        ((FAILS, OPEN, FAILS), "not self-normalising: 2 conditions not kept"),
    ],
)
def test_the_last_line_is_the_verdict(clauses, verdict):
    assert to_text(SelfNormalization(clauses), 80).splitlines()[-1] == verdict


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("build", [Convolutional, lambda: deep(3, "relu")])
def test_a_real_one_keeps_to_the_width(build, width):
    text = to_text(self_normalization(quiet(build)), width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "\x1b" not in text


def test_it_can_be_written_as_text_html_and_json():
    found = self_normalization(deep(3, "selu"), normal(100, 20))
    assert str(found).endswith("self-normalising: every condition holds")
    assert "zero biases" in to_html(found)
    assert len(json.loads(found.to_json())["clauses"]) == len(found.clauses)
