"""Checkups, fixes, runs and initialisations as text and HTML: every finding, every stage, nothing beside the screen."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console
from torch import nn

from gainstage.checkup import Checkup, check
from gainstage.initialization import Initialization, InitializedStage, initialize
from gainstage.program import Program
from gainstage.remedies import REGISTRY as REMEDIES
from gainstage.repair import Attempt, Fix, TrialResult
from gainstage.report import attempt_line, to_html, to_text
from gainstage.rules import Finding, flatten
from gainstage.signal import Graph, Ledger, Row
from gainstage.training import Run
from tests.networks import deep, normal_weights
from tests.tools import blobs, generator

WIDTHS = (80, 120)

CONSEQUENCE = Finding("S103", "vanishing-signal", "warning", ("a",), {}, "stage a: the signal falls")
CAUSE = Finding(
    "I101", "initialization-does-not-fit-activation", "error", ("a",), {"sigmas": 9.0}, "stage a: weights off",
    remedies=("initialize-for-activation", "use-selu"), consequences=(CONSEQUENCE,),
)  # fmt: skip
CARD = """\
error  I101 initialization-does-not-fit-activation
       stage a: weights off
       leads to S103 vanishing-signal: stage a: the signal falls
       remedies: initialize-for-activation (safe), use-selu (unsafe)
       more: gainstage explain I101

1 finding with 1 consequence; 0 of 0 operations understood"""
RUN = """\
trained 2 epochs in 3.5 s (watching took 1.0%)
best epoch 1: train loss 2.5, valid loss 2.25, valid accuracy 0.25
stopped early: the loss is no longer finite

error  I101 initialization-does-not-fit-activation
       stage a: weights off
       leads to S103 vanishing-signal: stage a: the signal falls
       remedies: initialize-for-activation (safe), use-selu (unsafe)
       more: gainstage explain I101"""
KEPT = Attempt("use-selu", "title", "unsafe", "I101", True, "I101 is gone", TrialResult((2.0,), (3.0, 2.0), (0.5,)))
UNDONE = Attempt("initialize-for-activation", "title", "safe", "I101", False, "it brings S103")


def words(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())


def widest(text: str) -> int:
    return max(len(line) for line in text.splitlines())


def stripped(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines())


def checkup(*findings: Finding, ledger: Ledger | None = None) -> Checkup:
    return Checkup(findings, ledger, Graph((), (), -1), "preflight")


def ledger(name: str) -> Ledger:
    return Ledger((Row(0, name, "linear", 3, signal=1.0),), None, 64, 1.25, "")


def fix(before: Checkup, after: Checkup, *attempts: Attempt, hidden: int = 0) -> Fix:
    program = Program(nn.Identity(), nn.functional.mse_loss, blobs())
    return Fix(program, before, after, attempts, hidden, (), ())


def run(*findings: Finding) -> Run:
    best = {"epoch": 1.0, "train_loss": 2.5, "valid_loss": 2.25, "valid_accuracy": 0.25, "seconds": 1.75}
    stopped = "the loss is no longer finite"
    return Run(nn.Identity(), (best, {**best, "epoch": 2.0}), best, findings, stopped, 3.5, 0.01)


@pytest.fixture(scope="module")
def sick() -> Checkup:
    """A real network with a cause and a consequence."""
    return check(deep(20, "logistic", normal_weights(1.0)), nn.CrossEntropyLoss(), blobs())


@pytest.fixture(scope="module")
def healthy() -> Checkup:
    return check(deep(2, "selu"), nn.CrossEntropyLoss(), blobs())


def test_a_finding_is_a_card_with_its_consequences_and_remedies():
    assert stripped(to_text(checkup(CAUSE), 80)) == CARD


def test_a_card_depends_on_its_finding():
    assert stripped(to_text(checkup(CONSEQUENCE), 80)) != CARD


@pytest.mark.parametrize("severity", ["error", "warning", "note"])
def test_the_severity_is_a_word_and_not_only_a_colour(severity):
    finding = Finding("S101", "dead-units", severity, (), {}, "message")
    assert to_text(checkup(finding), 80).startswith(severity)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_code_message_and_stage_of_a_checkup_is_shown(sick, width):
    text = to_text(sick, width)
    assert len(sick.codes) > 1
    for finding in flatten(sick.findings):
        assert words(f"{finding.code} {finding.name}") in words(text)
        assert finding.message in words(text)
    for row in sick.ledger.rows:
        assert re.search(rf"^{row.name} ", text, re.MULTILINE)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("which", ["sick", "healthy"])
def test_a_checkup_keeps_to_the_width_and_to_plain_text(request, which, width):
    text = to_text(request.getfixturevalue(which), width)
    assert widest(text) <= width
    assert "\x1b" not in text


def test_a_line_that_is_too_wide_is_noticed():
    assert widest("a\n" + 81 * "b") > 80


def test_the_remedies_of_a_card_say_how_safe_they_are(sick):
    text = words(to_text(sick, 80))
    for name in sick.findings[0].remedies:
        assert f"{name} ({REMEDIES[name].safety})" in text


def test_a_healthy_network_is_called_healthy(healthy):
    assert healthy.healthy
    last = to_text(healthy, 120).splitlines()[-1]
    assert last.startswith("healthy: no rule fired; measured on 256 samples, loss ")
    assert last.endswith("; 5 of 5 operations understood")


@pytest.mark.parametrize(
    ("findings", "verdict"),
    [
        ((), "healthy: no rule fired"),
        ((CONSEQUENCE,), "1 finding"),
        ((CONSEQUENCE, CAUSE), "2 findings with 1 consequence"),
    ],
)
def test_the_last_line_counts_the_findings(findings, verdict):
    assert to_text(checkup(*findings), 80).splitlines()[-1] == f"{verdict}; 0 of 0 operations understood"


def test_the_last_line_says_on_what_was_measured():
    text = to_text(checkup(ledger=ledger("a")), 120)
    assert text.endswith("healthy: no rule fired; measured on 64 samples, loss 1.25; 0 of 0 operations understood")


@pytest.mark.parametrize(
    "message",
    ["a[0]: weights off", "[bold]x", "stage [/red] falls"],
)
def test_a_message_is_shown_as_it_is(message):
    assert message in to_text(checkup(Finding("S101", "dead-units", "error", (), {}, message)), 80)


def test_kept_and_undone_remedies_say_why():
    assert to_text(attempt_line(UNDONE), 200) == "undone  initialize-for-activation (safe) for I101: it brings S103"
    assert to_text(attempt_line(KEPT), 200) == (
        "kept    use-selu (unsafe) for I101: I101 is gone; loss after a short training over 1 seeds: 0.5, "
        "against 2 unchanged and 2.5 with new weights alone"
    )


def test_a_healthy_program_is_refused_politely():
    assert to_text(fix(checkup(), checkup()), 80) == "nothing to fix: no rule fired"


@pytest.mark.parametrize(
    ("after", "attempts", "outcome"),
    [
        ((), [KEPT], "cured: no rule fires any more"),
        ((CONSEQUENCE,), [KEPT], "better, not cured: 1 finding left"),
        ((CAUSE,), [UNDONE], "no remedy proved better: the network is as it was"),
    ],
)
def test_the_last_line_of_a_fix_is_its_outcome(after, attempts, outcome):
    assert to_text(fix(checkup(CAUSE), checkup(*after), *attempts), 120).splitlines()[-1] == outcome


@pytest.mark.parametrize("attempts", [(UNDONE, KEPT), (KEPT, UNDONE)])
def test_a_fix_shows_its_attempts_in_order(attempts):
    lines = to_text(fix(checkup(CAUSE), checkup(), *attempts), 200).splitlines()
    assert lines[:2] == [to_text(attempt_line(attempt), 200) for attempt in attempts]


def test_a_fix_shows_the_codes_before_and_after():
    text = to_text(fix(checkup(CAUSE), checkup(), KEPT), 120)
    assert re.search(r"^findings +I101, S103 +none *$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("hidden", "words"), [(0, None), (1, "1 unsafe remedy not tried"), (3, "3 unsafe remedies not tried")]
)
def test_a_fix_says_how_many_unsafe_remedies_are_hidden(hidden, words):
    text = to_text(fix(checkup(CAUSE), checkup(CAUSE), hidden=hidden), 80)
    assert words in text if words else "unsafe" not in text


def test_a_fix_shows_levels_before_and_after(sick, healthy):
    text = to_text(fix(sick, healthy, KEPT), 120)
    signal = [f"{c.ledger.rows[-2].signal_db:.1f}" for c in (sick, healthy)]
    assert re.search(rf"^signal at the last hidden stage, dB +{signal[0]} +{signal[1]} *$", text, re.MULTILINE)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_fix_keeps_to_the_width(sick, healthy, width):
    assert widest(to_text(fix(sick, healthy, UNDONE, KEPT), width)) <= width


def test_a_run_says_how_it_went():
    assert stripped(to_text(run(CAUSE), 80)) == RUN


def test_the_text_of_a_run_depends_on_its_findings():
    assert stripped(to_text(run(), 80)) != RUN


def test_a_run_without_a_finite_loss_says_so():
    text = to_text(Run(nn.Identity(), ({"epoch": 1.0},), {}), 80)
    assert text.splitlines() == ["trained 1 epoch in 0.0 s (watching took 0.0%)", "no epoch ended with a finite loss"]


def test_an_initialization_is_a_table_of_its_stages():
    table = initialize(deep(2, "relu"), blobs(), generator=generator())
    lines = to_text(table, 120).splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["hidden1", "relu", "He"], ["hidden2", "relu", "He"], ["output", "none", "Glorot"]
    ]  # fmt: skip


def test_an_initialization_names_what_it_left_alone():
    rows = (InitializedStage("a", "relu", "He", 0.5, "He fits relu"),)
    assert "left alone: b, c" in to_text(Initialization(rows, ("b", "c")), 80)
    assert "left alone" not in to_text(Initialization(rows), 80)


def test_text_takes_the_width_of_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert 30 < widest(to_text(checkup(CAUSE))) <= 40


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_text_stays_plain_where_the_environment_asks_for_colour(monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    assert stripped(to_text(checkup(CAUSE), 80)) == CARD


def test_a_terminal_gets_colour():
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=80, no_color=False)
    console.print(checkup(CAUSE))
    assert "\x1b[" in console.file.getvalue()
    assert stripped(re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())) == CARD


def test_str_and_the_notebook_show_the_same_as_the_reports(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    result = checkup(CAUSE)
    assert str(result) == to_text(result, 100)
    assert result._repr_html_() == to_html(result)


def test_html_escapes_the_names_of_modules():
    page = to_html(checkup(ledger=ledger("<b>")))
    assert "&lt;b&gt;" in page
    assert "<b>" not in page


def test_html_stands_alone_and_holds_all_findings_and_stages(sick):
    page = to_html(sick)
    assert page.startswith("<pre")
    assert not re.search(r"<script|<link|https?://", page)
    plain = words(re.sub(r"<[^>]*>", "", page))
    for name in [*sick.codes, *(row.name for row in sick.ledger.rows)]:
        assert name in plain


@pytest.mark.parametrize(
    ("result", "phrase", "key"),
    [
        (checkup(CAUSE), "I101", "findings"),
        (run(CAUSE), "trained", "history"),
        (Initialization(()), "scheme", "stages"),
    ],
)
def test_every_result_can_be_written_as_text_html_and_json(result, phrase, key):
    assert phrase in to_text(result, 80)
    assert phrase in to_html(result)
    assert key in json.loads(result.to_json())
