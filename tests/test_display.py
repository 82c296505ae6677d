"""Results show themselves: as text, as HTML, on a console, and as strict JSON."""

import io
import json
import math
from dataclasses import dataclass, field

import pytest
from rich.console import Console
from rich.text import Text

from gainstage import display
from gainstage.display import Displayed, render


@dataclass
class Reading(Displayed):
    """A result of ours, with a drawing of ours."""

    facts: dict = field(default_factory=dict)

    def to_dict(self):
        return self.facts


class Undrawn(Displayed):
    pass


@render.register
def _(result: Reading, width: int) -> Text:
    return Text(f"reading in {width} columns", style="bold red")


def strict(text):
    """Parse JSON as RFC 8259 has it: without Infinity and NaN."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_text_is_plain():
    text = str(Reading())
    assert text.startswith("reading in ")
    assert "\x1b" not in text


def test_html_carries_the_colours_in_itself():
    page = Reading()._repr_html_()
    assert page.startswith("<pre")
    assert "reading in 120 columns" in page
    assert "color: #800000" in page


def test_a_console_draws_in_its_own_width():
    console = Console(file=io.StringIO(), width=57)
    console.print(Reading())
    assert console.file.getvalue() == "reading in 57 columns\n"


def test_a_console_loads_the_drawings_first(monkeypatch):
    """A result can be printed by who never imported the reports."""
    loaded = []
    monkeypatch.setattr(display, "import_module", loaded.append)
    Console(file=io.StringIO()).print(Reading())
    assert loaded == ["gainstage.report"]


def test_what_nobody_can_draw_is_named():
    with pytest.raises(TypeError, match="nothing knows how to draw a Undrawn"):
        render(Undrawn(), 80)


def test_a_result_without_facts_has_no_json():
    with pytest.raises(NotImplementedError):
        Undrawn().to_json()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "nan"),
        (1.5, 1.5),
        (None, None),
        (True, True),
        ((1, (2.0, math.inf)), [1, [2.0, "inf"]]),
        ({3: {"deep": [math.nan]}}, {"3": {"deep": ["nan"]}}),
    ],
)
def test_json_is_strict(value, expected):
    assert strict(Reading({"value": value}).to_json()) == {"value": expected}


def test_the_parser_of_these_tests_is_strict():
    with pytest.raises(ValueError, match="Infinity is not JSON"):
        strict(json.dumps({"value": math.inf}))


def test_json_can_be_one_line():
    assert Reading({"a": 1, "b": [2]}).to_json(indent=None) == '{"a": 1, "b": [2]}'
    assert Reading({"a": 1}).to_json() == '{\n  "a": 1\n}'
