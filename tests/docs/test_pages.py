"""Every snippet of the documentation runs as it stands."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import gainstage as gs

ROOT = Path(__file__).resolve().parent.parent.parent


def snippets(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.draws
def test_the_chapter_line_by_line_runs_from_top_to_bottom(capsys):
    names = {"gs": gs, "nn": nn, "torch": torch}
    found = snippets("docs/chapter.md")
    assert len(found) >= 12
    for snippet in found:
        exec(snippet, names)
    assert isinstance(names["activation"], nn.RReLU)
    assert names["norm"].momentum == pytest.approx(0.01)
    assert isinstance(names["model"][1], nn.BatchNorm1d)
    assert len(names["deep"]) == 201


@pytest.mark.draws
def test_the_six_lines_of_the_readme_run(capsys):
    names = {}
    exec(snippets("README.md")[0], names)
    text = capsys.readouterr().out
    assert "G101" in text
    assert "use-selu" in text
    assert names["run"].history
