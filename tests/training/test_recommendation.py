"""Training settings that follow from the depth."""

import math

import pytest
import torch
from torch import nn

import gainstage as gs
from gainstage.errors import BadInput
from gainstage.training import recommend_training
from tests.networks import deep
from tests.tools import blobs, generator


def test_the_rate_falls_with_the_square_root_of_the_depth():
    assert recommend_training(400).peak_rate == pytest.approx(recommend_training(100).peak_rate / 2)


def test_the_gradients_norm_grows_with_the_square_root_of_the_depth_as_the_rate_assumes():
    x, y = blobs(512)

    def norm(depth):
        model = deep(depth, "tanh")
        gs.initialize(model, x, scheme="isometric", generator=generator())
        nn.functional.cross_entropy(model(x), y).backward()
        return float(torch.stack([p.grad.norm() for p in model.parameters()]).norm())

    ratio = norm(80) / norm(20)
    assert 1.5 < ratio < 3.0  # 2 for sqrt(depth); a norm that is the same at all depths, or proportional to it, fails


def test_the_plan_fits_fit_and_runs_its_whole_cycle():
    x, y = blobs(256)
    plan = recommend_training(4)
    model = deep(4, "tanh")
    gs.initialize(model, x, scheme="isometric", generator=generator())
    run = gs.fit(model, nn.CrossEntropyLoss(), (x, y), epochs=8, progress=False, **plan.settings(256, 8))
    rates = [row["learning_rate"] for row in run.history]
    assert max(rates) == pytest.approx(plan.peak_rate, rel=0.2)
    assert rates[-1] < 0.2 * plan.peak_rate
    assert run.history[-1]["train_loss"] < run.history[0]["train_loss"] / 2


def test_its_reasons_can_be_read():
    assert "0.15/sqrt(100) = 0.015" in str(recommend_training(100))


@pytest.mark.parametrize("depth", [0, -1, 2.5, True, "a", None, math.nan])
def test_a_depth_is_a_whole_number_from_one(depth):
    with pytest.raises(BadInput, match="depth of a network, in layers, must be a whole number of at least 1, got"):
        recommend_training(depth)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "a", None])
def test_so_are_samples_epochs_and_steps(wrong):
    plan = recommend_training(4)
    for action in (lambda: plan.settings(wrong, 8), lambda: plan.settings(256, wrong), lambda: plan.schedule(wrong)):
        with pytest.raises(BadInput, match="must be a whole number of at least 1, got"):
            action()
