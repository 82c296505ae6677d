"""How far networks of finite width spread about theory: the variance that a field states, over many drawn networks.

A field's variance is an upper bound, for functions that grow no faster than their argument; for one pair of samples through
a chain of layers it is the variance itself, up to squares of 1/width.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from gainstage.theory import Node, Slot, field, gradients, lookup, pointwise, propagate
from gainstage.theory.operators import Layer, Pointwise
from gainstage.theory.propagation import (
    through_concatenation,
    through_dropout,
    through_function,
    through_layer,
    through_product,
    through_sum,
)
from tests.theory.fields import exact, step
from tests.tools import generator, quiet

NETWORKS, WIDTH = 2000, 64
ERROR = 4 * math.sqrt(2 / NETWORKS)  # of a variance over that many networks, relative, four standard errors
PAIR = field(1.0, 1.0, units=math.inf, origins=frozenset({(-1,)}))
ADD = step(torch.add, Slot(0), Slot(1))


class Draw:
    """Layers of many networks at once: x is (networks, samples, units)."""

    def __init__(self, seed=0):
        self.generator = generator(seed)

    def weights(self, inputs, outputs, power=1.0):
        return torch.randn(NETWORKS, inputs, outputs, generator=self.generator) * (power / inputs) ** 0.5

    def layer(self, x, units=WIDTH, power=1.0):
        return x @ self.weights(x.shape[-1], units, power)


def pairs(given=PAIR):
    return exact(given, WIDTH, samples=2).float()[None].expand(NETWORKS, -1, -1)


def after_layer(given, units=WIDTH, inputs=WIDTH, power=1.0, origin=0):
    return replace(through_layer(given, inputs, power / inputs, units=units), origins=frozenset({(origin,)}))


def spread(x):
    """Variance over the networks of the logarithm of the signal."""
    return float((x[:, 0] - x[:, 1]).square().mean(-1).log().var())


def bounded(measured, found, share):
    """At most the bound (and the squares of 1/width that a logarithm adds), and at least a share of it."""
    return share * found * (1 - ERROR) < measured < found * (1 + ERROR) * (1 + 2 * found)


CHAINS = [("relu", 2.0, 0.85), ("tanh", 1.5, 0.85), ("selu", 1.0, 0.8), ("logistic", 4.0, 0.85), ("gelu", 2.35, 0.85)]


@pytest.mark.parametrize(("name", "power", "share"), CHAINS)
def test_a_chain_of_layers_spreads_as_predicted(name, power, share):
    draw, x, found = Draw(), pairs(), PAIR
    for _ in range(4):
        x, found = draw.layer(x, power=power), after_layer(found, power=power)
        assert bounded(spread(x), found.variance, share)
        x, found = lookup(name).function(x), through_function(found, pointwise(lookup(name).function))
        assert bounded(spread(x), found.variance, share)
    for wrong in (8 / WIDTH, 2 * found.variance) if name in ("relu", "gelu") else (2 * found.variance,):
        assert not bounded(spread(x), wrong, share), "the layers alone, or twice as much"


def test_every_relu_layer_adds_five_over_its_width_for_samples_nearly_alike():
    alike = replace(field(1e-6, 1.0), units=math.inf)
    draw, x, found = Draw(), pairs(alike), alike
    for depth, width in enumerate((64, 32, 64)):
        before = found.variance
        found = after_layer(found, width, x.shape[-1], power=2.0)
        assert found.variance - before == pytest.approx(2 / width)
        x, found = torch.relu(draw.layer(x, width, 2.0)), through_function(found, pointwise(F.relu))
        assert found.variance - before == pytest.approx(5 / width, rel=5e-3)
        assert bounded(spread(x), found.variance, 0.8), depth


def test_the_width_that_counts_is_that_of_the_layer_not_of_its_input():
    x, found = Draw().layer(pairs(), 16), after_layer(PAIR, 16)
    assert bounded(spread(x), found.variance, 0.85)
    assert not bounded(spread(x), after_layer(PAIR, WIDTH).variance, 0.85)


def gaussian(origin, units=WIDTH):
    return after_layer(PAIR, units, origin=origin)


def rectified(origin):
    return replace(through_function(gaussian(origin), pointwise(F.relu)), pre=None)


def test_sums_spread_no_more_than_their_parts_and_what_is_between_them():
    draw, x = Draw(), pairs()
    for values, parts, share in (
        (x + draw.layer(x), [PAIR, gaussian(1)], 0.85),
        (draw.layer(x) + draw.layer(x), [gaussian(1), gaussian(2)], 0.6),
        (x + torch.relu(draw.layer(x)), [PAIR, rectified(1)], 0.7),
        (sum(draw.layer(x) for _ in range(4)), [gaussian(i) for i in range(4)], 0.5),
    ):
        assert bounded(spread(values), through_sum(parts).variance, share)
    shares = 0.25 * gaussian(1).variance
    assert not bounded(spread(x + draw.layer(x)), shares, 0.0), "what is between x and W x forgotten"


def test_products_spread_as_their_factors_together():
    draw, x = Draw(), pairs()
    one, other = draw.layer(x), draw.layer(x)
    for values, parts, share in (
        (one * other, [gaussian(1), gaussian(2)], 0.5),
        (torch.relu(one) * other, [rectified(1), gaussian(2)], 0.6),
    ):
        assert bounded(spread(values), through_product(parts).variance, share)
        assert not bounded(spread(values), parts[0].variance, 0.0), "as one factor"


def test_what_is_inherited_adds_up_in_products():
    draw = Draw()
    narrow, before = draw.layer(pairs(), 16), after_layer(PAIR, 16)
    one, other = (after_layer(before, inputs=16, origin=i) for i in (1, 2))
    found = through_product([one, other])
    assert bounded(spread(draw.layer(narrow) * draw.layer(narrow)), found.variance, 0.5)
    assert found.inherited == pytest.approx(4 * before.variance)


def test_units_side_by_side_count_by_their_number():
    draw, x = Draw(), pairs()
    uncertain = draw.layer(draw.layer(draw.layer(x, 8), 8), WIDTH)
    found = after_layer(after_layer(gaussian(0, 8), 8, 8), WIDTH, 8, origin=1)
    joined = through_concatenation([found, PAIR], (WIDTH, 8))
    assert bounded(spread(torch.cat([uncertain, x[..., :8]], -1)), joined.variance, 0.8)
    assert not bounded(spread(torch.cat([uncertain, x[..., :8]], -1)), found.variance / 4, 0.0), "half each"


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_dropout_spreads_what_few_units_are_left(rate):
    draw, x = Draw(), pairs()
    for values, found in ((draw.layer(x), gaussian(1)), (torch.relu(draw.layer(x)), rectified(1))):
        dropped = quiet(lambda values=values: F.dropout(values, rate))
        bound = through_dropout(found, rate).variance
        assert bounded(spread(dropped), bound, 0.5)
        assert rate == 0.1 or not bounded(spread(dropped), found.variance, 0.0), "as without"


def gradient_spread(gradient):
    """Of one sample: variance over the networks of the logarithm of the gradient's power."""
    return float(gradient[:, 0].square().mean(-1).log().var())


def layer_node(source, units=WIDTH, inputs=WIDTH, power=1.0):
    return Node(Layer(inputs, units, power / inputs, units=units), ((source, 0),))


def noise_behind(x):
    """White noise of power 1 to send back."""
    noise = torch.randn(x.shape, generator=generator(9))
    return noise / noise.square().mean(2, keepdim=True).sqrt()


def test_the_gradient_spreads_by_the_width_of_every_layer_that_it_comes_through():
    draw, widths = Draw(), (48, 64, 32, 64)
    nodes, x, seen = [], pairs(), []
    for width in widths:
        inputs = x.shape[-1]
        nodes += [layer_node(len(nodes) - 1, width, inputs, 2.0), Node(Pointwise(step(F.relu)), ((len(nodes), 0),))]
        x = draw.layer(x, width, 2.0).requires_grad_(True)
        seen.append(x)
        x = torch.relu(x)
    found = gradients(propagate(nodes, {-1: PAIR}), {len(nodes) - 1: 1.0})
    real = torch.autograd.grad((x * noise_behind(x)).sum(), seen)
    for number, gradient in enumerate(real[:-1]):
        power, variance = found[2 * number]
        assert float(gradient.square().mean()) == pytest.approx(power, rel=0.1)
        assert bounded(gradient_spread(gradient), variance, 0.7)
        assert not bounded(gradient_spread(gradient), 2 * variance, 0.7), "twice as much"
    below = [2 / width for width in widths[:-1]]
    assert not bounded(gradient_spread(real[0]), sum(below), 0.7), "the layers alone"


def residual_network(blocks):
    """x + W relu(V x), again and again: nodes, hidden tensors."""
    draw = Draw()
    nodes, x = [layer_node(-1)], draw.layer(pairs()).requires_grad_(True)
    seen, last = [x], 0
    for _ in range(blocks):
        first = len(nodes)
        nodes += [layer_node(last), Node(Pointwise(step(F.relu)), ((first, 0),)), layer_node(first + 1, power=2.0)]
        nodes.append(Node(Pointwise(ADD, "sum"), ((first + 2, 0), (last, 0))))
        last = first + 3
        x = x + draw.layer(torch.relu(draw.layer(x)), power=2.0)
        seen.append(x)
    return nodes, seen


def test_a_residual_network_stays_within_its_bounds_forward_and_backward():
    nodes, seen = residual_network(5)
    forward = propagate(nodes, {-1: PAIR})
    found = gradients(forward, {len(nodes) - 1: 1.0})
    real = torch.autograd.grad((seen[-1] * noise_behind(seen[-1])).sum(), seen[:-1])
    for block, (x, gradient) in enumerate(zip(seen, real, strict=False)):
        power, variance = found[4 * block]
        assert bounded(spread(x.detach()), forward.fields[4 * block].variance, 0.5)
        assert float(gradient.square().mean()) == pytest.approx(power, rel=0.1)
        assert bounded(gradient_spread(gradient), variance, 0.6)
