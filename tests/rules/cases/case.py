"""What a case of a rule is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

LOSS = nn.CrossEntropyLoss()


@dataclass(frozen=True)
class Case:
    """sick, healthy: build what check() takes, a Program or (model, loss, data), with the fault and without it. stage: one that
    the finding must name; empty where it concerns the whole program. level: of the check. ignore: rules that the healthy twin
    is not to be judged by, for what is beside the point."""

    sick: Callable[[], Any]
    healthy: Callable[[], Any]
    stage: str = ""
    level: str = "preflight"
    ignore: tuple[str, ...] = ()
