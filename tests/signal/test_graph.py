"""Stages and their relations, on graphs built by hand."""

from gainstage.signal import NETWORK_INPUT, Graph, Operation, Stage


def operation(index, name, kind, stage, inputs, shape=(8, 4)):
    return Operation(index, name, kind, "", stage, inputs, (), {}, shape)


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
    stages = (stage(0, NETWORK_INPUT), stage(1, 0), stage(2, 1, skips=(0,)))
    assert Graph((), stages, output_stage=2).main_path() == (0, 2)


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


def test_units_stand_in_dimension_one_behind_a_convolution_and_last_otherwise():
    assert operation(0, "conv2d", "layer", 0, (), (8, 3, 5, 5)).channels == 3
    assert operation(0, "conv_transpose1d", "layer", 0, (), (8, 3, 5)).channels == 3
    assert operation(0, "linear", "layer", 0, (), (8, 3, 5)).channels == 5


def test_coverage_counts_what_was_understood():
    operations = (operation(0, "linear", "layer", 0, ()), operation(1, "fft", "unknown", 0, (0,)))
    graph = Graph(operations, (stage(0, NETWORK_INPUT, operations=operations),), 0)
    assert graph.coverage == "1 of 2 operations understood"
    assert graph.unknown == (operations[1],)
