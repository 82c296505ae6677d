"""Who reads what in a network."""

import pytest
import torch
from torch import nn

from gainstage.errors import BadInput
from gainstage.nn.flow import Flow, flow_of, is_activation, is_chain, is_layer
from tests.networks import Fails, Functional, Images
from tests.tools import normal, quiet, random_states, same_states


def functional():
    return flow_of(quiet(Functional), normal(4, 20))


def op(flow, name, number=0):
    return [each for each in flow.operations if each.name == name][number]


def names(operations):
    return [each.name for each in operations]


def test_sources_and_readers_of_an_operation():
    flow = functional()
    assert names(flow.readers(None)) == ["linear"]
    assert names(flow.readers(op(flow, "relu"))) == ["linear", "add", "cat"]
    assert names(flow.sources(op(flow, "add"))) == ["tanh", "relu"]
    assert flow.sources(op(flow, "linear")) == []


def test_what_the_network_puts_out_has_a_reader():
    class Two(nn.Module):
        def forward(self, x):
            h = torch.relu(x)
            return {"h": h, "rest": [torch.tanh(h)]}

    flow = flow_of(Two(), normal(4, 3))
    assert names(flow.readers(op(flow, "relu"))) == ["tanh", "clone"]
    assert names(flow.readers(op(flow, "tanh"))) == ["clone"]
    assert flow.readers(op(flow, "clone")) == []


def test_walking_stops_at_other_kinds_and_finds_each_operation_once():
    flow = functional()
    assert names(flow.backward(op(flow, "add"), ())) == ["tanh", "relu"]
    assert sorted(names(flow.backward(op(flow, "add"), ("activation",)))) == ["linear", "linear", "relu", "tanh"]
    assert names(flow.forward(op(flow, "tanh"), ("add",))) == ["add", "cat"]
    assert names(flow.forward(op(flow, "tanh"))) == ["add", "cat", "linear", "clone"]


def test_runs_are_those_of_the_module_itself():
    flow = flow_of(quiet(lambda: Images(activations="shared")), normal(4, 3, 7, 7))
    assert names(flow.runs("act1")) == ["relu"] * 4
    assert names(flow.runs("stem")) == ["conv2d"]
    assert "conv2d" not in names(flow.runs(""))


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.whole = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.ReLU())
        self.parts = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x):
        return self.parts[1](self.parts[0](self.whole(x)))


def test_chains_are_the_sequentials_that_ran_as_a_whole():
    assert flow_of(quiet(Mixed), normal(4, 4)).chains == {"whole", "whole.0"}


def test_a_sequential_with_a_forward_of_its_own_is_no_chain():
    class Backwards(nn.Sequential):
        def forward(self, x):
            return x

    assert is_chain(nn.Sequential())
    assert not is_chain(Backwards())
    assert not is_chain(nn.ModuleList())


@pytest.mark.parametrize(
    ("module", "activation"),
    [
        (nn.PReLU(), True),
        (nn.Hardshrink(), True),
        (nn.LogSigmoid(), True),
        (nn.Softmax(1), False),
        (nn.Dropout(), False),
    ],
)
def test_activations_are_told_from_the_rest(module, activation):
    (operation, _) = flow_of(module.eval(), normal(4, 3)).operations
    assert is_activation(operation) is activation
    assert not is_layer(operation)


def test_a_layer_that_the_trace_does_not_understand_is_a_layer():
    flow = flow_of(quiet(lambda: nn.Sequential(nn.LSTM(4, 3))), normal(5, 2, 4))
    assert any(map(is_layer, flow.operations))


def test_nothing_is_left_behind_also_where_forward_fails():
    model, random = quiet(Mixed), random_states()
    flow_of(model, normal(4, 4))
    with pytest.raises(BadInput, match="out of paper"):
        flow_of(quiet(Fails), normal(4, 20))
    assert same_states(random_states(), random)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_a_flow_can_be_made_of_operations_that_are_known_already():
    assert Flow(functional().operations).chains == frozenset()
