"""Run: what a training leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from gainstage.display import Displayed
from gainstage.rules import Finding


@dataclass(frozen=True)
class Run(Displayed):
    """A finished training. The model carries its best weights where validation data was given, else its last.

    history: one dictionary an epoch: epoch, train_loss, and with validation data valid_loss and, for class numbers,
    valid_accuracy; seconds; learning_rate. best: the epoch with the lowest validation loss (training loss without
    validation data). stopped: why training ended before its last epoch, or None.
    """

    model: nn.Module
    history: tuple[dict[str, float], ...]
    best: dict[str, float]
    findings: tuple[Finding, ...] = ()
    stopped: str | None = None
    seconds: float = 0.0
    overhead: float = 0.0
    folder: Path | None = field(default=None)

    def to_dict(self) -> dict[str, Any]:
        return {
            "history": list(self.history),
            "best": self.best,
            "findings": [finding.to_dict() for finding in self.findings],
            "stopped": self.stopped,
            "seconds": self.seconds,
            "watching_overhead": self.overhead,
        }
