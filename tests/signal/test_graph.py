"""Stages and their relations, on graphs built by hand."""

import torch
from torch import nn

from gainstage.signal import NETWORK_INPUT, Graph, Operation, Stage, trace
from tests.networks import SqueezeExcitation, residual
from tests.tools import normal, quiet


def operation(index, name, kind, stage, inputs, shape=(8, 4), **more):
    return Operation(index, name, kind, "", stage, tuple((i, 0) for i in inputs), (), {}, shape=shape, **more)


def stage(index, source, skips=(), operations=None, module="a", call=0):
    operations = operations or (operation(index, "linear", "layer", index, ()),)
    return Stage(index, module, call, operations, source, skips)


def test_names_count_calls_from_the_second_on():
    assert stage(0, NETWORK_INPUT, module="enc.0").name == "enc.0"
    assert stage(0, NETWORK_INPUT, module="enc.0", call=2).name == "enc.0 #3"
    assert stage(0, NETWORK_INPUT, module="").name == "(model)"


def test_the_main_path_leads_back_from_the_output_and_leaves_side_branches_out():
    stages = (stage(0, NETWORK_INPUT), stage(1, 0), stage(2, 0), stage(3, 2))
    assert Graph((), stages, output_stage=3).main_path() == (0, 2, 3)


def test_the_main_path_takes_the_skip_connection():
    ops = [operation(i, "linear", "layer", i, (i - 1,)) for i in range(3)]
    for kind, path in (("add", (0, 2)), ("join", (0, 1, 2))):
        last = operation(3, kind, kind, 2, (2, 0))
        stages = (stage(0, NETWORK_INPUT), stage(1, 0), stage(2, 1, skips=(0,), operations=(ops[2], last)))
        assert Graph((*ops, last), stages, output_stage=2).main_path() == path


def test_consumers_take_in_or_join():
    stages = (stage(0, NETWORK_INPUT), stage(1, 0), stage(2, 1, skips=(0,)))
    assert Graph((), stages, 2).consumers(0) == (1, 2)
    assert Graph((), stages, 2).consumers(2) == ()


def test_a_description_names_each_operation_once_and_leaves_reshapes_out():
    operations = (
        operation(0, "conv2d", "layer", 0, ()),
        operation(1, "relu", "activation", 0, (0,)),
        operation(2, "flatten", "reshape", 0, (1,)),
        operation(3, "relu", "activation", 0, (2,)),
    )
    assert stage(0, NETWORK_INPUT, operations=operations).description == "conv2d + relu"


def test_units_stand_where_the_layer_says_and_last_otherwise():
    assert operation(0, "conv2d", "layer", 0, (), (8, 3, 5, 5), channel_dim=1).channels == 3
    assert operation(0, "matmul", "layer", 0, (), (8, 3, 5), channel_dim=-2).channels == 3
    assert operation(0, "linear", "layer", 0, (), (8, 3, 5)).channels == 5


def test_coverage_counts_what_was_understood():
    operations = (operation(0, "linear", "layer", 0, ()), operation(1, "fft", "unknown", 0, (0,)))
    graph = Graph(operations, (stage(0, NETWORK_INPUT, operations=operations),), 0)
    assert graph.coverage == "1 of 2 operations understood"
    assert graph.unknown == (operations[1],)


def test_an_operation_takes_from_others_each_of_which_counts_once():
    split = Operation(3, "mul", "multiply", "", 0, ((2, 0), (2, 1), (0, 0)), (), {})
    assert split.inputs == (2, 0)


def test_what_leaves_a_stage_last_is_what_another_stage_or_the_network_takes():
    graph = trace(quiet(SqueezeExcitation), normal(4, 20))
    names = [graph.operations[graph.leaving(stage.index)].name for stage in graph.stages]
    assert names == ["relu", "relu", "mul", "linear"]
    assert graph.leaving(NETWORK_INPUT) is None, "nothing stands in front of the first layer"


def test_of_several_tensors_that_leave_the_latest_counts():
    """h goes on to the second stage, relu(h) to the third."""
    operations = (
        operation(0, "linear", "layer", 0, (NETWORK_INPUT,)),
        operation(1, "relu", "activation", 0, (0,)),
        operation(2, "linear", "layer", 1, (1,)),
        operation(3, "linear", "layer", 2, (0,)),
        operation(4, "add", "add", 2, (2, 3)),
    )
    members = [operations[:2], operations[2:3], operations[3:]]
    stages = tuple(stage(i, 0 if i else NETWORK_INPUT, operations=found) for i, found in enumerate(members))
    graph = Graph(operations, stages, 2, outputs=(4,))
    assert [graph.leaving(i) for i in range(3)] == [1, 2, 4]


def test_a_stage_that_nothing_takes_from_has_nothing_that_leaves():
    alone = operation(0, "linear", "layer", 0, (NETWORK_INPUT,))
    assert Graph((alone,), (stage(0, NETWORK_INPUT, operations=(alone,)),), 0).leaving(0) is None


def test_tensors_from_outside_belong_to_no_stage_whatever_their_number():
    first = operation(0, "add", "add", NETWORK_INPUT, (NETWORK_INPUT, NETWORK_INPUT - 1))
    layer = operation(1, "linear", "layer", 0, (0,))
    graph = Graph((first, layer), (stage(0, NETWORK_INPUT, operations=(layer,)),), 0, outputs=(1,))
    assert graph.leaving(NETWORK_INPUT) == 0
    assert graph.leaving(0) == 1


def test_the_output_of_a_residual_network_leaves_its_last_stage():
    graph = trace(residual(), normal(4, 20))
    assert graph.outputs == (graph.operations[-1].index,)
    assert graph.leaving(graph.output_stage) == graph.outputs[0]


class Hourglass(nn.Module):
    """A bottleneck with a concatenated skip connection around it, as in a U-Net."""

    def __init__(self):
        super().__init__()
        self.down, self.bottleneck, self.up, self.head = (nn.Linear(*s) for s in ((8, 8), (8, 2), (2, 8), (16, 3)))

    def forward(self, x):
        h = torch.relu(self.down(x))
        g = torch.relu(self.up(torch.relu(self.bottleneck(h))))
        return self.head(torch.cat([h, g], dim=1))


def test_the_main_path_leads_through_a_bottleneck_that_a_concatenation_goes_around():
    graph = trace(quiet(Hourglass), normal(4, 8))
    assert [graph.stages[i].name for i in graph.main_path()] == ["down", "bottleneck", "up", "head"]


def test_the_main_path_leads_along_what_is_added():
    graph = trace(residual(), normal(4, 20))
    assert [graph.stages[i].name for i in graph.main_path()][-2:] == ["blocks.5.2", "head"]
    assert len(graph.main_path()) == 7, "the input of a block, not the first layer of its branch"
