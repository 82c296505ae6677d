"""Run: what a training leaves behind, as plain facts."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from torch import nn

from gainstage.rules import Finding
from gainstage.training import Run

FINDING = Finding("S103", "vanishing-signal", "warning", ("a",), {"fall_db": float("inf")}, "the signal falls")
HISTORY = ({"epoch": 1.0, "train_loss": 2.0}, {"epoch": 2.0, "train_loss": float("nan")})


def run() -> Run:
    return Run(nn.Identity(), HISTORY, HISTORY[0], (FINDING,), "not finite", 3.5, 0.01)


def strict(text: str) -> Any:
    """Parse JSON as RFC 8259 has it, without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_run_is_plain_data():
    assert run().to_dict() == {
        "history": list(HISTORY),
        "best": HISTORY[0],
        "findings": [FINDING.to_dict()],
        "stopped": "not finite",
        "seconds": 3.5,
        "watching_overhead": 0.01,
    }


def test_a_run_is_strict_json_also_where_numbers_are_not_finite():
    data = strict(run().to_json())
    assert data["history"][1]["train_loss"] == "nan"
    assert data["findings"][0]["evidence"]["fall_db"] == "inf"


def test_json_that_is_not_strict_is_noticed():
    with pytest.raises(ValueError, match="NaN is not JSON"):
        strict(json.dumps(run().to_dict()))


def test_json_fits_on_one_line_when_asked():
    assert "\n" not in run().to_json(indent=None)


def test_a_run_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        run().best = {}


def test_a_run_that_nothing_happened_to_has_no_findings_and_no_folder():
    empty = Run(nn.Identity(), (), {})
    assert (empty.findings, empty.stopped, empty.folder) == ((), None, None)


def test_a_run_shows_itself(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert str(run()).startswith("trained 2 epochs in 3.5 s (watching took 1.0%)\n")
