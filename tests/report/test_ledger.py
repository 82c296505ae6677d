"""The ledger as a table: golden texts at two widths, its two ends when it is long, and nothing that sticks out."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from gainstage.report import to_text
from gainstage.signal import Attention, Branch, Ledger, Place, Row

WIDTHS = (80, 120)

QUANTITIES = {
    "signal": 0.5, "offset": 0.25, "similarity": 0.125, "gain": 0.24, "expected_gain": 0.25, "gradient": 0.001,
    "backward_gain": 2.0, "expected_backward_gain": 1.5, "dead": 0.43, "saturated": 0.005, "weight": 0.1,
    "weight_gradient": 0.00191,
}  # fmt: skip
NARROW = """\
3 stages: 2 x linear + relu, linear
        signal offset  simi-          gain theory      satu-
stage       dB     dB larity    ratio (dB)     dB dead rated
(input)    0.0   -inf      –             –      –    –     –
hidden1   -6.0  -12.0  0.125 x0.24 (-12.4)  -12.0  43%  0.5%
hidden2   -6.0  -12.0  0.125 x0.24 (-12.4)  -12.0  43%  0.5%
output       –      –      –             –      –    –     –
        gradient  back gain theory weight its gra-
stage         dB ratio (dB)     dB    RMS    dient
(input)        –          –      –      –        –
hidden1    -60.0  x2 (+6.0)   +3.5    0.1  0.00191
hidden2    -60.0  x2 (+6.0)   +3.5    0.1  0.00191
output         –          –      –      –        –
dB = 20 log10(RMS); gain = out over in; theory = expected for the level that
came in; – not observed
not understood: einsum in hidden2"""
WIDE = """\
3 stages: 2 x linear + relu, linear
        signal offset  simi-          gain theory      satu- gradient  back gain theory weight its gra-
stage       dB     dB larity    ratio (dB)     dB dead rated       dB ratio (dB)     dB    RMS    dient
(input)    0.0   -inf      –             –      –    –     –        –          –      –      –        –
hidden1   -6.0  -12.0  0.125 x0.24 (-12.4)  -12.0  43%  0.5%    -60.0  x2 (+6.0)   +3.5    0.1  0.00191
hidden2   -6.0  -12.0  0.125 x0.24 (-12.4)  -12.0  43%  0.5%    -60.0  x2 (+6.0)   +3.5    0.1  0.00191
output       –      –      –             –      –    –     –        –          –      –      –        –
dB = 20 log10(RMS); gain = out over in; theory = expected for the level that came in; – not observed
not understood: einsum in hidden2"""


def row(index: int, name: str | None = None, description: str = "linear + relu", **quantities: float) -> Row:
    return Row(index, name or f"hidden{index + 1}", description, 8, **quantities)


def ledger(*rows: Row, unknown: tuple[str, ...] = ()) -> Ledger:
    source = Row(-1, "(input)", "", 20, signal=1.0, offset=0.0)
    return Ledger(rows, source, 64, 1.0, "5 of 6 operations understood", unknown)


def small() -> Ledger:
    rows = (row(0, **QUANTITIES), row(1, **QUANTITIES), row(2, "output", "linear"))
    return ledger(*rows, unknown=("einsum in hidden2",))


def long(stages: int) -> Ledger:
    return ledger(*(row(i, **QUANTITIES) for i in range(stages)))


def widest(text: str) -> int:
    return max(len(line) for line in text.splitlines())


def shown(text: str) -> list[str]:
    """First words of the lines that show a stage."""
    return re.findall(r"^(hidden\d+|…|\(input\)) ", text, flags=re.MULTILINE)


def coloured(result: Ledger) -> str:
    """What a terminal gets."""
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=120, no_color=False)
    console.print(result)
    return console.file.getvalue()


def stripped(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize(("width", "golden"), [(80, NARROW), (120, WIDE)])
def test_a_small_ledger_is_written_as_expected(width, golden):
    assert stripped(to_text(small(), width)) == golden


def test_the_golden_text_depends_on_the_numbers():
    changed = ledger(row(0, **{**QUANTITIES, "signal": 0.51}), row(1), row(2, "output", "linear"))
    assert stripped(to_text(changed, 80)) != NARROW


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("stages", [1, 20, 200])
def test_no_line_is_wider_than_the_screen(width, stages):
    assert widest(to_text(long(stages), width)) <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_a_long_name_of_a_stage_keeps_its_end_and_the_width(width):
    text = to_text(ledger(row(0, "encoder.layers.11.attention.out_projection", **QUANTITIES)), width)
    shown = next(line.split()[0] for line in text.splitlines() if "projection" in line)
    assert shown == "encoder.layers.11.attention.out_projection" or (
        shown[0] == "…" and shown.endswith("out_projection")
    )
    assert widest(text) <= width


def test_the_width_of_a_line_that_sticks_out_is_noticed():
    assert widest("short\n" + "x" * 81) == 81


def test_plain_text_holds_no_colour_codes():
    assert "\x1b" not in to_text(small(), 80)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_stage_of_a_ledger_that_fits_is_shown(width):
    names = [f"hidden{i}" for i in range(1, 60)]  # with the input 60 rows, the most that are shown
    panes = 2 if width == 80 else 1
    assert shown(to_text(long(59), width)) == ["(input)", *names] * panes


@pytest.mark.parametrize("width", WIDTHS)
def test_a_ledger_of_200_stages_is_shown_by_its_two_ends(width):
    first, last = [f"hidden{i}" for i in range(1, 30)], [f"hidden{i}" for i in range(171, 201)]
    panes = 2 if width == 80 else 1
    assert shown(to_text(long(200), width)) == ["(input)", *first, "…", *last] * panes


def test_the_number_of_stages_counts_those_that_are_not_shown():
    assert to_text(long(200), 80).startswith("200 stages: 200 x linear + relu\n")


def test_what_was_not_observed_is_a_dash_in_every_column():
    line = to_text(ledger(row(0)), 120).splitlines()[4]
    assert line.split() == ["hidden1", *["–"] * 12]


def test_a_network_of_many_kinds_of_stages_is_outlined_by_its_two_ends():
    rows = [row(i, description=f"kind{i}") for i in range(12)]
    text = to_text(ledger(*rows), 120)
    assert text.startswith("12 stages: kind0, kind1, kind2, kind3, …, kind9, kind10, kind11\n")


def test_a_network_input_without_numbers_takes_no_line():
    assert "(input)" not in to_text(Ledger((row(0),), None, 64, 1.0, ""), 80)


def test_operations_that_were_not_understood_are_named_only_where_there_are_any():
    assert "not understood: einsum in hidden2" in to_text(small(), 80)
    assert "not understood" not in to_text(long(3), 80)


@pytest.mark.parametrize("name", ["<b>", "a[0]", "a & b", "[bold]x", "[/red]", ":smile:"])
def test_the_name_of_a_stage_is_shown_as_it_is(name):
    assert f"\n{name} " in to_text(ledger(row(0, name, **QUANTITIES)), 120)


@pytest.mark.parametrize(
    ("gain", "colour"), [(1.0, "32"), (1.1, "32"), (0.6, "33"), (1.9, "33"), (0.4, "31"), (9.0, "31"), (0.0, "31")]
)
def test_a_gain_is_coloured_by_its_distance_from_unity(gain, colour):
    assert f"\x1b[{colour}m" in coloured(ledger(row(0, gain=gain)))
    assert not re.search(r"\x1b\[3\dm", coloured(ledger(row(0))))


@pytest.mark.parametrize("quantity", ["dead", "saturated"])
@pytest.mark.parametrize(("share", "colour"), [(0.1, None), (0.2, "33"), (0.49, "33"), (0.5, "31"), (1.0, "31")])
def test_a_large_share_of_lost_units_is_coloured(quantity, share, colour):
    found = re.findall(r"\x1b\[(3\d)m", coloured(ledger(row(0, **{quantity: share}))))
    assert found == ([] if colour is None else [colour])


@pytest.mark.parametrize("width", [80, 118, 120, 140])
def test_no_number_is_cut_however_small_it_is(width):
    small = dict.fromkeys(QUANTITIES, 1.23e-11) | {"gain": 0.0214, "expected_gain": 0.0214, "backward_gain": 0.0214}
    rows = (row(0, "encoder.layers.11.attention.out_projection", **small), row(1, **small))
    lines = to_text(ledger(*rows), width).splitlines()
    assert not [line for line in lines if "…" in line.removeprefix("…")]


def test_branches_and_attention_stand_below_the_table_where_there_are_any():
    branches = (Branch("blocks.0.out", 0.5, 1.0), Branch("blocks.1.out", 0.1, 0.0))
    attention = (Attention("blocks.0.qkv", "", (1.0, 2.0), (0.25, 0.75), (3.0, 7.5), (1.0, 1.0)),)
    text = to_text(replace(small(), branches=branches, attention=attention), 80)
    assert re.search(r"blocks.0.out +-6.0 +0.0 +-6.0\n", text)
    assert re.search(r"blocks.1.out +-20.0 +-inf +–\n", text)
    assert re.search(r"blocks.0.qkv +2 +25% +50% +7.5\n", text)
    assert widest(text) <= 80
    many = to_text(replace(small(), branches=branches * 100, attention=attention * 100), 80)
    assert many.count("blocks.0.out") == 30
    assert not any(word in to_text(small(), 80) for word in ("residual", "attention", "first not finite"))


def test_attention_that_could_not_be_worked_out_is_a_dash():
    lost = Attention("mix", "", (None,), (None,), (None,), (None,))
    assert re.search(r"mix +1 +– +– +–\n", to_text(replace(small(), attention=(lost,)), 80))


def test_the_first_place_that_is_not_finite_is_told():
    place = Place("backward", "sqrt", "norm", 2, sample=7)
    assert "first not finite: the gradient of sqrt in norm (call 2), sample 7" in to_text(
        replace(small(), non_finite=place), 80
    )
