"""The trace: what one forward pass really did, however the network is written."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gainstage.signal import NETWORK_INPUT, trace
from gainstage.signal.trace import Tracer
from tests.networks import Convolutional, Functional, deep, residual
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
    class Fourier(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(20, 8)

        def forward(self, x):
            return torch.fft.fft(self.layer(x)).real

    graph = trace(quiet(Fourier), normal(4, 20))
    assert [op.name for op in graph.unknown] == ["fft_fft"]
    assert graph.coverage.startswith("1 of 2")


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
