"""The commands: exit codes, one sentence for bad input, strict JSON, and no torch before it is needed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from gainstage.cli.main import app
from gainstage.rules import HEADINGS, REGISTRY
from gainstage.training import load_weights
from tests.networks import deep, normal_weights
from tests.tools import quiet

PARTS = """
import torch
from torch import nn
from gainstage import Program
from gainstage.nn import dense_network

draw = torch.Generator().manual_seed(0)
y = torch.arange(128) % 3
x = torch.randn(3, 20, generator=draw)[y] + 0.5 * torch.randn(128, 20, generator=draw)

def program(depth, activation, initializer="auto", **settings):
    model = dense_network(20, [32] * depth, 3, activation, initializer, generator=draw)
    return Program(model, nn.CrossEntropyLoss(), (x, y), **settings)
"""
PROGRAMS = {
    "healthy": "def build(): return program(2, 'selu', epochs=2)",
    "sick": "def build(): return program(20, 'logistic', 'glorot_normal')",  # S103, and G101 that follows from it
    "curable": "def build(): return program(20, 'relu', lambda w: w.normal_(0, 0.01, generator=draw))",
    "validated": "def build(): return program(2, 'selu', epochs=9, valid=(x, (y + 1) % 3))",
    "bad": "def build(): return program(2, 'selu', data=None)",
}
STAGES = [f"hidden{i}" for i in range(1, 21)] + ["output"]


@pytest.fixture
def target(tmp_path):
    """Writes one of PROGRAMS to a file and returns how the command is to be told of it."""

    def make(kind: str, comment: str = "") -> str:
        path = tmp_path / f"{kind}.py"
        path.write_text(f"{PARTS}{comment}\n{PROGRAMS[kind]}\n", encoding="utf-8")
        return f"{path}:build"

    return make


@pytest.fixture(autouse=True)
def wide_and_plain(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def call(*arguments: str):
    """A command in this process, the process's random state put back."""
    return quiet(lambda: CliRunner().invoke(app, list(arguments)))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, as the user would start it."""
    return subprocess.run(
        [sys.executable, "-m", "gainstage", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def strict(text: str) -> Any:
    """Parse JSON as RFC 8259 has it: no NaN, no Infinity, nothing before or behind."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def is_one_sentence(text: str) -> bool:
    """True for what bad input may leave on standard error."""
    return bool(re.fullmatch(r"gainstage: [^\n]+\n", text)) and "Traceback" not in text


def codes(result) -> set[str]:
    """Codes in a checkup that was written as JSON, consequences included."""

    def of(findings: list[dict[str, Any]]) -> list[str]:
        return [code for f in findings for code in (f["code"], *of(f["consequences"]))]

    return set(of(strict(result.stdout)["findings"]))


# ---------------------------------------------------------------- processes of their own
@pytest.mark.parametrize(("kind", "exit_code"), [("healthy", 0), ("sick", 1)])
def test_check_ends_with_its_verdict_as_exit_code(target, kind, exit_code):
    process = run("check", target(kind))
    assert (process.returncode, process.stderr) == (exit_code, "")
    assert "measured on 128 samples" in process.stdout
    assert "\x1b" not in process.stdout


def test_check_of_bad_input_ends_with_exit_code_2_and_one_sentence(target):
    process = run("check", target("bad"))
    assert (process.returncode, process.stdout) == (2, "")
    assert is_one_sentence(process.stderr)


IMPORTS_TORCH = """
import contextlib, io, sys
from gainstage.cli.main import app

shown = io.StringIO()
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
    app({arguments}, prog_name="gainstage")
assert "check" in shown.getvalue(), "the help was not shown"
sys.exit(77 if "torch" in sys.modules else 0)
"""


def imports_torch(arguments: list[str], before: str = "") -> bool:
    """True when a command has loaded torch by the time that it ends."""
    code = before + IMPORTS_TORCH.format(arguments=arguments)
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode in (0, 77), process.stderr
    return process.returncode == 77


@pytest.mark.parametrize("arguments", [["--help"], ["check", "--help"], []])
def test_help_does_not_load_torch(arguments):
    assert not imports_torch(arguments)


def test_it_is_noticed_when_torch_is_loaded():
    assert imports_torch(["--help"], before="import torch")


# ---------------------------------------------------------------- check
@pytest.mark.parametrize("width", [80, 120])
def test_check_shows_every_code_and_stage_within_the_width(target, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    path = target("sick")
    text = call("check", path).stdout
    assert max(len(line) for line in text.splitlines()) <= width
    for name in [*codes(call("check", path, "--json")), *STAGES]:
        assert re.search(rf"\b{name}\b", text)


def test_check_as_json_holds_ledger_and_findings(target):
    result = call("check", target("sick"), "--json")
    assert result.exit_code == 1
    assert codes(result) == {"S103", "G101"}
    assert [stage["name"] for stage in strict(result.stdout)["ledger"]["stages"]] == STAGES


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": -Infinity}', '{"a": 1} done', ""])
def test_what_is_not_strict_json_is_noticed(text):
    with pytest.raises(ValueError):
        strict(text)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--select", "G"], {"G101"}),
        (["--select", "S1,G101"], {"S103", "G101"}),
        (["--select", "vanishing-gradient"], {"G101"}),
        (["--select", "s103"], {"S103"}),
        (["--select", "I"], set()),
        (["--ignore", "G"], {"S103"}),
        (["--ignore", "G101, S103"], set()),
        (["--select", "S,G", "--ignore", "S103"], {"G101"}),
    ],
)
def test_rules_are_selected_and_ignored(target, options, left):
    result = call("check", target("sick"), "--json", *options)
    assert codes(result) == left
    assert result.exit_code == bool(left)


@pytest.mark.parametrize(
    ("comment", "left"),
    [
        ("# gainstage: ignore[S103]", {"G101"}),
        ("# gainstage: ignore[S103, G101]", set()),
        ("# gainstage: ignore[I101]", {"S103", "G101"}),
    ],
)
def test_rules_are_ignored_by_a_comment_in_the_file(target, comment, left):
    result = call("check", target("sick", comment), "--json")
    assert codes(result) == left
    assert result.exit_code == bool(left)


@pytest.mark.parametrize("selection", ["", ","])
def test_an_empty_selection_is_refused(target, selection):
    assert call("check", target("sick"), "--select", selection).exit_code == 2


def test_a_static_check_measures_nothing(target):
    result = call("check", target("sick"), "--level", "static", "--json")
    assert (result.exit_code, strict(result.stdout)["ledger"]) == (0, None)
    stages = strict(result.stdout)["prediction"]["stages"]
    assert [stage["name"] for stage in stages] == STAGES
    assert "gain" not in stages[0], "theory instead"
    text = call("check", target("sick"), "--level", "static").stdout
    assert "theory for random weights" in text
    assert all(name in text for name in STAGES)


def test_a_check_that_measures_predicts_nothing_beside_it(target):
    result = strict(call("check", target("sick"), "--json").stdout)
    assert result["prediction"] is None
    assert [stage["name"] for stage in result["ledger"]["stages"]] == STAGES


def test_the_seed_decides_on_the_measured_samples(target, tmp_path):
    big = target("healthy", "x, y = x.repeat(4, 1) + torch.randn(512, 20, generator=draw), y.repeat(4)")
    losses = [strict(call("check", big, "--seed", seed, "--json").stdout)["ledger"]["loss"] for seed in "112"]
    assert losses[0] == losses[1] != losses[2]


BAD = {
    "an unknown rule is selected": (["--select", "X9"], "no rule is called 'X9'; known are: G101"),
    "an unknown rule is ignored": (["--ignore", "X9"], "no rule is called 'X9'"),
    "an unknown level": (["--level", "deep"], "no level is called 'deep'; known are: static, preflight, trial"),
    "the level of a whole run": (["--level", "run"], "no level is called 'run'"),
}


@pytest.mark.parametrize(("options", "phrase"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("command", ["check", "fix"])
def test_bad_options_are_refused_in_one_sentence(target, command, options, phrase):
    result = call(command, target("healthy"), *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert is_one_sentence(result.stderr)
    assert phrase in result.stderr


@pytest.mark.parametrize("command", ["check", "fix", "train"])
@pytest.mark.parametrize("kind", ["bad", "missing"])
def test_every_command_refuses_a_bad_program_in_one_sentence(target, command, kind):
    result = call(command, target(kind) if kind == "bad" else "missing.py:build")
    assert (result.exit_code, result.stdout) == (2, "")
    assert is_one_sentence(result.stderr)


def test_an_unknown_rule_in_a_comment_is_refused(target):
    result = call("check", target("healthy", "# gainstage: ignore[X9]"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no rule is called 'X9'" in result.stderr


@pytest.mark.parametrize(
    "text", ["", "gainstage: a\ngainstage: b\n", "Traceback (most recent call last):\n", "gainstage: Traceback of it\n"]
)
def test_what_is_not_one_sentence_is_noticed(text):
    assert not is_one_sentence(text)


@pytest.mark.parametrize("arguments", [["check"], ["explain"], ["listen"], ["check", "a.py", "--seed", "x"]])
def test_a_wrong_call_shows_the_usage(arguments):
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: ")


# ---------------------------------------------------------------- fix
def test_fix_of_a_healthy_program_changes_nothing(target):
    result = call("fix", target("healthy"), "--diff")
    assert (result.exit_code, result.stdout.strip()) == (0, "nothing to fix: no rule fired")


def test_fix_leaves_alone_what_a_comment_in_the_file_ignores(target):
    result = call("fix", target("sick", "# gainstage: ignore[S103, G101]"), "--unsafe")
    assert (result.exit_code, result.stdout.strip()) == (0, "nothing to fix: no rule fired")


def test_fix_cures_saves_and_shows_what_changed(target, tmp_path):
    saved = tmp_path / "repaired.safetensors"
    result = call("fix", target("curable"), "--diff", "--save", str(saved))
    assert result.exit_code == 0
    assert "cured: no rule fires any more" in result.stdout
    sizes = dict(re.findall(r"^([+-])hidden20: .*weight rms (\S+)$", result.stdout, re.MULTILINE))
    assert float(sizes["-"]) == pytest.approx(0.01, rel=0.1)
    model = deep(20, "relu", normal_weights(1.0), width=32)
    load_weights(model, saved)
    assert float(sizes["+"]) == pytest.approx(model.hidden20.weight.std().item(), rel=0.1)


def test_fix_without_unsafe_says_what_it_did_not_try(target):
    result = call("fix", target("sick"))
    assert result.exit_code == 1
    assert "unsafe remedies not tried: allow with unsafe=True (--unsafe)" in result.stdout


def test_fix_with_unsafe_may_change_the_activation(target):
    result = call("fix", target("sick"), "--unsafe", "--json")
    assert result.exit_code == 0
    report = strict(result.stdout)
    assert [attempt["remedy"] for attempt in report["attempts"] if attempt["kept"]] == ["use-selu"]
    assert report["after"]["findings"] == []


def test_fix_refuses_a_place_that_cannot_be_written(target, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    result = call("fix", target("curable"), "--save", str(tmp_path / "file" / "weights.safetensors"))
    assert result.exit_code == 2
    assert is_one_sentence(result.stderr)


# ---------------------------------------------------------------- train
def test_train_writes_a_run(target, tmp_path):
    folder = tmp_path / "run"
    result = call("train", target("healthy"), "--folder", str(folder))
    assert result.exit_code == 0
    assert "trained 2 epochs" in result.stdout
    assert "epoch 2/2" in result.stderr
    named = re.search(rf"written to {re.escape(str(folder))}: (.*)", result.stdout)
    assert named is not None
    assert sorted(named[1].split(", ")) == sorted(path.name for path in folder.iterdir())


def test_train_as_json_keeps_progress_off_standard_output(target):
    result = call("train", target("healthy"), "--epochs", "3", "--json")
    assert len(strict(result.stdout)["history"]) == 3
    assert "epoch 3/3" in result.stderr


def test_train_options_reach_the_training(target):
    report = strict(call("train", target("validated"), "--patience", "2", "--optimizer", "sgd", "--json").stdout)
    assert report["stopped"] == "no lower validation loss for 2 epochs"
    assert report["history"][0]["learning_rate"] == 0.01


def test_train_with_the_same_seed_gives_the_same_losses(target):
    path = target("healthy")
    losses = [
        [row["train_loss"] for row in strict(call("train", path, "--seed", seed, "--json").stdout)["history"]]
        for seed in "112"
    ]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        (["--epochs", "0"], "epochs must be a whole number of at least 1, got 0"),
        (["--batch-size", "-1"], "batch_size must be a whole number of at least 1, got -1"),
        (["--optimizer", "magic"], "no optimiser is called 'magic'; known are: sgd"),
        (["--patience", "2"], "needs validation data"),
    ],
)
def test_train_refuses_bad_options_in_one_sentence(target, options, phrase):
    result = call("train", target("healthy"), *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert is_one_sentence(result.stderr)
    assert phrase in result.stderr


def test_train_refuses_a_folder_that_cannot_be_written(target, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    result = call("train", target("healthy"), "--folder", str(tmp_path / "file"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert is_one_sentence(result.stderr)


# ---------------------------------------------------------------- rules, explain, demo
def test_rules_lists_every_rule():
    text, records = call("rules").stdout, strict(call("rules", "--json").stdout)
    assert [record["code"] for record in records] == sorted(REGISTRY)
    assert all(re.search(rf"^{code} ", text, re.MULTILINE) for code in REGISTRY)


@pytest.mark.parametrize("asked", ["G101", "g101", "vanishing-gradient"])
def test_explain_knows_a_rule_by_code_and_name(asked):
    assert call("explain", asked).stdout.startswith("G101 vanishing-gradient\n")
    record = strict(call("explain", asked, "--json").stdout)
    assert (record["code"], list(record["sections"])) == ("G101", ["", *HEADINGS])


@pytest.mark.parametrize("arguments", [["explain", "X9"], ["explain", "X9", "--json"]])
def test_explain_of_an_unknown_rule_lists_the_known_ones(arguments):
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert is_one_sentence(result.stderr)
    assert all(code in result.stderr for code in REGISTRY)


# ---------------------------------------------------------------- plot
def test_plot_draws_activations_as_text():
    process = run("plot", "activation", "selu", "huge-leaky-relu", "--range", "-4", "2.5")
    assert (process.returncode, process.stderr) == (0, "")
    assert re.findall(r"^[a-z].*$", process.stdout, re.MULTILINE) == ["selu", "leaky_relu(0.2)"]
    assert len(re.findall(r"^ +-4 +z +2.5$", process.stdout, re.MULTILINE)) == 2
    assert "\x1b" not in process.stdout
    assert not re.search(r" $", process.stdout, re.MULTILINE)


@pytest.mark.parametrize(("name", "opening"), [("plot.svg", b"<svg "), ("plot.PNG", b"\x89PNG")])
def test_plot_writes_a_picture(tmp_path, name, opening):
    result = call("plot", "activation", "selu", "elu", "--out", str(tmp_path / name))
    assert (result.exit_code, result.stdout) == (0, f"written to {tmp_path / name}\n")
    assert (tmp_path / name).read_bytes().startswith(opening)


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["softmin"], "no activation is called 'softmin'; known are: celu"),
        (["selu", "softmax"], "softmax is not one function of one number"),
        (["selu", "--range", "5", "5"], "from a lower to a higher finite number, got 5 to 5"),
        (["selu", "--range", "5", "-5"], "got 5 to -5"),
        (["selu", "--range", "nan", "1"], "got nan to 1"),
        (["selu", "--out", "plot.pdf"], "written as SVG or PNG, not to 'plot.pdf'"),
        (["softmin", "--out", "plot"], "written as SVG or PNG, not to 'plot'"),
        (["selu", "--out", "missing/plot.svg"], "missing/plot.svg cannot be written"),
    ],
)
def test_plot_refuses_bad_input_in_one_sentence(arguments, phrase):
    result = call("plot", "activation", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert is_one_sentence(result.stderr)
    assert phrase in result.stderr


def test_plot_without_the_extra_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "altair", None)
    result = call("plot", "activation", "selu", "--out", str(tmp_path / "plot.svg"))
    assert result.exit_code == 2
    assert is_one_sentence(result.stderr)
    assert "pip install 'gainstage[report]'" in result.stderr
    assert call("plot", "activation", "selu").exit_code == 0, "the terminal needs no extra"


def test_demo_refuses_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    result = call("demo", "--folder", str(tmp_path / "file" / "demo"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert is_one_sentence(result.stderr)


def test_every_command_has_help():
    listed = re.findall(r"^  ([a-z]+)  ", call("--help").stdout.partition("Commands:")[2], re.MULTILINE)
    assert {"check", "fix", "train", "rules", "explain", "plot", "demo"} <= set(listed)
    for name in listed:
        assert call(name, "--help").exit_code == 0
