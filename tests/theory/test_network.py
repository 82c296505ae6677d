"""Graphs in theory: which node's numbers come from which, what adds up on the way back, and what readings change."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from gainstage.errors import BadInput
from gainstage.theory import Node, Slot, field, gradients, pointwise, propagate
from gainstage.theory.operators import Layer, Pointwise, Unknown, View
from gainstage.theory.propagation import slopes, through_function
from tests.theory.fields import images, step

ADD, MULTIPLY = step(torch.add, Slot(0), Slot(1)), step(torch.mul, Slot(0), Slot(1))
INPUT = field(1.0, 0.5, columns=5, origins=frozenset({(-1,)}), node=-1)
IMAGE = images(1.5, [0, 0.3, 0.5, 0.6, 0.6], [1.0, 1.1, 1.2, 1.2, 1.2], origins=frozenset({(-1,)}), node=-1)


def layers(*inputs):
    """A row of small layers that read the given nodes."""
    return [Node(Layer(10, 10, 0.1, units=10), ((source, 0),)) for source in inputs]


def joined(call, combine, *sources):
    return Node(Pointwise(call, combine), tuple((source, 0) for source in sources))


SILU = [joined(step(torch.sigmoid), "", 0), joined(MULTIPLY, "product", 0, 1)]


def test_a_function_written_out_is_worked_out_once_and_leads_back_to_its_gaussian_field():
    theory = propagate([*layers(-1), *SILU, *layers(2)], {-1: INPUT})
    before = theory.fields[0]
    assert not theory.predicted[1].known, "a step of a longer function is not worked out"
    assert theory.edges[1] == ()
    assert theory.fields[2].level == pytest.approx(through_function(before, pointwise(F.silu)).level, rel=1e-9)
    (edge,) = theory.edges[2]
    assert edge.node == 0
    assert edge.factor == pytest.approx(slopes(before, pointwise(F.silu)).slope, rel=1e-9)
    back = gradients(theory, {3: 1.0})
    assert math.isnan(back[1][0])
    assert back[0][0] == pytest.approx(edge.factor)


def test_a_step_that_others_read_too_is_worked_out_for_them():
    theory = propagate([*layers(-1), *SILU, *layers(1, 2)], {-1: INPUT})
    assert theory.predicted[1].level == pytest.approx(
        through_function(theory.fields[0], pointwise(torch.sigmoid)).level
    )
    back = gradients(theory, {3: 1.0})
    assert back[0][0] == pytest.approx(slopes(theory.fields[0], pointwise(torch.sigmoid)).slope)


def test_what_several_readers_send_back_adds_up():
    nodes = layers(-1, 0, 0, 0)
    theory = propagate(nodes, {-1: INPUT})
    one, all_three = gradients(theory, {1: 1.0}), gradients(theory, {1: 1.0, 2: 2.0, 3: 3.0})
    assert (one[0][0], all_three[0][0], all_three[-1][0]) == pytest.approx((1, 6, 6))
    assert one[0][1] == pytest.approx(2 / 10)


def test_of_two_inputs_each_gets_its_own_gradient():
    sources = {-1: INPUT, -2: replace(INPUT, origins=frozenset({(-2,)}), node=-2)}
    back = gradients(propagate([*layers(-1, -2), joined(ADD, "sum", 0, 1), *layers(-2)], sources), {2: 1.0, 3: 4.0})
    assert (back[-1][0], back[-2][0]) == pytest.approx((1, 5))


@pytest.mark.parametrize("used", [[0], [0, 1]])
def test_parts_have_the_mean_of_their_gradients(used):
    nodes = [*layers(-1), Node(View(), ((0, 0),), parts=2)]
    nodes += [Node(Layer(5, 10, 0.1), ((1, part),)) for part in used]
    back = gradients(propagate(nodes, {-1: INPUT}), {2 + i: 1.0 for i in range(len(used))})
    assert back[0][0] == pytest.approx(len(used) / 2)


def test_parts_are_independent_of_each_other_and_not_of_the_whole():
    both = [*layers(-1), Node(View(), ((0, 0),), parts=2)]
    parts, whole = ((1, 0), (1, 1)), ((1, 0), (0, 0))
    for inputs, known in ((parts, True), (whole, False)):
        found = propagate([*both, Node(Pointwise(ADD, "sum"), inputs)], {-1: INPUT}).predicted[2]
        assert found.known is known
    twice = propagate([*both, Node(Pointwise(MULTIPLY, "product"), ((1, 0), (1, 0)))], {-1: INPUT})
    square = through_function(twice.fields[0], pointwise(torch.square))
    assert twice.predicted[2].level == pytest.approx(square.level), "one part with itself is a function of it"


def test_parts_of_a_function_are_not_functions_of_the_same_numbers():
    nodes = [*layers(-1), joined(step(F.relu), "", 0), Node(View(), ((1, 0),), parts=2)]
    theory = propagate([*nodes, Node(Pointwise(MULTIPLY, "product"), ((2, 0), (2, 1)))], {-1: INPUT})
    assert theory.predicted[3].level == pytest.approx(theory.fields[1].level ** 2)
    assert theory.predicted[3].level != pytest.approx(
        through_function(theory.fields[0], pointwise(lambda z: F.relu(z) ** 2)).level
    )


def test_what_is_selected_gets_all_of_the_gradient_and_the_rest_none():
    nodes = [*layers(-1), Node(View(0.25), ((0, 0),), selects=True), *layers(1)]
    theory = propagate(nodes, {-1: INPUT})
    assert theory.fields[1].node == 1
    assert theory.fields[1].level == theory.fields[0].level
    assert gradients(theory, {2: 1.0})[0][0] == pytest.approx(0.25)


def test_a_mere_view_is_the_tensor_itself():
    theory = propagate([*layers(-1), Node(View(), ((0, 0),)), joined(step(F.relu), "", 1), *layers(2)], {-1: INPUT})
    assert theory.fields[1] is theory.fields[0]
    assert theory.edges[2][0].node == 0
    assert gradients(theory, {3: 1.0})[0][0] == pytest.approx(0.5)


def test_layers_have_origins_of_their_own_and_share_those_of_shared_weights():
    def summed(first=None, second=None):
        pair = [replace(node, weights=weights) for node, weights in zip(layers(-1, -1), (first, second), strict=True)]
        return propagate([*pair, joined(ADD, "sum", 0, 1)], {-1: INPUT}).predicted[2]

    assert summed().known
    assert summed().origins == {(0,), (1,)}
    assert not summed(0, 0).known
    residual = propagate([*layers(-1), joined(ADD, "sum", -1, 0)], {-1: INPUT}).predicted[1]
    assert residual.known, "a layer's output is uncorrelated with its input"


def test_positions_are_forgotten_where_they_are_gone():
    for flat in (False, True):
        nodes = [replace(layers(-1)[0], flat=flat)]
        assert bool(propagate(nodes, {-1: IMAGE}).fields[0].gaps[0].any()) is not flat


def test_what_follows_a_reading_is_predicted_from_it():
    nodes = [*layers(-1), joined(step(torch.tanh), "", 0), *layers(1, 2)]
    free, forced = propagate(nodes, {-1: INPUT}), propagate(nodes, {-1: INPUT}, {0: (8.0, 2.0), 2: (0.5, 0.1)})
    assert forced.predicted[0].level == free.predicted[0].level, "what was predicted stays on record"
    assert (forced.fields[0].level, forced.fields[0].signal) == (8.0, 2.0)
    tanh = through_function(replace(forced.fields[0], gaussian=True), pointwise(torch.tanh))
    assert (forced.predicted[1].level, forced.predicted[1].signal) == (tanh.level, tanh.signal)
    assert forced.predicted[1].level != pytest.approx(free.predicted[1].level, rel=0.1)
    assert (forced.predicted[3].level, forced.predicted[3].signal) == pytest.approx((0.5, 0.1))
    assert forced.predicted[3].variance == pytest.approx(2 / 10), "a measured level is certain"
    slope = slopes(forced.fields[0], pointwise(torch.tanh)).slope
    assert gradients(forced, {2: 1.0})[0][0] == pytest.approx(slope)


def test_a_reading_may_tell_of_the_positions_too():
    nodes = [*layers(-1), joined(step(torch.tanh), "", 0)]
    found = propagate(nodes, {-1: IMAGE}, {0: (3.0, 2.0, 0.1, 2.1)})
    assert found.fields[0].gaps[:, -1].tolist() == [0.1, 2.1]
    assert found.predicted[1].gaps[0, -1] < found.predicted[1].gaps[0, 1], (
        "far positions were more alike than near ones"
    )
    flat = propagate([replace(nodes[0], flat=True)], {-1: IMAGE}, {0: (3.0, 2.0, 0.1, 2.1)})
    assert not flat.fields[0].gaps[0].any()


def test_a_step_that_was_measured_is_worked_out():
    theory = propagate([*layers(-1), *SILU], {-1: INPUT}, {1: (0.4, 0.1)})
    assert theory.predicted[1].known
    assert (theory.fields[1].level, theory.fields[1].signal) == (0.4, 0.1)


def test_a_measured_gradient_is_where_the_prediction_goes_on():
    theory = propagate(layers(-1, 0, 1, 2), {-1: INPUT})
    back = gradients(theory, {3: 1.0, 1: 7.0})
    assert back[1] == pytest.approx((1.0, 0.4)), "what was predicted there stays on record"
    assert back[0] == pytest.approx((7.0, 0.2))
    assert back[3] == (1.0, 0.0)


def test_past_the_unknown_nothing_is_predicted_until_something_is_measured():
    nodes = [*layers(-1), Node(Unknown(), ((0, 0),)), *layers(1), joined(step(F.relu), "", 2), *layers(3)]
    free = propagate(nodes, {-1: INPUT})
    assert [found.known for found in free.predicted] == [True, False, False, False, False]
    back = gradients(free, {4: 1.0})
    assert [math.isnan(back[node][0]) for node in (-1, 0, 1, 2)] == [True, True, True, True]
    forced = propagate(nodes, {-1: INPUT}, {2: (2.0, 1.0)})
    assert [found.known for found in forced.predicted] == [True, False, False, True, True]
    assert forced.predicted[3].level == pytest.approx(1.0)
    back = gradients(forced, {4: 1.0, 0: 3.0})
    assert [back[node][0] for node in (1, 2, -1)] == pytest.approx([0.5, 0.5, 3.0])
    assert math.isnan(back[0][0])


def test_nothing_arrives_where_nothing_reads_and_dead_ends_send_nothing_back():
    nodes = [*layers(-1, 0), Node(Unknown(), ((0, 0),)), *layers(2)]
    back = gradients(propagate(nodes, {-1: INPUT}), {1: 1.0})
    assert back[0][0] == pytest.approx(1.0)
    assert math.isnan(back[2][0])
    assert math.isnan(back[3][0])


@pytest.mark.parametrize("source", [-2, 0, 1])
def test_a_node_takes_in_what_is_there_already(source):
    with pytest.raises(BadInput, match=f"node 0 takes in {source}, which is neither a source nor a node before it"):
        propagate(layers(source, -1), {-1: INPUT})


@pytest.mark.parametrize("node", [2, -1])
def test_a_gradient_starts_at_a_node_that_is_there(node):
    with pytest.raises(BadInput, match=f"a power is given for node {node} of a network with 2 nodes"):
        gradients(propagate(layers(-1, 0), {-1: INPUT}), {node: 1.0})
