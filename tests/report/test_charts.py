"""Charts of activations: the lines are where the functions are, both kinds of file, and what happens without the extra."""

import re
import struct
import subprocess
import sys
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest

from gainstage.errors import BadInput, MissingExtra
from gainstage.nn.activations import pointwise
from gainstage.report.charts import HEIGHT, LINES, MARGIN, SATURATED, SHARPNESS, WIDTH, save_chart
from gainstage.report.plots import curve_of

NAMES = ("selu", "logistic", "relu6", "identity")
SOLID, DASHED = LINES["f(z)"][0], LINES["f'(z)"][0]


def curves(*names, low=-5.0, high=7.0):
    return [curve_of(pointwise(name), low, high) for name in names]


def svg(path, *names, **bounds):
    """The SVG of a chart, as a tree."""
    save_chart(curves(*names, **bounds), path)
    return ElementTree.parse(path).getroot()


def lines(root, colour):
    """The lines of a colour in order of the panels: pixels of shape (points, 2), across and down."""
    found = [
        node.get("d", "")
        for node in root.iter()
        if node.get("stroke") == colour and node.get("aria-roledescription") == "line mark"
    ]
    return [np.array(re.findall(r"(-?[\d.e-]+),(-?[\d.e-]+)", text), dtype=float) for text in found]


def off(root, curve, panel, colour, values):
    """How far the line of a panel is from `values`, in pixels."""
    room = MARGIN * (curve.high - curve.low)
    x, y = lines(root, colour)[panel].T
    z = float(curve.z[0]) + x / WIDTH * float(curve.z[-1] - curve.z[0])
    exact = np.interp(z, curve.z.numpy(), values.numpy())
    return np.abs((curve.high + room - exact) / (curve.high - curve.low + 2 * room) * HEIGHT - y).max()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return svg(tmp_path_factory.mktemp("charts") / "chart.svg", *NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_lines_are_where_the_function_and_its_derivative_are(drawn, name):
    (curve,), panel = curves(name), NAMES.index(name)
    assert off(drawn, curve, panel, SOLID, curve.value) < 0.1
    assert off(drawn, curve, panel, DASHED, curve.slope) < 0.1
    assert len(lines(drawn, SOLID)) == len(lines(drawn, DASHED)) == len(NAMES)


def test_a_line_of_another_function_is_noticed(drawn):
    (curve,) = curves("selu")
    assert off(drawn, curve, 0, SOLID, curve.slope) > 10
    assert off(drawn, curve, 1, SOLID, curve.value) > 10


def test_the_derivative_is_dashed_and_the_function_is_not(drawn):
    dashes = {node.get("stroke"): node.get("stroke-dasharray") for node in drawn.iter() if node.get("stroke")}
    assert (dashes[SOLID], dashes[DASHED]) == ("1,0", "6,4")


def test_saturation_is_shaded(drawn):
    shaded = [
        tuple(float(number) for number in re.findall(r"^M(-?[\d.]+),0h([\d.]+)v240h", node.get("d", ""))[0])
        for node in drawn.iter()
        if node.get("aria-roledescription") == "rect mark"
    ]
    expected = [
        ((start + 5) / 12 * WIDTH, (end - start) / 12 * WIDTH)
        for curve in curves(*NAMES)
        for start, end in curve.saturated
    ]
    assert shaded == [pytest.approx(pair, abs=0.01) for pair in expected]
    assert len(shaded) == 1 + 2 + 2 + 0


def test_panels_axes_and_the_legend_are_named(drawn):
    texts = [node.text for node in drawn.iter() if node.tag.endswith("text")]
    assert [text for text in texts if text in NAMES] == list(NAMES)
    assert texts.count("z") == texts.count("f(z) and f'(z)") == len(NAMES)
    assert all(texts.count(text) == 1 for text in (*LINES, SATURATED)), "one legend for all panels"


def test_a_range_without_zero_stays_inside_the_panel(tmp_path):
    root = svg(tmp_path / "chart.svg", "relu", low=1.0, high=5.0)
    (line,) = lines(root, SOLID)
    assert (line[:, 0].min(), line[:, 0].max()) == (0, WIDTH)
    axes = [group for group in root.iter() if any(node.get("stroke") == "#888888" for node in group)]
    assert len(axes) == 2
    assert all("clip-path" in group.attrib for group in axes), "the axis through zero lies outside"


def test_a_png_is_a_sharper_picture_of_the_same_size(tmp_path):
    root, path = svg(tmp_path / "chart.svg", "selu", "elu"), tmp_path / "chart.PNG"
    save_chart(curves("selu", "elu"), path)
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert (width, height) == (int(root.attrib["width"]) * SHARPNESS, int(root.attrib["height"]) * SHARPNESS)
    assert len(set(pixels(content))) > 50, "it is not empty"


def pixels(content: bytes) -> bytes:
    """The filtered bytes of a PNG; its chunks are length, name, content and checksum."""
    data, place = b"", 8
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        name, chunk = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack(">I", content[place + 8 + length : place + 12 + length])
        assert checksum == zlib.crc32(name + chunk)
        data += chunk if name == b"IDAT" else b""
        place += 12 + length
    return zlib.decompress(data)


@pytest.mark.parametrize("name", ["chart.pdf", "chart", "svg", ".png"])
def test_another_ending_is_refused(tmp_path, name):
    with pytest.raises(BadInput, match=r"written as SVG or PNG, not to .*; end the name in \.svg or \.png"):
        save_chart(curves("selu"), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["missing/chart.svg", "file/chart.png", "folder.svg"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(BadInput, match=r"cannot be written \(.+\); choose another place"):
        save_chart(curves("selu"), tmp_path / name)


@pytest.mark.parametrize("package", ["altair", "vl_convert"])
def test_a_missing_extra_says_what_to_install(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"pip install 'gainstage\[report\]'"):
        save_chart(curves("selu"), tmp_path / "chart.svg")


@pytest.mark.parametrize("used", [False, True])
def test_altair_is_imported_only_where_a_chart_is_drawn(used):
    code = "import sys; from gainstage.report import charts; import gainstage.cli.main; "
    code += ("charts.chart([]); " if used else "") + "print('altair' in sys.modules, 'vl_convert' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.stdout.split() == [str(used)] * 2
