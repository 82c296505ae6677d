"""How result objects show themselves, without knowing who draws them.

Results (a checkup, a fix, a run) are plain facts and stand above the room that renders them. They
inherit `Displayed`; `gainstage.report` registers one `render` function a result class.
"""

from __future__ import annotations

import json
import math
from functools import singledispatch
from importlib import import_module
from typing import Any

from gainstage.randomness import preserved


@singledispatch
def render(result: Any, width: int) -> Any:
    """Return a rich renderable of `result` for a screen of `width` columns (registered by `gainstage.report`)."""
    raise TypeError(f"nothing knows how to draw a {type(result).__name__}")


class Displayed:
    """Mixin: rich in a terminal, HTML in a notebook, plain text in `str`, strict JSON on request."""

    def __str__(self) -> str:
        with preserved():  # rich draws from Python's random numbers
            return import_module("gainstage.report").to_text(self)

    def _repr_html_(self) -> str:
        with preserved():
            return import_module("gainstage.report").to_html(self)

    def __rich_console__(self, console, options):
        with preserved():
            import_module("gainstage.report")
            renderable = render(self, options.max_width)
        yield renderable

    def to_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    def to_json(self, indent: int | None = 2) -> str:
        """Strict JSON: infinities and NaN are written as strings."""
        return strict_json(self.to_dict(), indent)


def strict_json(value: Any, indent: int | None = None) -> str:
    """JSON by RFC 8259: infinities and NaN are written as strings."""
    return json.dumps(_jsonable(value), indent=indent, allow_nan=False)


def _jsonable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value
