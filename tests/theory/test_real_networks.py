"""Whole networks in theory against the same networks drawn for real: every tensor forward, every gradient back."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from gainstage.theory import Node, Slot, field, gradients, propagate
from gainstage.theory.operators import (
    Attention,
    BatchNorm,
    Concatenation,
    Dropout,
    GroupNorm,
    Layer,
    Pointwise,
    Pool,
    View,
)
from gainstage.theory.spatial import Axis, coverage
from tests.theory.fields import exact, images, step
from tests.tools import generator, quiet

RUNS, WIDTH = 12, 400
ADD, MULTIPLY = step(torch.add, Slot(0), Slot(1)), step(torch.mul, Slot(0), Slot(1))
INPUT = field(1.0, 0.5, columns=5, origins=frozenset({(-1,)}), node=-1)
IMAGE = images(1.5, [0, 0.3, 0.5, 0.6, 0.6], [1.0, 1.1, 1.2, 1.2, 1.2], origins=frozenset({(-1,)}), node=-1)


class Net:
    """A network twice: the nodes of theory, and functions that draw their weights anew whenever they are called."""

    def __init__(self, source=INPUT, samples=4, sides=()):
        self.nodes, self.functions, self.generator = [], [], generator(1)
        self.source, self.samples, self.sides = source, samples, sides

    def add(self, operator, function, *inputs, **settings):
        inputs = tuple(source if isinstance(source, tuple) else (source, 0) for source in inputs)
        settings.setdefault("flat", not self.sides)
        self.nodes.append(Node(operator, inputs, **settings))
        self.functions.append(function)
        return len(self.nodes) - 1

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def linear(self, source, inputs=WIDTH, units=WIDTH, power=1.0, bias=0.0, **settings):
        def draw(x):
            return F.linear(x, (power / inputs) ** 0.5 * self.normal(units, inputs), bias**0.5 * self.normal(units))

        return self.add(Layer(inputs, units, power / inputs, bias, units=units), draw, source, **settings)

    def function(self, source, function, *arguments, **keywords):
        call = step(function, *arguments, **keywords)
        return self.add(Pointwise(call), lambda x: call([x]), source)

    def join(self, call, combine, *sources):
        return self.add(Pointwise(call, combine), lambda *tensors: call(tensors), *sources)

    def run(self):
        """Every node's value, and the gradient of white noise at the end with respect to it."""
        x = exact(self.source, WIDTH, self.samples, self.sides).float().requires_grad_(True)
        values = {(-1, 0): x}
        for index, (node, function) in enumerate(zip(self.nodes, self.functions, strict=True)):
            found = function(*(values[source] for source in node.inputs))
            parts = found if isinstance(found, tuple) else (found,)
            values |= {(index, part): value for part, value in enumerate(parts)}
        last = values[len(self.nodes) - 1, 0]
        names = list(values)
        noise = self.normal(*last.shape)
        noise = noise / noise.square().mean().sqrt()
        back = torch.autograd.grad((last * noise).sum(), list(values.values()), allow_unused=True)
        return values, dict(zip(names, back, strict=True))

    def measured(self):
        """By node and part, means over many networks: (level, signal, power of the gradient)."""
        runs = [quiet(self.run) for _ in range(RUNS)]
        means = {}
        for name in runs[0][0]:
            values = [run[0][name].detach() for run in runs]
            level = sum(float(v.square().mean()) for v in values) / RUNS
            signal = sum(float(v.var(0).mean()) for v in values) / RUNS
            powers = [run[1][name].square().mean() for run in runs if run[1][name] is not None]
            means[name] = level, signal, float(sum(powers)) / RUNS
        return means

    def misses(self, nodes=None, measured=None):
        """Nodes at which theory is further from the measured powers than 4 standard errors over the networks allow."""
        theory = propagate(nodes or self.nodes, {-1: self.source})
        back = gradients(theory, {len(self.nodes) - 1: 1.0})
        measured, wrong = measured or self.measured(), []
        for index, found in enumerate(theory.predicted):
            parts = range(self.nodes[index].parts)
            level, signal = (sum(measured[index, part][i] for part in parts) / len(parts) for i in (0, 1))
            pairs = (
                [(found.level, level, found.variance), (found.signal, signal, found.variance)] if found.known else []
            )
            if math.isfinite(back[index][0]):
                power = sum(measured[index, part][2] for part in parts) / len(parts)
                pairs.append((back[index][0], power, back[index][1]))
            allowed = [4 * math.sqrt(variance / RUNS) + 1e-4 for _, _, variance in pairs]
            if not all(abs(math.log(e / m)) < a for (e, m, _), a in zip(pairs, allowed, strict=True)):
                wrong.append(index)
        return wrong


def written_out():
    """Linear, SiLU by hand, Linear with bias, tanh, in-place sine, Linear."""
    net = Net()
    z = net.linear(-1, units=600, power=2.0)
    gate = net.function(z, torch.sigmoid)
    h = net.join(MULTIPLY, "product", z, gate)
    z = net.linear(h, 600, 300, power=1.5, bias=0.3)
    h = net.function(net.function(z, torch.tanh), torch.sin_)
    net.linear(h, 300, 500)
    return net


def residual():
    """x + f(x) twice, with layer normalisation in front of f."""
    net = Net()
    x = net.linear(-1)
    for power in (1.0, 0.5):
        h = net.add(GroupNorm(WIDTH), lambda x: F.layer_norm(x, (WIDTH,)), x)
        h = net.function(net.linear(h, units=800, power=2.0), F.gelu)
        x = net.join(ADD, "sum", x, net.linear(h, 800, power=power))
    net.linear(x)
    return net


def gated():
    """A layer in two parts, of which one gates the other; dropout; concatenation with the first layer's output."""
    net = Net()
    first = net.linear(-1)
    both = net.linear(first, units=800, power=2.0)
    halves = net.add(View(), lambda x: x.chunk(2, -1), both, parts=2)
    gate = net.function((halves, 0), torch.sigmoid)
    h = net.join(MULTIPLY, "product", gate, (halves, 1))
    h = net.add(Dropout(0.3), lambda x: F.dropout(x, 0.3), h)
    both = net.add(Concatenation((WIDTH, WIDTH)), lambda *x: torch.cat(x, -1), net.linear(h), first)
    net.linear(both, 800, 300)
    return net


def convolutional(side=8):
    """Convolution on padding, batch normalisation, ReLU, max pooling, convolution with stride, mean, Linear."""
    net = Net(IMAGE, 40, (side,))

    def convolve(source, size, stride, inputs=WIDTH, units=WIDTH, power=2.0):
        after = size // stride
        seen = coverage((Axis(size, after, 3, stride, 1, 1),), 5)
        fan_in, fan_out = 3 * inputs, 3 * inputs * seen[0] * after * units / (size * inputs)
        layer = Layer(fan_in, fan_out, power / fan_in, units=units, stride=stride, coverage=seen)

        def draw(x):
            return F.conv1d(x, (power / fan_in) ** 0.5 * net.normal(units, inputs, 3), stride=stride, padding=1)

        return net.add(layer, draw, source)

    x = convolve(-1, side, 1)
    x = net.add(BatchNorm(), lambda x: F.batch_norm(x, None, None, training=True), x)
    x = net.function(x, F.relu)
    x = net.add(Pool((2,), 2, 0.5, maximum=True), lambda x: F.max_pool1d(x, 2), x)
    x = net.function(convolve(x, side // 2, 2, units=300), torch.tanh)
    x = net.add(Pool((2,), 1, 1 / 2, everywhere=True), lambda x: x.mean(2), x, flat=True)
    net.linear(x, 300, 200, flat=True)
    return net


NETS = {"written out": written_out, "residual": residual, "gated": gated, "convolutional": convolutional}


@pytest.mark.parametrize("name", NETS)
def test_a_real_network_does_what_theory_says_at_every_node_forward_and_backward(name):
    assert NETS[name]().misses() == []


def mutants(nodes):
    """The same nodes with one of them wrong."""
    for index, node in enumerate(nodes):
        operator = node.operator
        wrong = {
            Layer: lambda op=operator: replace(op, weight_power=1.5 * op.weight_power),
            Pointwise: lambda op=operator: None if op.combine else View(),
            GroupNorm: View,
            BatchNorm: View,
            Dropout: lambda: Dropout(0.6),
        }.get(type(operator), lambda: None)()
        if wrong is not None:
            yield [*nodes[:index], replace(node, operator=wrong), *nodes[index + 1 :]]


@pytest.mark.parametrize("name", NETS)
def test_a_real_network_rejects_wrong_theory(name):
    net = NETS[name]()
    measured = net.measured()
    tried = [net.misses(nodes, measured) for nodes in mutants(net.nodes)]
    assert len(tried) >= 4
    assert all(tried)


def test_attention_hands_on_the_average_of_the_tokens():
    tokens = images(1.5, [0, 0.6, 0.6], [1.0, 1.1, 1.1], origins=frozenset({(-1,)}), node=-1)
    net = Net(tokens, 8, (8,))
    weight = (1 / WIDTH) ** 0.5
    layer = Layer(WIDTH, 3 * WIDTH, 1 / WIDTH, units=3 * WIDTH)
    whole = net.add(layer, lambda x: weight * net.normal(3 * WIDTH, WIDTH) @ x, -1)
    parts = net.add(View(), lambda x: x.chunk(3, 1), whole, parts=3)

    def attend(*tensors):
        query, key, value = (tensor.mT for tensor in tensors)
        return F.scaled_dot_product_attention(query, key, value, scale=0.5 * weight).mT

    net.add(Attention(8, WIDTH, 0.5 * weight), attend, *((parts, part) for part in range(3)))
    assert net.misses() == []
    plain = [*net.nodes[:2], Node(View(), ((1, 2),))]
    assert 2 in net.misses(plain), "not averaged"
    back = gradients(propagate(net.nodes, {-1: tokens}), {2: 1.0})
    assert math.isnan(back[whole][0])
