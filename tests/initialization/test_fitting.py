"""Weights scaled to the data in one forward pass."""

import pytest
import torch
from torch import nn

import gainstage as gs
from gainstage.errors import BadInput
from tests.networks import Convolutional, deep
from tests.tools import generator, normal, quiet


def pre_activations(model, x):
    found, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            handles.append(
                module.register_forward_hook(lambda m, i, o, n=name: found.__setitem__(n, o.detach().clone()))
            )
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model(x)
    for handle in handles:
        handle.remove()
    return {name: float(z.flatten(1).var(0).mean().sqrt()) for name, z in found.items()}


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu", "logistic"])
def test_every_pre_activation_has_unit_variance_on_the_batch(activation):
    model, x = deep(10, activation), 50 * normal(256, 20) + 3
    gs.initialize(model, x, scheme="data", generator=generator())
    stds = list(pre_activations(model, x).values())
    assert stds[:-1] == pytest.approx([1.0] * 10, rel=1e-3)
    assert stds[-1] == pytest.approx(0.1, rel=1e-3)


def test_without_the_fit_they_would_not():
    model, x = deep(10, "gelu"), 50 * normal(256, 20) + 3
    gs.initialize(model, x, scheme="exact", generator=generator())
    assert max(list(pre_activations(model, x).values())[:-1]) > 2


def test_it_takes_two_forward_passes_whatever_the_depth():
    calls = []
    model = deep(30, "tanh")
    model.register_forward_pre_hook(lambda module, inputs: calls.append(1))
    gs.initialize(model, normal(64, 20), scheme="data", generator=generator())
    assert len(calls) == 2, "one to trace, one to fit"


def test_convolutions_and_buffers():
    model, x = quiet(lambda: Convolutional(dropout=0.0)), normal(64, 1, 8, 8)
    statistics = model.norm.running_mean.clone()
    gs.initialize(model, x, scheme="data", generator=generator())
    assert pre_activations(model, x)["conv"] == pytest.approx(1.0, rel=1e-3)
    model_fresh = quiet(lambda: Convolutional(dropout=0.0))
    assert torch.equal(statistics, model_fresh.norm.running_mean)


def test_it_needs_data():
    with pytest.raises(BadInput, match="give data="):
        gs.initialize(deep(1, "relu"), scheme="data")
