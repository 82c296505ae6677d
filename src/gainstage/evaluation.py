"""Loss, accuracy and a score on held-out data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gainstage.data import Source
from gainstage.errors import BadInput
from gainstage.objective import Objective, Targets
from gainstage.objective.targets import IGNORED
from gainstage.program import Loss, run_loss, run_model

EVALUATION_BATCH = 1024


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside; afterwards each in the mode it was in, frozen ones still frozen."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def evaluate(model: nn.Module, loss: Loss, source: Source) -> dict[str, float]:
    """Mean loss over the samples and, for outputs (samples, classes) against class numbers, the accuracy."""
    total = correct = samples = judged = 0.0
    with evaluating(model):
        for x, y in source.batches(EVALUATION_BATCH):
            output = run_model(model, x)
            total += float(run_loss(loss, output, y)) * len(y)
            samples += len(y)
            if _is_classification(output, y):
                correct += float((output.argmax(1) == y).sum())
                judged += y.numel()
    if not samples:
        raise BadInput("the validation data yields no batch: it is empty, or smaller than a batch with drop_last")
    metrics = {"loss": total / samples}
    return {**metrics, "accuracy": correct / judged} if judged else metrics


def _is_classification(output: object, y: object) -> bool:
    return (
        isinstance(output, Tensor)
        and isinstance(y, Tensor)
        and output.ndim >= 2
        and not y.is_floating_point()
        and y.shape == output.shape[:1] + output.shape[2:]
    )


def score(output: object, y: object, targets: Targets, objective: Objective) -> float | None:
    """How well outputs meet their targets, whatever the loss: the share of right classes, or of right labels; for values the
    share of their variance that is explained, 1 - sum (o - y)^2 / sum (y - mean y)^2. Higher is better, 1 the best. None where
    the two cannot be compared, so also where they do not fit each other.
    """
    if not isinstance(output, Tensor) or not isinstance(y, Tensor) or not output.is_floating_point():
        return None
    output, y = output.detach().double(), y.detach()
    if targets.kind in ("one-hot", "probabilities") and output.shape == y.shape:
        return float((output.argmax(1) == y.argmax(1)).double().mean())
    if (
        targets.kind in ("classes", "yes-or-no")
        and output.ndim > 1
        and output.shape[1] > 1
        and y.numel() < output.numel()
    ):
        right, kept = output.argmax(1).flatten() == y.long().flatten(), (y != IGNORED).flatten()
        return float(right[kept].double().mean()) if len(right) == len(kept) else None
    if output.numel() != y.numel():
        return None
    y = y.double().reshape(output.shape)
    if targets.kind in ("yes-or-no", "several-labels"):
        return float(((output > (0.0 if objective.takes == "logits" else 0.5)) == (y > 0.5)).double().mean())
    return _explained(output, y)


def _explained(output: Tensor, y: Tensor) -> float | None:
    total = float((y - y.mean(0)).square().sum())
    return 1 - float((output - y).square().sum()) / total if total > 0 else None
