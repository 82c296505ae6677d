"""A pass that is followed by the script of an earlier one reads the same numbers as a trace."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gainstage.signal.probes import Probes
from gainstage.signal.replay import Replay, outputs_in, shapes_in
from gainstage.signal.trace import Tracer
from tests.networks import (
    Convolutional,
    Encoder,
    Function,
    Functional,
    SharedBlocks,
    SqueezeExcitation,
    TwoInputs,
    deep,
    residual,
)
from tests.tools import normal, quiet


class Masked(nn.Module):
    """Writes into what it has computed, in place, and asks for shapes on the way."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(20, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.first(x)
        h[h < 0] = 0.1
        assert h.shape[1] == h.size(1) == 8
        h.mul_(torch.full((8,), 2.0))
        return self.second(h.relu_())


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.LSTM(20, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.cells(x)[0][:, -1])


def weight_normed():
    model = deep(2, "tanh")
    torch.nn.utils.parametrizations.weight_norm(model.hidden1)
    return model


NETWORKS = {
    "plain": (lambda: deep(3, "selu"), (16, 20)),
    "rectified": (lambda: deep(3, "relu"), (16, 20)),
    "residual": (residual, (16, 20)),
    "convolutional": (lambda: Convolutional().eval(), (8, 1, 8, 8)),
    "functional": (Functional, (16, 20)),
    "squeeze and excitation": (SqueezeExcitation, (16, 20)),
    "shared": (SharedBlocks, (16, 64)),
    "encoder": (lambda: Encoder(dropout=0.0), (8, 16, 64)),
    "in place": (Masked, (16, 20)),
    "computed weights": (weight_normed, (16, 20)),
    "constants": (lambda: nn.Sequential(nn.Linear(20, 3), Function(lambda z: z * torch.arange(3.0))), (16, 20)),
    "attention": (lambda: nn.TransformerEncoderLayer(64, 4, 32, 0.0, batch_first=True), (8, 5, 64)),
    "recurrent": (lambda: Recurrent(), (8, 5, 20)),
    "several outputs": (lambda: nn.Sequential(nn.Linear(20, 8), Function(lambda z: z.chunk(2, 1))), (16, 20)),
}


def read(model, x, mode, probes):
    """The numbers of a pass with a backward pass and the weights; in and behind `mode`."""
    with mode:
        output = model(x)
    total = sum(t.square().sum() for t in ([output] if isinstance(output, torch.Tensor) else output))
    total.backward()
    probes.read_weights()
    probes.detach()
    return output


def traced(model, x):
    probes = Probes()
    tracer = Tracer(model, probes)
    output = read(model, x, tracer.of(model, x), probes)
    graph = tracer.finish(output)
    return tracer.script(graph), probes


@pytest.mark.parametrize("name", NETWORKS)
def test_the_numbers_are_those_of_a_trace(name):
    make, shape = NETWORKS[name]
    model = quiet(make)
    script, _ = traced(model, normal(*shape))
    x = normal(*shape, seed=1) + 0.5
    _, probes = traced_with_outputs(model, x)
    expected = {key: value for key, value in probes.read().items() if key[1] >= 0}
    followed = Probes()
    replay = Replay(script, followed)
    read(model, x, replay, followed)
    assert replay.followed
    found = followed.read()
    assert found.keys() == expected.keys()
    assert {"signal", "weight", "gradient"} <= {quantity for quantity, _ in found}
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-5, nan_ok=True), key


def traced_with_outputs(model, x):
    """A trace whose outputs were told before the backward pass, so that their gradients are read."""
    probes = Probes()
    tracer = Tracer(model, probes)
    with tracer.of(model, x):
        output = model(x)
    graph = tracer.finish(output)
    sum(t.square().sum() for t in ([output] if isinstance(output, torch.Tensor) else output)).backward()
    probes.read_weights()
    probes.detach()
    return tracer.script(graph), probes


def test_the_output_is_what_it_would_be():
    model, x = quiet(Masked), normal(16, 20)
    script, _ = traced(model, x)
    with Replay(script, Probes()):
        output = model(x)
    assert torch.equal(output, model(x))


class Fork(nn.Module):
    """Goes another way from call to call."""

    def __init__(self):
        super().__init__()
        self.layer, self.way = nn.Linear(20, 20), 0

    def forward(self, x):
        x = self.layer(x)
        return [lambda: x.tanh(), lambda: x.sigmoid(), lambda: x.tanh().tanh(), lambda: x][self.way]()


@pytest.mark.parametrize("way", [1, 2, 3])
def test_another_way_through_the_network_is_noticed(way):
    """Another function, one more, one less."""
    model, x = quiet(Fork), normal(8, 20)
    script, _ = traced(model, x)
    model.way = way
    replay = Replay(script, Probes())
    with replay:
        output = model(x)
    assert not replay.followed
    assert torch.equal(output, model(x))


def test_a_script_fits_inputs_of_its_shapes_and_types():
    model, x = quiet(TwoInputs), (normal(16, 20), normal(16, 12))
    tracer = Tracer(model)
    with tracer.of(model, x):
        output = model(*x)
    script = tracer.script(tracer.finish(output))
    assert script.fits((normal(16, 20, seed=3), normal(16, 12)))
    assert not script.fits((normal(8, 20), normal(8, 12)))
    assert not script.fits((normal(16, 20).double(), normal(16, 12)))
    assert not script.fits(normal(16, 20))


def test_the_operations_of_a_loss_are_no_part_of_the_script():
    model, x = deep(1, "relu"), normal(8, 20)
    tracer = Tracer(model)
    with tracer.of(model, x):
        output = model(x)
    with tracer.of_loss():
        F.cross_entropy(output, torch.arange(8) % 3)
    script = tracer.script(tracer.finish(output))
    replay = Replay(script, Probes())
    with replay:
        model(x)
    assert replay.followed


def test_weights_are_read_as_they_are_now():
    model, x = deep(1, "relu"), normal(8, 20)
    script, _ = traced(model, x)
    with torch.no_grad():
        model.hidden1.weight.mul_(3)
    probes = Probes()
    read(model, x, Replay(script, probes), probes)
    assert math.sqrt(probes.read()["weight", 0]) == pytest.approx(
        float(model.hidden1.weight.detach().square().mean().sqrt())
    )


def test_shapes_and_outputs():
    x, mask = normal(2, 3), torch.ones(2, dtype=torch.bool)
    assert shapes_in({"x": x, "m": [mask]}) == ((x.shape, torch.float32), (mask.shape, torch.bool))
    assert outputs_in((x, mask), masks=False) == [x]
    assert outputs_in((x, mask), masks=True) == [x, mask]
