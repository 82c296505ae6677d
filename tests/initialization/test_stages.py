"""Where a stage's weights are and how they are set."""

import pytest
import torch
from torch import nn

import gainstage as gs
from gainstage.initialization.stages import bias_of, current_weight, follower, set_weight, weight_of
from gainstage.signal import trace
from gainstage.signal.example import trace_example
from tests.networks import Functional, deep
from tests.tools import normal, quiet


def first(model, x=None):
    return (trace_example(model) if x is None else trace(model, x)).stages[0]


def test_weight_and_bias_of_a_plain_layer():
    model = deep(1, "relu")
    stage = first(model)
    assert weight_of(model, stage) is model.hidden1.weight is current_weight(model, stage)
    assert bias_of(model, stage) is model.hidden1.bias


@pytest.mark.draws
def test_a_parametrised_weight_is_no_parameter_but_can_be_read_and_set():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(20, 5)))
    stage = first(model, normal(4, 20))
    assert weight_of(model, stage) is None
    values = normal(5, 20)
    set_weight(model, stage, values)
    assert torch.allclose(current_weight(model, stage), values, atol=1e-6)


def test_a_weight_computed_in_forward_is_nobodys():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(normal(5, 20))

        def forward(self, x):
            return nn.functional.linear(x, self.weight * 2)

    model = Scaled()
    stage = first(model, normal(4, 20))
    assert stage.layer.parameters == ("weight",)
    assert stage.layer.fans is not None
    assert weight_of(model, stage) is current_weight(model, stage) is None
    assert gs.initialize(model, normal(4, 20)).skipped == ("(model)",)


@pytest.mark.parametrize(("index", "name"), [(0, "relu"), (1, "tanh"), (2, "none")])
def test_what_follows_a_layer(index, name):
    graph = trace(quiet(Functional), normal(4, 20))
    assert follower(graph.stages[index]) == name


def test_nothing_that_theory_follows_stands_behind_an_activation_with_parameters_inside():
    class Swish(nn.Module):
        def __init__(self, slopes):
            super().__init__()
            self.layer, self.slopes = nn.Linear(20, 3), nn.Parameter(slopes)

        def forward(self, x):
            z = self.layer(x)
            return z * torch.sigmoid(self.slopes * z)

    assert follower(first(quiet(lambda: Swish(torch.tensor([0.5, 1.0, 2.0]))), normal(4, 20))) == "none"
    assert "sigmoid" in follower(first(quiet(lambda: Swish(torch.ones(3))), normal(4, 20)))


def test_softmax_follows_where_it_does():
    model = quiet(lambda: nn.Sequential(nn.Linear(20, 3), nn.Softmax(dim=-1)))
    assert follower(first(model)) == "softmax"
