"""What kind of targets a network is given: class numbers, one-hot rows, several labels, yes or no, or values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gainstage.program import tensors_in

TargetKind = Literal["classes", "one-hot", "probabilities", "several-labels", "yes-or-no", "values", "unknown"]
IGNORED = -100  # torch's number for a position that does not count
MOST_CLASSES = 1000


@dataclass(frozen=True)
class Targets:
    """kind: "classes": whole numbers from 0 on, one a sample (or position), as floats too; "one-hot": rows of zeros and a one;
    "probabilities": rows that add up to 1; "several-labels": rows of any number of ones; "yes-or-no": single zeros and ones;
    "values": anything else. counts: of each class, column or of no and yes; empty for values. low, high, mean, std: of the
    numbers themselves. columns: numbers a sample. whole: all are whole numbers. integer: of an integer type.
    samples: how many were looked at."""

    kind: TargetKind
    samples: int
    columns: int = 1
    counts: tuple[int, ...] = ()
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    std: float = 0.0
    whole: bool = False
    integer: bool = False
    shape: tuple[int, ...] = ()

    @property
    def classes(self) -> int:
        """Number of classes that there must be; 0 where the targets are no classes."""
        return len(self.counts)

    @property
    def shares(self) -> tuple[float, ...]:
        """Of all samples, the share of each class."""
        total = sum(self.counts) if self.kind in ("classes", "one-hot", "yes-or-no") else self.samples
        return tuple(count / total for count in self.counts) if total else ()


def describe(y: Any) -> Targets:
    """The kind of a batch's targets; "unknown" where they are not one tensor of numbers."""
    found = [tensor.detach() for tensor in tensors_in(y)]
    if len(found) != 1 or found[0].ndim == 0 or found[0].numel() == 0 or found[0].is_complex() or found[0].is_meta:
        return Targets("unknown", 0)
    tensor = found[0]
    values = tensor.double()
    columns = tensor[0].numel()
    whole = bool((values == values.round()).all())
    kept = values[values != IGNORED] if whole else values
    if not kept.numel():
        return Targets("unknown", len(tensor))
    kind, counts = _kind_of(values, kept, tensor, whole)
    return Targets(
        kind, len(tensor), columns, counts, float(kept.min()), float(kept.max()), float(kept.mean()),
        float(kept.std(unbiased=False)), whole, not tensor.is_floating_point(), tuple(tensor.shape),
    )  # fmt: skip


def _kind_of(values: Tensor, kept: Tensor, tensor: Tensor, whole: bool) -> tuple[TargetKind, tuple[int, ...]]:
    rows = values.flatten(1) if values.ndim > 1 else values[:, None]
    binary = bool(((kept == 0) | (kept == 1)).all())
    if binary and tensor.ndim == 2 and rows.shape[1] > 1:
        counts = tuple(int(count) for count in rows.sum(0).tolist())
        return ("one-hot" if bool((rows.sum(1) == 1).all()) else "several-labels"), counts
    if binary and (rows.shape[1] == 1 or tensor.ndim > 2 or not tensor.is_floating_point()):
        ones = int(kept.sum())
        return "yes-or-no", (kept.numel() - ones, ones)
    if whole and _are_classes(kept, tensor):
        return "classes", tuple(torch.bincount(kept.long()).tolist())
    on_simplex = rows.shape[1] > 1 and bool((rows >= 0).all() and ((rows.sum(1) - 1).abs() < 1e-4).all())
    return ("probabilities" if on_simplex and tensor.ndim == 2 else "values"), ()


def _are_classes(kept: Tensor, tensor: Tensor) -> bool:
    """Whole numbers from 0 on; floats only where there is one a sample and each number comes several times."""
    if float(kept.min()) < 0 or float(kept.max()) >= MOST_CLASSES * (1 if tensor.is_floating_point() else 1000):
        return False
    if not tensor.is_floating_point():
        return True
    different = len(kept.unique())
    return tensor[0].numel() == 1 and float(kept.max()) + 1 == different and different <= kept.numel() / 4
