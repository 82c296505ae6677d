"""How to train a plain network of a given depth: settings that follow from the depth instead of a search."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from gainstage.theory.checks import network_depth, whole

BASE_RATE = (
    0.15  # peak learning rate of one layer, fitted on images at width 100 and batch 128; its depth law is derived
)


@dataclass(frozen=True)
class TrainingPlan:
    """What to hand to fit(): `fit(model, loss, train, valid, epochs=e, **plan.settings(samples, e))`."""

    peak_rate: float
    momentum: float
    batch_size: int
    clip_norm: float
    reasons: tuple[str, ...]

    def settings(self, samples: int, epochs: int) -> dict[str, Any]:
        """Arguments of fit() for a training set of `samples` and so many epochs. Raises BadInput where these are no whole
        numbers from 1."""
        samples, epochs = whole(samples, "the number of samples"), whole(epochs, "the number of epochs")
        steps = math.ceil(samples / self.batch_size) * epochs
        return {
            "optimizer": self.optimizer,
            "schedule": self.schedule(steps),
            "schedule_every": "step",
            "batch_size": self.batch_size,
            "clip_norm": self.clip_norm,
        }

    def optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> Optimizer:
        """Nesterov's momentum."""
        return torch.optim.SGD(parameters, lr=self.peak_rate, momentum=self.momentum, nesterov=True)

    def schedule(self, steps: int) -> Callable[[Optimizer], OneCycleLR]:
        """1cycle over `steps` optimiser steps: up for three tenths, then down (Smith 2018), momentum kept."""
        steps = whole(steps, "the number of optimiser steps")
        return lambda optimizer: OneCycleLR(
            optimizer, self.peak_rate, total_steps=steps, pct_start=0.3, cycle_momentum=False, final_div_factor=1e4
        )

    def __str__(self) -> str:
        return "\n".join(f"- {reason}" for reason in self.reasons)


def recommend_training(depth: int) -> TrainingPlan:
    """Settings for a plain network of `depth` hidden layers with isometric weights (`initialize(scheme="isometric")`).

    With such weights every layer's gradient has the same norm, so the whole gradient's norm grows with sqrt(depth); it is
    clipped to 1, so that a step's length is the learning rate, and the change of the loss is the rate times that norm:
    the rate must fall with 1/sqrt(depth). Raises BadInput for a depth that is no whole number from 1.
    """
    depth = network_depth(depth)
    rate = BASE_RATE / math.sqrt(depth)
    return TrainingPlan(
        peak_rate=rate,
        momentum=0.9,
        batch_size=128,
        clip_norm=1.0,
        reasons=(
            f"peak learning rate {BASE_RATE}/sqrt({depth}) = {rate:.3g}: the gradient's norm grows with sqrt(depth)",
            "the gradient's norm is clipped to 1, so that the rate alone sets the length of a step",
            "1cycle with Nesterov momentum 0.9: a large rate in the middle, none at the end",
        ),
    )
