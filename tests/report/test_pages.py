"""The rule book and the comparison of runs."""

from __future__ import annotations

import re

import pytest
from torch import nn

from gainstage.report import comparison_table, rule_page, rules_table, to_text
from gainstage.rules import HEADINGS, REGISTRY, choose, sections
from gainstage.training import Run

WIDTHS = (80, 120)

COMPARISON = """\
network    validation accuracy    validation loss    best epoch    seconds
first                    0.250               2.31        1 of 2        3.5
second                       –                  –        0 of 1        0.0"""


def records() -> list[dict[str, str]]:
    return [
        {"code": r.code, "name": r.name, "depth": r.depth, "status": r.status, "summary": sections(r)[""]}
        for r in choose()
    ]


def words(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())


def widest(text: str) -> int:
    return max(len(line) for line in text.splitlines())


def run(*history: dict[str, float], best: dict[str, float], seconds: float) -> Run:
    return Run(nn.Identity(), history, best, seconds=seconds)


def two_runs() -> dict[str, Run]:
    first = {"epoch": 1.0, "train_loss": 2.4, "valid_loss": 2.3125, "valid_accuracy": 0.25}
    second = {**first, "epoch": 2.0, "valid_loss": 2.5}
    failed = {"epoch": 1.0, "train_loss": float("nan")}
    return {"first": run(first, second, best=first, seconds=3.5), "second": run(failed, best={}, seconds=0.0)}


def test_every_rule_has_its_line_in_the_table():
    lines = to_text(rules_table(records()), 120).splitlines()[1:]
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == sorted(REGISTRY)
    for rule in REGISTRY.values():
        assert any(re.match(rf"{rule.code} +{rule.name} +{rule.depth} +{rule.status} ", line) for line in lines)


def test_the_table_of_rules_holds_the_whole_summary():
    assert words("word " * 60) in words(to_text(rules_table([{**records()[0], "summary": "word " * 60}]), 2000))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_of_rules_keeps_to_the_width_and_to_plain_text(width):
    text = to_text(rules_table(records()), width)
    assert widest(text) <= width
    assert "\x1b" not in text


def test_a_line_that_is_too_wide_is_noticed():
    assert widest("a\n" + 121 * "b") > 120


@pytest.mark.parametrize("code", sorted(REGISTRY))
def test_a_page_holds_all_that_the_docstring_says(code):
    rule, text = REGISTRY[code], to_text(rule_page(REGISTRY[code]), 80)
    assert text.startswith(f"{rule.code} {rule.name}\nspeaks at depth {rule.depth}; {rule.status}\n")
    for heading, content in sections(rule).items():
        assert words(f"{heading} {content}") in words(text)
    assert words(f"Remedies {', '.join(rule.remedies)}") in words(text)


@pytest.mark.parametrize("code", sorted(REGISTRY))
def test_a_page_has_its_headings_in_order(code):
    lines = to_text(rule_page(REGISTRY[code]), 80).splitlines()
    assert [line for line in lines if line in HEADINGS] == list(HEADINGS)


@pytest.mark.parametrize("code", sorted(REGISTRY))
@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_keeps_to_the_width_and_to_plain_text(code, width):
    text = to_text(rule_page(REGISTRY[code]), width)
    assert widest(text) <= width
    assert "\x1b" not in text


def test_runs_stand_side_by_side_at_their_best_epochs():
    text = to_text(comparison_table(two_runs()), 80)
    assert "\n".join(line.rstrip() for line in text.splitlines()) == COMPARISON


@pytest.mark.parametrize("width", WIDTHS)
def test_a_comparison_keeps_to_the_width(width):
    assert widest(to_text(comparison_table(two_runs()), width)) <= width


@pytest.mark.parametrize("name", ["<b>", "[bold]x", "[/red]"])
def test_the_name_of_a_network_is_shown_as_it_is(name):
    runs = {name: two_runs()["first"]}
    assert f"\n{name} " in to_text(comparison_table(runs), 80)
