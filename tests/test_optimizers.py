"""Optimisers by name, as an instance, or from a callable."""

import pytest
import torch
from torch import nn

from gainstage.errors import BadInput
from gainstage.optimizers import BY_NAME, make_optimizer
from tests.tools import normal, quiet


def layer():
    return quiet(lambda: nn.Linear(4, 3))


def parameters(optimizer):
    return [id(p) for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("sgd", torch.optim.SGD, {"lr": 1e-2, "momentum": 0, "nesterov": False}),
        ("momentum", torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": False}),
        ("nesterov", torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
        ("adagrad", torch.optim.Adagrad, {"lr": 1e-2}),
        ("rmsprop", torch.optim.RMSprop, {"lr": 1e-3}),
        ("adam", torch.optim.Adam, {"lr": 1e-3}),
        ("adamax", torch.optim.Adamax, {"lr": 2e-3}),
        ("nadam", torch.optim.NAdam, {"lr": 2e-3}),
        ("AdamW", torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 1e-2}),
        (None, torch.optim.Adam, {"lr": 1e-3}),
    ],
)
def test_a_name_gives_torchs_optimiser(name, kind, expected):
    optimizer = make_optimizer(name, layer())
    assert type(optimizer) is kind
    assert {key: optimizer.defaults[key] for key in expected} == expected


@pytest.mark.parametrize("name", BY_NAME)
def test_every_named_optimiser_goes_downhill(name):
    model, x = layer(), normal(8, 4)
    optimizer = make_optimizer(name, model)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("spec", ["sgd", None, torch.optim.SGD, lambda p: torch.optim.SGD(p, lr=0.3)])
def test_frozen_parameters_are_left_out(spec):
    model = layer()
    model.bias.requires_grad_(False)
    assert parameters(make_optimizer(spec, model)) == [id(model.weight)]


def test_an_instance_is_taken_as_it_is():
    model = layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    assert make_optimizer(optimizer, model) is optimizer


def test_a_callable_decides_its_own_settings():
    assert make_optimizer(lambda p: torch.optim.SGD(p, lr=0.3), layer()).defaults["lr"] == 0.3


@pytest.mark.parametrize("name", ["adm", "lion"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(BadInput, match=f"no optimiser is called '{name}'") as caught:
        make_optimizer(name, layer())
    assert str(caught.value).split("known are: ")[1].split(", ") == list(BY_NAME)


def test_a_callable_that_gives_no_optimiser_is_named():
    with pytest.raises(BadInput, match=r"must return a torch.optim.Optimizer, got list"):
        make_optimizer(list, layer())


@pytest.mark.parametrize(("spec", "model"), [("sgd", nn.ReLU()), (0.01, layer())], ids=["nothing to train", "a number"])
def test_what_cannot_be_optimised_is_refused_in_one_sentence(spec, model):
    with pytest.raises(BadInput):
        make_optimizer(spec, model)
