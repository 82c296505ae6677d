"""What a forward pass shows: what enters, what the hidden layers weigh, and every operation that breaks a condition."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from gainstage.errors import BadInput
from gainstage.nn.inspection import (
    ACTIVATIONS,
    CONVOLUTIONS,
    DENSE,
    DROPOUT,
    NORMALIZATION,
    SEQUENTIAL,
    UNKNOWN,
    inspect,
)
from tests.networks import deep
from tests.tools import normal, quiet


class Net(nn.Module):
    """Three layers with something of the test's between the first two; the second is square."""

    def __init__(self, between, extra=None, behind=None):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(20, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.between, self.extra, self.behind = between, extra, behind

    def forward(self, x):
        h = self.between(self, self.first(x))
        y = self.third(F.selu(self.second(h)))
        return y if self.behind is None else self.behind(self, h, y)


def net(between=lambda self, h: F.selu(h), extra=lambda: None, behind=None):
    return quiet(lambda: Net(between, extra(), behind))


def joined(self, h):
    return self.second(F.selu(h)) + h


def twice(self, h):
    return F.selu(self.second(F.selu(h)))


def gated(self, h):
    return F.selu(h) * self.extra


def pooled(self, h):
    return F.max_pool1d(F.selu(h).repeat(1, 2).unsqueeze(1), 2).squeeze(1)


BREAKING = {
    "relu": (net(lambda self, h: torch.relu(h)), ACTIVATIONS, ["relu in the model"]),
    "no activation": (net(lambda self, h: h), ACTIVATIONS, ["none behind first"]),
    "two activations": (net(lambda self, h: torch.tanh(F.selu(h))), ACTIVATIONS, ["tanh in the model"]),
    "a factor": (net(lambda self, h: 0.5 * F.selu(h)), ACTIVATIONS, ["mul in the model"]),
    "a learned factor": (net(gated, lambda: nn.Parameter(torch.ones(16))), ACTIVATIONS, ["mul in the model"]),
    "a bound": (net(lambda self, h: F.selu(h).clamp(max=3)), ACTIVATIONS, ["clamp in the model"]),
    "softmax": (net(lambda self, h: F.selu(h).softmax(1)), ACTIVATIONS, ["softmax in the model"]),
    "a skip connection": (net(lambda self, h: F.selu(joined(self, h))), SEQUENTIAL, ["add in the model", "second #2 again"]),
    "concatenated outputs": (net(behind=lambda self, h, y: torch.cat([h, y], 1)), SEQUENTIAL, ["cat in the model"]),
    "a layer twice": (net(twice), SEQUENTIAL, ["second #2 again"]),
    "recurrence": (net(lambda self, h: F.selu(self.extra(h)), lambda: nn.GRUCell(16, 16)), SEQUENTIAL, ["gru_cell in extra"]),
    "another product": (
        net(lambda self, h: F.selu(torch.einsum("ni,ij->nj", h, self.extra)), lambda: nn.Parameter(torch.eye(16))),
        DENSE,
        ["einsum in the model"],
    ),
    "dropout": (net(lambda self, h: self.extra(F.selu(h)), lambda: nn.Dropout(0.2)), DROPOUT, ["dropout in extra"]),
    "dropout of a function": (net(lambda self, h: F.dropout(F.selu(h), 0.2)), DROPOUT, ["dropout in the model"]),
    "dropout behind a flag": (
        net(lambda self, h: F.dropout(F.selu(h), 0.2) if self.training else F.selu(h)).eval(),
        DROPOUT,
        ["dropout in the model"],
    ),
    "batch normalisation": (
        net(lambda self, h: F.selu(self.extra(h)), lambda: nn.BatchNorm1d(16)), NORMALIZATION, ["batch_norm in extra"],
    ),
    "layer normalisation of a function": (
        net(lambda self, h: F.selu(F.layer_norm(h, (16,)))), NORMALIZATION, ["layer_norm in the model"],
    ),
    "a pool": (net(pooled), CONVOLUTIONS, ["max_pool1d in the model"]),
    "an operation nobody knows": (net(lambda self, h: F.selu(h).cumsum(1)), UNKNOWN, ["cumsum in the model"]),
}  # fmt: skip


@pytest.mark.parametrize(("model", "condition", "places"), BREAKING.values(), ids=BREAKING)
def test_what_breaks_a_condition_is_found_and_nothing_else(model, condition, places):
    found = inspect(model, normal(8, 20)).against
    assert found == {**{each: [] for each in found}, condition: places}


KEEPING = {
    "modules": deep(3, "selu", inputs=20),
    "functions": net(),
    "alpha dropout": net(lambda self, h: self.extra(F.selu(h)), lambda: nn.AlphaDropout(0.2)),
    "alpha dropout of a function": net(lambda self, h: F.alpha_dropout(F.selu(h), 0.2, training=True)),
    "alpha dropout of features": net(lambda self, h: F.feature_alpha_dropout(F.selu(h)[:, :, None], 0.2)[:, :, 0]),
    "dropout of nothing": net(lambda self, h: self.extra(F.selu(h)), lambda: nn.Dropout1d(0.0)),
    "dropout switched off": net(lambda self, h: F.dropout(F.selu(h), 0.5, training=False)),
    "reshapes": net(lambda self, h: F.selu(h.view(-1, 4, 4)).flatten(1)),
    "two heads": net(behind=lambda self, h, y: (y, y.relu())),
    "any output": net(behind=lambda self, h, y: 3 * y.exp().softmax(1) + 1),
    "normalised inputs": nn.Sequential(nn.BatchNorm1d(20), net()),
}


@pytest.mark.parametrize("model", KEEPING.values(), ids=KEEPING)
def test_a_network_that_breaks_nothing(model):
    found = inspect(model, normal(8, 20))
    assert not any(found.against.values())
    assert found.operations > 4


def test_hidden_layers_feed_another_one_and_bring_weights_and_biases():
    model = deep(2, "selu", inputs=20)
    layers = inspect(model).layers
    assert [layer.name for layer in layers] == ["hidden1", "hidden2"]
    assert [layer.fan_in for layer in layers] == [20, 64]
    assert layers[1].weights.equal(model.hidden2.weight.detach().flatten())
    assert layers[1].biases.equal(model.hidden2.bias.detach())


def test_a_layer_whose_output_only_joins_another_ones_is_hidden_too():
    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.head = nn.Linear(20, 8), nn.Linear(20, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(F.selu(self.left(x) + self.right(x)))

    assert [layer.name for layer in inspect(quiet(Parallel), normal(4, 20)).layers] == ["left", "right"]


def test_a_last_layer_with_selu_counts_as_hidden():
    assert len(inspect(quiet(lambda: nn.Sequential(nn.Linear(4, 4), nn.SELU()))).layers) == 1
    assert not inspect(quiet(lambda: nn.Linear(4, 4))).layers


def test_a_parametrised_weight_is_read_as_it_is_used():
    model = quiet(lambda: nn.Sequential(weight_norm(nn.Linear(20, 6)), nn.SELU(), nn.Linear(6, 2)))
    with torch.no_grad():
        model[0].parametrizations.weight.original0.fill_(3.0)
    (layer,) = inspect(model).layers
    assert layer.weights.view(6, 20).norm(dim=1).tolist() == pytest.approx([3.0] * 6, rel=1e-5)
    assert len(layer.biases) == 6


def test_a_weight_computed_in_the_forward_pass_is_not_read():
    class Scaled(nn.Linear):
        def forward(self, x):
            return F.selu(F.linear(x, self.weight * 2, self.bias))

    (layer,) = inspect(quiet(lambda: Scaled(20, 6)), normal(4, 20)).layers
    assert layer.weights is None
    assert len(layer.biases) == 6


@pytest.mark.parametrize(
    ("front", "x", "columns"),
    [
        (nn.Identity(), normal(30, 20), normal(30, 20)),
        (nn.Flatten(), normal(30, 4, 5), normal(30, 20)),
        (nn.Softsign(), normal(30, 20), F.softsign(normal(30, 20))),
        (nn.Identity(), normal(30, 7, 20), normal(210, 20)),
    ],
    ids=["as they are", "flattened", "changed in front", "with positions"],
)
def test_features_are_measured_where_they_enter_the_first_layer(front, x, columns):
    found = inspect(quiet(lambda: nn.Sequential(front, deep(1, "selu"))), x).features
    assert torch.allclose(found.mean, columns.double().mean(0))
    assert torch.allclose(found.variance, columns.double().var(0))
    assert found.samples.tolist() == [30] * 20


def test_a_convolutions_features_are_its_channels():
    model = quiet(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2)))
    found = inspect(model, normal(30, 3, 6, 6)).features
    assert torch.allclose(found.mean, normal(30, 3, 6, 6).double().mean((0, 2, 3)))


@pytest.mark.parametrize(
    ("build", "condition", "place"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(8), nn.GRU(8, 8)), SEQUENTIAL, "GRU in 1"),
        (lambda: nn.Sequential(nn.LazyLinear(8), nn.BatchNorm1d(8)), NORMALIZATION, "BatchNorm1d in 1"),
        (lambda: nn.Sequential(nn.LazyLinear(8), nn.Dropout2d(0.1)), DROPOUT, "Dropout2d in 1"),
        (lambda: nn.Sequential(nn.LazyLinear(8), nn.Bilinear(8, 8, 8)), DENSE, "Bilinear in 1"),
        (lambda: nn.Sequential(nn.LazyConv2d(8, 3), nn.Dropout(0.0)), CONVOLUTIONS, "LazyConv2d in 0"),
        (lambda: nn.Sequential(nn.Tanh()), DENSE, "there is no layer"),
    ],
)
def test_where_nothing_can_be_traced_the_modules_tell_what_they_can(build, condition, place):
    found = inspect(quiet(build))
    assert found.operations == 0
    assert found.against == {**{each: [] for each in found.against}, condition: [place]}


def test_a_network_that_its_inputs_do_not_fit_is_refused():
    with pytest.raises(BadInput, match="forward failed"):
        inspect(deep(1, "selu"), normal(4, 7))
