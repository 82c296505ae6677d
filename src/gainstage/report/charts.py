"""Curves of activations as pictures: Vega-Altair charts, written by vl-convert without a display or a browser."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from gainstage.errors import BadInput, MissingExtra
from gainstage.report.plots import Curve

ENDINGS = (".svg", ".png")
ACROSS = 3  # panels in a row
WIDTH, HEIGHT = 300, 240  # pixels of a panel
MARGIN = 0.04  # of the height, above and below the curve
SHARPNESS = 2  # pixels of a PNG for each pixel of the chart
LINES = {"f(z)": ("#1f5fa8", [1, 0]), "f'(z)": ("#d95f02", [6, 4])}  # colour and dashes; told apart without colour too
SATURATED = "saturated: |f'| below 5 % of its maximum"


def check_ending(path: Path) -> None:
    """BadInput for a file that is neither SVG nor PNG."""
    if path.suffix.lower() not in ENDINGS:
        raise BadInput(f"a plot is written as SVG or PNG, not to {path.name!r}; end the name in .svg or .png")


def save_chart(curves: Sequence[Curve], path: Path) -> None:
    """Write one panel a curve to an SVG or PNG file, the kind told by its ending.

    Raises BadInput for another ending and for a place that cannot be written; MissingExtra without the extra `report`.
    """
    check_ending(path)
    figure = chart(curves)
    try:
        figure.save(str(path), format=path.suffix.lower().lstrip("."), scale_factor=SHARPNESS)
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror}); choose another place") from error


def chart(curves: Sequence[Curve]) -> Any:
    """An Altair chart, one panel a curve: f solid, f' dashed, saturation shaded."""
    alt = _altair()
    panels = [_panel(alt, curve) for curve in curves]
    return (
        alt.concat(*panels, columns=min(ACROSS, len(panels)))
        .configure_view(stroke=None)
        .configure_legend(
            orient="bottom", title=None, labelLimit=0, labelFontSize=12, symbolSize=400, symbolStrokeWidth=2
        )
        .configure_axis(
            gridColor="#e8e8e8", labelFontSize=11, titleFontSize=12, titleFontWeight="normal", labelFlush=False
        )
        .configure_title(fontSize=14)
    )


def _altair() -> Any:
    try:
        import_module("vl_convert")
        return import_module("altair")
    except ModuleNotFoundError as error:
        raise MissingExtra("Vega-Altair with vl-convert", "report") from error


def _panel(alt: Any, curve: Curve) -> Any:
    layers = [_shade(alt, curve), _axes(alt, curve), _lines(alt, curve)]
    return alt.layer(*layers).properties(title=curve.name, width=WIDTH, height=HEIGHT)


def _shade(alt: Any, curve: Curve) -> Any:
    regions = [{"from": start, "to": end, "region": SATURATED} for start, end in curve.saturated]
    fill = alt.Fill("region:N", title=None, scale=alt.Scale(domain=[SATURATED], range=["#9a9a9a"]))
    x = alt.X("from:Q", scale=_scale(alt, float(curve.z[0]), float(curve.z[-1])))
    return alt.Chart(alt.Data(values=regions)).mark_rect(opacity=0.25).encode(x=x, x2="to:Q", fill=fill)


def _axes(alt: Any, curve: Curve) -> Any:
    """Thin lines through zero."""
    across = alt.Chart(alt.Data(values=[{}])).mark_rule(color="#888888", strokeWidth=1, clip=True)
    return alt.layer(across.encode(x=alt.datum(0)), across.encode(y=alt.datum(0)))


def _lines(alt: Any, curve: Curve) -> Any:
    numbers = {"f(z)": curve.value.tolist(), "f'(z)": curve.slope.tolist()}
    rows = [
        {"z": z, "y": y, "line": line}
        for line, values in numbers.items()
        for z, y in zip(curve.z.tolist(), values, strict=True)
    ]
    colours, dashes = zip(*LINES.values(), strict=True)
    names, room = list(LINES), MARGIN * (curve.high - curve.low)
    return (
        alt.Chart(alt.Data(values=rows))
        .mark_line(strokeWidth=2, clip=True)
        .encode(
            x=alt.X("z:Q", title="z", scale=_scale(alt, float(curve.z[0]), float(curve.z[-1]))),
            y=alt.Y("y:Q", title="f(z) and f'(z)", scale=_scale(alt, curve.low - room, curve.high + room)),
            color=alt.Color("line:N", title=None, scale=alt.Scale(domain=names, range=list(colours))),
            strokeDash=alt.StrokeDash("line:N", title=None, scale=alt.Scale(domain=names, range=list(dashes))),
        )
    )


def _scale(alt: Any, low: float, high: float) -> Any:
    return alt.Scale(domain=[low, high], nice=False, zero=False)
