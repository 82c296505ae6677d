"""Who reads what in a network."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gainstage.errors import BadInput
from gainstage.nn.flow import Flow, check_model, flow_of, is_activation, is_chain, is_layer
from gainstage.signal import trace
from tests.networks import Fails, Function, Functional, Images
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


def test_what_the_network_puts_out_is_known_by_the_operation_that_made_it():
    flow = functional()
    assert [flow.operations[index].name for index in flow.outputs] == ["linear"]
    assert flow.operations[max(flow.outputs)] is op(flow, "linear", 2)


@pytest.mark.parametrize(
    ("model", "got"), [(None, "a NoneType"), ({}, "a dict"), (nn.Linear, r"the class Linear; did you mean Linear\(\)")]
)
def test_what_is_no_network_is_refused_in_one_sentence(model, got):
    check_model(nn.Identity())
    with pytest.raises(BadInput, match=rf"the model must be a torch\.nn\.Module, got {got}"):
        check_model(model)


# activations, whole


class Between(nn.Module):
    """Anything written out in the forward between two layers."""

    def __init__(self, way):
        super().__init__()
        self.first, self.second, self.way = nn.Linear(4, 6), nn.Linear(6, 6), way
        self.slopes = nn.Parameter(normal(6))

    def forward(self, x):
        h = self.way(self, self.first(x))
        return (self.second(h[0]), *h[1:]) if isinstance(h, tuple) else self.second(h)


def snake(slope):
    return lambda net, h: h + torch.sin(slope(net) * h) ** 2 / slope(net)


WHOLE = {
    "leaky": (lambda net, h: torch.where(h > 0, h, 0.1 * h), ["gt", "mul", "where"]),
    "leaky, slopes of its own": (lambda net, h: torch.where(h > 0, h, net.slopes * h), ["gt", "mul", "where"]),
    "swish": (lambda net, h: h * torch.sigmoid(h), ["sigmoid", "mul"]),
    "swish, slopes of its own": (lambda net, h: h * torch.sigmoid(net.slopes * h), ["mul", "sigmoid", "mul"]),
    "snake": (lambda net, h: h + torch.sin(h) ** 2, ["sin", "pow", "add"]),
    "snake, a parameter": (snake(lambda net: net.slopes[0]), ["mul", "sin", "pow", "div", "add"]),
    "snake, many parameters": (snake(lambda net: net.slopes), ["mul", "sin", "pow", "div", "add"]),
    "logistic": (lambda net, h: 1 / (1 + torch.exp(-h)), ["neg", "exp", "add", "rdiv"]),
    "sine": (lambda net, h: torch.sin(30 * h), ["mul", "sin"]),
    "gaussian": (lambda net, h: torch.exp(-(h**2)), ["pow", "neg", "exp"]),
    "square": (lambda net, h: h * h, ["mul"]),
    "mask": (lambda net, h: (h > 0).float() * h, ["gt", "float", "mul"]),
    "in place": (lambda net, h: h.mul_(2).sin_(), ["mul", "sin"]),
    "put out as well": (lambda net, h: (torch.clamp(h, 0),) * 2, ["clamp"]),
    "of a longer function": (lambda net, h: F.relu(h) ** 2, ["relu", "pow"]),
    "constants of many numbers": (lambda net, h: torch.where(h > 0, h, torch.arange(6.0)), ["gt", "where"]),
    "thresholds of its own": (lambda net, h: h * torch.gt(h, net.slopes), ["gt", "mul"]),
    "maximum of many numbers": (lambda net, h: torch.maximum(h, torch.arange(6.0)), ["maximum"]),
}
NOT_WHOLE = {
    "affine": (lambda net, h: 2 * h + 1, []),
    "affine, parameters": (lambda net, h: net.slopes * h - 1, []),
    "padding": (lambda net, h: torch.where(torch.arange(6) > 2, h, torch.arange(6.0)), []),
    "a mask of its own": (lambda net, h: h * (h != 0), []),
    "padding of its own": (lambda net, h: h * (torch.ne(h, net.slopes)), []),
    "affine after all": (lambda net, h: torch.where(h > 0, h, h), []),
    "beside one that nothing reads": (lambda net, h: 2 * h if torch.sin(h) is not None else h, []),
    "variance of its logarithm": (lambda net, h: torch.exp(0.5 * h), []),
    "softmax": (lambda net, h: torch.exp(h) / torch.exp(h).sum(-1, keepdim=True), []),
    "logarithm": (lambda net, h: torch.log(h), []),
    "two ends": (lambda net, h: net.second(torch.sin(h)) + net.second(torch.cos(h)), []),
    "a part is read": (lambda net, h: (lambda g: torch.log(1 + g) + g.sum())(torch.exp(-h.abs())), []),
    "of what is put out": (lambda net, h: (torch.sin(h), h), []),
    "of which a part is put out": (lambda net, h: (lambda g: (torch.sin(g), g))(h.clamp(-1, 1)), []),
    "of two tensors": (lambda net, h: net.second(h) * torch.sin(h) * net.second(h), ["sin"]),
    "another order": (lambda net, h: h * h.flip(1), []),
    "another order, square": (
        lambda net, h: (lambda g: (g * g.transpose(1, 2)).sum(1))(h[:, None] * torch.ones(1, 6, 1)),
        [],
    ),
    "spread to another shape": (lambda net, h: (h[:, None] * torch.ones(1, 3, 1)).clamp(0).sum(1), ["clamp"]),
    "only a comparison": (lambda net, h: net.second(net.slopes.expand_as(h) * h).masked_fill(h > 0, 0.0), []),
    "only a comparison with parameters": (lambda net, h: net.second(h).masked_fill(torch.gt(h, net.slopes), 0.0), []),
    "only a comparison of a function": (lambda net, h: net.second(h).masked_fill(torch.sin(h) > 0, 0.0), []),
    "gated by another": (lambda net, h: net.second(h) * torch.sigmoid(h), ["sigmoid"]),
    "named, a part of it is put out": (lambda net, h: (lambda g: (g**2, g))(F.relu(h)), ["relu"]),
    "named, put out as well": (lambda net, h: (h * torch.sigmoid(h), h), ["sigmoid"]),
}


@pytest.mark.parametrize(("way", "expected"), {**WHOLE, **NOT_WHOLE}.values(), ids={**WHOLE, **NOT_WHOLE})
@pytest.mark.parametrize("samples", [3, 2**14], ids=["few", "many"])
def test_a_function_that_is_written_out_is_one_activation_from_its_first_operation_to_its_last(way, expected, samples):
    model, x = quiet(lambda: Between(way)), normal(samples, 4)
    graph = trace(model, x)
    for flow in (flow_of(model, x), Flow(graph.operations, outputs=frozenset(graph.outputs))):
        assert [names(activation) for activation in flow.activations()] == ([expected] if expected else [])


def test_it_ends_where_its_module_does():
    def inner(h):
        return torch.where(h > 0, h, 0.1 * h)

    def build():
        act = Function(inner)
        return nn.Sequential(nn.Linear(4, 4), act, Function(torch.sin), nn.Linear(4, 4), act, nn.Linear(4, 2))

    flow = flow_of(quiet(build), normal(3, 4))
    assert [names(each) for each in flow.activations()] == [["gt", "mul", "where"], ["sin"], ["gt", "mul", "where"]]
    assert [each[0].module for each in flow.activations()] == ["1", "2", "1"]
    model = quiet(lambda: Between(lambda net, h: torch.sin(net.act(h.clamp(0)))))
    model.act = Function(inner)
    found = flow_of(model, normal(3, 4)).activations()
    assert [(names(each), each[0].module) for each in found] == [
        (["clamp"], ""),
        (["gt", "mul", "where"], "act"),
        (["sin"], ""),
    ]
