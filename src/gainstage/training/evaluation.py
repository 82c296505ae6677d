"""Loss and accuracy on held-out data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gainstage.data import Source
from gainstage.errors import BadInput
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
