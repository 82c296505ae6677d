"""Fuses: a part that fails falls silent, is told of once, and stops nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Fuses:
    """Guards parts by name. The first error of each is told by `tell`, in one warning; no error leaves a guard."""

    def __init__(self) -> None:
        self._blown: set[str] = set()
        self._messages: list[str] = []

    @contextmanager
    def guard(self, part: str) -> Iterator[None]:
        """An error inside ends what is inside, and nothing else."""
        try:
            yield
        except Exception as error:
            self.blow(part, error)

    def blow(self, part: str, error: Exception) -> None:
        """The part has failed with this error."""
        if part not in self._blown:
            self._blown.add(part)
            self._messages.append(f"gainstage switched {part} off: {type(error).__name__}: {error}")

    def run(self, part: str, action: Callable[..., Any], *arguments: Any) -> None:
        """Call the action, unless it has failed before."""
        if part not in self._blown:
            with self.guard(part):
                action(*arguments)

    def tell(self) -> None:
        """Warn of what failed since the last call. Not at once: where warnings are errors they must not hit a pass."""
        messages, self._messages = self._messages, []
        for message in messages:
            warnings.warn(message, RuntimeWarning, stacklevel=4)
