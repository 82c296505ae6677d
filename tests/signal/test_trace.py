"""The trace: what one forward pass really did, however the network is written."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gainstage.signal import NETWORK_INPUT, trace
from gainstage.signal.trace import Tracer
from tests.networks import Convolutional, Function, Functional, SharedBlocks, Tokens, TwoInputs, deep, residual
from tests.tools import normal, quiet


def described(graph):
    return [(stage.name, stage.description) for stage in graph.stages]


def test_a_plain_network_is_a_chain_of_stages():
    graph = trace(deep(2, "tanh"), normal(4, 20))
    assert described(graph) == [("hidden1", "linear + tanh"), ("hidden2", "linear + tanh"), ("output", "linear")]
    assert [stage.source for stage in graph.stages] == [NETWORK_INPUT, 0, 1]
    assert graph.main_path() == (0, 1, 2)
    assert graph.coverage == "5 of 5 operations understood"


def test_functional_activations_skips_and_joins_are_seen():
    graph = trace(quiet(Functional), normal(4, 20))
    assert described(graph) == [
        ("first", "linear + relu"),
        ("second", "linear + tanh + add + cat"),
        ("third", "linear"),
    ]
    assert graph.stages[1].skips == (0,)
    assert graph.consumers(0) == (1,)


def test_convolutions_normalisation_pooling_and_dropout():
    graph = trace(quiet(Convolutional), normal(4, 1, 8, 8))
    assert described(graph) == [
        ("conv", "conv2d + batch_norm + relu + max_pool2d"),
        ("up", "conv_transpose2d + elu + dropout"),
        ("head", "linear"),
    ]
    assert not graph.unknown
    assert graph.stages[0].layer.channels == 8


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose3d])
def test_convolutions_of_every_dimension(kind):
    layer = quiet(lambda: kind(2, 5, 3))
    x = normal(4, 2, *[6] * (1 if "1d" in kind.__name__ else 3))
    (stage,) = trace(layer, x).stages
    assert stage.layer.kind == "layer"
    assert stage.layer.channels == 5
    assert stage.layer.fans is not None


def test_a_module_called_twice_is_two_stages():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(20, 20)

        def forward(self, x):
            return self.layer(torch.relu(self.layer(x)))

    graph = trace(quiet(Twice), normal(4, 20))
    assert [(s.module, s.call, s.name) for s in graph.stages] == [("layer", 0, "layer"), ("layer", 1, "layer #2")]


def test_an_operation_it_does_not_know_is_named_not_guessed():
    model = nn.Sequential(quiet(lambda: nn.Linear(20, 8)), Function(torch.special.bessel_j0))
    graph = trace(model, normal(4, 20))
    assert [op.name for op in graph.unknown] == ["bessel_j0"]
    assert graph.coverage == "1 of 2 operations understood"


def test_the_settings_of_a_call_are_kept():
    model = quiet(lambda: nn.Sequential(nn.Linear(20, 8), nn.LeakyReLU(0.3), nn.Dropout(0.4)))
    (stage,) = trace(model, normal(4, 20)).stages
    assert stage.first("activation").settings["negative_slope"] == 0.3
    assert stage.first("dropout").settings["p"] == 0.4
    assert stage.first("dropout").settings["training"] is True


def test_weights_computed_from_parameters_are_no_operations_of_the_signal():
    layer = quiet(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(20, 8)))
    graph = trace(nn.Sequential(layer, nn.Tanh()), normal(4, 20))
    assert [op.name for op in graph.operations] == ["linear", "tanh"]
    assert "0.parametrizations.weight.original0" in graph.stages[0].layer.parameters


def test_the_path_of_a_residual_network_runs_along_its_skip_connections():
    graph = trace(residual(), normal(4, 20))
    assert graph.main_path() == (1, 3, 5, 7, 9, 11, 12)
    assert graph.stages[1].description == "linear + add"
    assert graph.stages[3].skips == (1,)


def test_the_loss_is_named_not_staged():
    model = deep(1, "relu")
    tracer = Tracer(model)
    x = normal(4, 20)
    with tracer.of(model, x):
        output = model(x)
    with tracer.of_loss():
        F.cross_entropy(output, torch.tensor([0, 1, 2, 0]))
    graph = tracer.finish(output)
    assert graph.loss == ("cross_entropy",)
    assert len(graph.stages) == 2


def test_tensors_of_the_pass_are_not_kept_alive():
    import gc
    import weakref

    model, kept = deep(1, "relu"), []
    model.activation1.register_forward_hook(lambda module, inputs, output: kept.append(weakref.ref(output)))
    with torch.no_grad():
        tracer = Tracer(model)
        x = normal(4, 20)
        with tracer.of(model, x):
            output = model(x)
        tracer.finish(output)
    gc.collect()
    assert kept[0]() is None


def test_buffers_and_constants_carry_no_signal():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(20, 8)
            self.register_buffer("mean", torch.zeros(20))

        def forward(self, x):
            h = self.layer(x - self.mean * 2)
            return h + torch.ones(8) * 3

    graph = trace(quiet(Shifted), normal(4, 20))
    assert [op.name for op in graph.operations] == ["sub", "linear", "add"]
    assert graph.stages[0].skips == ()


def test_a_transposed_view_keeps_its_origin():
    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(20, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.second(self.first(x).T.contiguous().T)

    graph = trace(quiet(Transposed), normal(4, 20))
    assert graph.stages[1].source == 0


@pytest.mark.draws
def test_noise_drawn_inside_the_network_is_its_input():
    class Generator(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, size):
            return self.layer(torch.randn(size, 8))

    assert len(trace(quiet(Generator), 4).stages) == 1


def operations_of(function, x=None):
    """The operations behind a layer."""
    model = nn.Sequential(quiet(lambda: nn.Linear(20, 8)), Function(function))
    return trace(model, normal(4, 20) if x is None else x).operations[1:]


def test_which_output_of_an_operation_is_taken_is_kept():
    chunk, sigmoid, product = operations_of(lambda z: (lambda a, b: a * torch.sigmoid(b))(*z.chunk(2, 1)))
    assert (chunk.outputs, chunk.shape) == (2, (4, 4))
    assert sigmoid.sources == ((chunk.index, 1),)
    assert product.sources == ((chunk.index, 0), (sigmoid.index, 0))
    assert product.inputs == (chunk.index, sigmoid.index)
    assert product.sizes == (16, 16)
    assert product.given == (4, 4)


@pytest.mark.parametrize(
    ("share", "parts"),
    [
        (lambda z: z.split(3, 1), 3),
        (lambda z: z.unbind(1), 8),
        (lambda z: torch.tensor_split(z, 2, 1), 2),
        (torch.var_mean, 2),
    ],
)
def test_operations_with_several_outputs(share, parts):
    first, last = operations_of(lambda z: share(z)[-1] * 2)
    assert first.outputs == parts
    assert last.sources == ((first.index, parts - 1),)


def test_calls_are_kept_with_slots_for_what_carries_signal():
    twice, power, mask, chosen = operations_of(lambda z: torch.where((z * 2) ** 3 > 0, z, -1.0))
    z = torch.tensor([-2.0, 3.0])
    assert torch.equal(twice.call([z]), 2 * z)
    assert torch.equal(power.call([z]), z**3)
    assert torch.equal(mask.call([z]), z > 0)
    assert torch.equal(chosen.call([z > 0, z]), torch.tensor([-1.0, 3.0]))
    assert [op.kind for op in (twice, power, mask, chosen)] == ["multiply", "pointwise", "pointwise", "pointwise"]


def test_a_tensor_that_is_taken_twice_is_one_source():
    (square,) = operations_of(lambda z: z * z)
    assert square.sources == ((0, 0),)
    assert torch.equal(square.call([torch.tensor(3.0)]), torch.tensor(9.0))


def test_constants_are_counted_and_single_numbers_are_not():
    scale, shift, number = operations_of(lambda z: (z * torch.arange(8.0) + torch.arange(8.0)) * torch.full((8,), 3.0))
    assert [op.constants for op in (scale, shift, number)] == [1, 1, 0]
    assert [op.call is None for op in (scale, shift, number)] == [True, True, False]
    assert float(number.call([torch.tensor(2.0)])) == 6


@pytest.mark.parametrize("gate", [torch.ones(1), torch.ones(8), torch.tensor(0.5)])
def test_a_parameter_that_nothing_has_trained_is_a_number(gate):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.gate = nn.Linear(20, 8), nn.Parameter(gate)

        def forward(self, x):
            return self.layer(x) * self.gate

    product = trace(quiet(Gated), normal(4, 20)).operations[1]
    assert (product.constants, product.parameters) == (0, ("gate",))
    assert float(product.call([torch.tensor(3.0)])) == 3 * float(gate.flatten()[0])


def test_masks_are_operations_where_they_compare_fractions_and_none_where_they_compare_integers():
    assert [op.name for op in operations_of(lambda z: z * (z > 0))] == ["gt", "mul"]
    words = trace(quiet(Tokens), torch.arange(60).reshape(20, 3) % 11)
    assert "ne" not in [op.name for op in words.operations]
    assert [op.name for op in words.operations if op.kind == "layer"] == ["embedding", "linear", "linear"]


def test_what_is_written_into_a_tensor_makes_it_another_one():
    def cleared(z):
        z = z.clone()
        z[:, :3] = 0
        return torch.relu(z)

    clone, written, relu = operations_of(cleared)
    assert [written.name, written.kind, written.shape] == ["setitem", "scatter", (4, 8)]
    assert written.sources == ((clone.index, 0),)
    assert relu.sources == ((written.index, 0),)


def test_what_is_written_into_a_fresh_tensor_carries_signal_on():
    def copied(z):
        h = torch.zeros(4, 8)
        h[:] = z
        return h * 2

    written, product = operations_of(copied)
    assert (written.name, product.sources) == ("setitem", ((written.index, 0),))


def test_what_is_written_into_a_part_of_a_fresh_tensor_carries_signal_on():
    """As detectors put images of different sizes into one batch."""

    class Batched(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(20, 8)

        def forward(self, parts):
            whole = parts[0].new_zeros(2, 5, 20)
            for i, part in enumerate(parts):
                whole[i, : len(part)].copy_(part)
            return self.layer(whole)

    graph = trace(quiet(Batched), ([normal(3, 20), normal(5, 20)],))
    first, second = [op for op in graph.operations if op.name == "copy"]
    assert [op.kind for op in (first, second)] == ["scatter"] * 2
    assert graph.stages[0].layer.sources == ((second.index, 0),)
    assert NETWORK_INPUT in first.inputs
    assert NETWORK_INPUT - 1 in second.inputs


@pytest.mark.parametrize(
    "change", [lambda part: part.mul_(2), lambda part: F.relu(part, inplace=True), torch.Tensor.relu_]
)
def test_a_change_of_a_part_in_place_changes_the_whole_and_is_no_function_of_it(change):
    def partly(z):
        z = z.clone()
        change(z[:, :3])
        return z * 3

    _, view, written, product = operations_of(partly)
    assert (written.kind, written.call, written.inputs) == ("scatter", None, (view.index,))
    assert product.sources == ((written.index, 0),)


def test_a_change_in_place_of_the_same_numbers_in_another_shape_is_one_of_them():
    def whole(z):
        z = z.clone()
        z.view(-1).relu_()
        return z * 3

    *_, relu, product = operations_of(whole)
    assert (relu.name, relu.kind) == ("relu", "activation")
    assert product.sources == ((relu.index, 0),)


def test_each_input_has_a_number_of_its_own():
    x = normal(4, 20), normal(4, 12)
    graph = trace(quiet(TwoInputs), x)
    assert [stage.layer.inputs for stage in graph.stages[:2]] == [(NETWORK_INPUT,), (NETWORK_INPUT - 1,)]
    assert [stage.source for stage in graph.stages[:2]] == [NETWORK_INPUT] * 2
    by_name = trace(quiet(TwoInputs), {"right": x[1], "left": x[0]})
    assert [stage.layer.inputs for stage in by_name.stages[:2]] == [(NETWORK_INPUT - 1,), (NETWORK_INPUT,)]


def test_a_parameter_that_the_model_does_not_know_of_carries_no_signal():
    class Hides(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = [nn.Linear(20, 8)]  # a plain list

        def forward(self, x):
            return F.linear(x, 2 * self.layers[0].weight)

    (layer,) = trace(quiet(Hides), normal(4, 20)).operations
    assert (layer.inputs, layer.parameters, layer.weight) == ((NETWORK_INPUT,), (), "")


def test_a_loss_computed_inside_is_an_operation_and_named():
    class Scored(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(20, 3)

        def forward(self, x, labels):
            return F.cross_entropy(self.layer(x), labels)

    graph = trace(quiet(Scored), (normal(4, 20), torch.tensor([0, 1, 2, 0])))
    assert [op.kind for op in graph.operations] == ["layer", "loss"]
    assert (graph.loss, graph.output_stage) == (("cross_entropy",), 0)


def test_the_outputs_are_the_operations_that_made_what_comes_out():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(20, 3), nn.Linear(20, 2)

        def forward(self, x):
            return {"a": self.first(x), "b": [torch.relu(self.second(x)), x]}

    graph = trace(quiet(Heads), normal(4, 20))
    assert graph.outputs == (0, 2, NETWORK_INPUT)
    assert graph.output_stage == 1


def test_a_layer_knows_its_weights_name_and_shares_it_where_it_runs_again():
    graph = trace(quiet(SharedBlocks), normal(4, 64))
    assert [stage.layer.weight for stage in graph.stages][:4] == [
        "stem.weight",
        "first.weight",
        "second.weight",
        "first.weight",
    ]
    normed = quiet(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(20, 8)))
    assert trace(normed, normal(4, 20)).stages[0].layer.weight == ""


def test_settings_name_positional_arguments_and_the_kernel():
    graph = trace(quiet(lambda: nn.Sequential(nn.Conv2d(1, 4, (3, 5), 2, 1), nn.MaxPool2d(2, 1))), normal(4, 1, 9, 9))
    convolution, pool = graph.operations
    assert convolution.settings["kernel"] == (3, 5)
    assert (convolution.settings["stride"], convolution.settings["padding"]) == ((2, 2), (1, 1))
    assert (pool.settings["kernel_size"], pool.settings["stride"]) == (2, 1)
    norm = operations_of(nn.LayerNorm(8))[0]
    assert norm.settings["normalized_shape"] == (8,)


@pytest.mark.parametrize("build", [lambda: deep(2, "prelu"), Convolutional], ids=["prelu", "convolutional"])
def test_a_graph_needs_no_numbers(build):
    model = quiet(build).to("meta")
    x = torch.empty(4, *((1, 8, 8) if isinstance(model, Convolutional) else (20,)), device="meta")
    graph = trace(model, x)
    assert not graph.unknown
    assert described(graph) == described(trace(quiet(build), torch.zeros(x.shape)))
