"""What insert_batch_norm refuses, each in one clear sentence and with nothing changed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gainstage.errors import BadInput
from gainstage.nn import insert_batch_norm
from tests.networks import Functional, Residual
from tests.tools import normal, quiet


class Ignores(nn.Sequential):
    def forward(self, x):
        return x


class OwnWeight(nn.Module):
    """A layer without a module, called as a function."""

    def __init__(self):
        super().__init__()
        self.weight, self.head, self.act = nn.Parameter(normal(8, 20)), nn.Linear(8, 3), nn.ReLU()

    def forward(self, x):
        return self.head(F.relu(F.linear(x, self.weight)))


class Within(nn.Module):
    """A layer and its activation in a module without children."""

    def __init__(self):
        super().__init__()
        self.body, self.head = OwnLayer(), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x))


class OwnLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(normal(8, 20))

    def forward(self, x):
        return F.relu(F.linear(x, self.weight))


class Recurrent(nn.Module):
    """One layer, behind which an activation stands only the first time."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(20, 20), nn.Linear(20, 3)

    def forward(self, x):
        return self.head(self.layer(torch.relu(self.layer(x))))


class SharedAfter(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.act = nn.Linear(20, 8), nn.Linear(8, 8), nn.Linear(8, 3), nn.ReLU()

    def forward(self, x):
        return self.c(self.act(self.b(self.act(self.a(x)))))


class Elsewhere(nn.Module):
    """Calls a module that it also holds in a list of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(20, 8), nn.Linear(8, 3), nn.ReLU()
        self.acts = [self.act]

    def forward(self, x):
        return self.b(self.acts[0](self.a(x)))


class Named(nn.Linear):
    """A layer that has something called normalization."""

    normalization = "none"


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x, y):
        return self.b(torch.relu(self.a(x) + y))


def tokens():
    return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2))


def plain():
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def labelled(x):
    return x, torch.zeros(16)


NOTHING = [
    (nn.Sequential, {}, "shape of the network's inputs cannot be guessed; give data="),
    (TwoInputs, {}, "shape of the network's inputs cannot be guessed; give data="),
    (lambda: nn.Sequential(nn.Linear(4, 2), nn.Softmax(1)), {}, "there is nothing to normalise"),
    (lambda: nn.Sequential(nn.Linear(4, 2), nn.Sigmoid(), nn.Flatten()), {}, "there is nothing to normalise"),
    (lambda: nn.Sequential(nn.Embedding(4, 4), nn.ReLU(), nn.Linear(4, 2)), {}, "there is nothing to normalise"),
    (lambda: nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten(), nn.ReLU(), nn.Linear(4, 2)), {}, "there is nothing"),
    (lambda: nn.Linear(4, 2), {}, "there is nothing to normalise"),
    (lambda: Ignores(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), {}, "there is nothing to normalise"),
    (plain, {"position": "in"}, "no position is called 'in'; known are: before, after"),
    (plain, {"position": None}, "no position is called None; known are: before, after"),
    (plain, {"data": normal(8, 5)}, r"forward failed on inputs of shape \(8, 5\)"),
    (plain, {"data": normal(1, 4)}, "forward failed .* more than 1 value per channel"),
    (plain, {"data": "x"}, r"data must be \(x, y\) arrays, a Dataset or a DataLoader"),
    (lambda: nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2)), {}, "lazy layers without a shape"),
    (
        lambda: nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
        {"first": True},
        "does not fit in front of a Embedding",
    ),
    (TwoInputs, {"first": True, "data": labelled((normal(16, 4), normal(16, 4)))}, "does not fit in front of a TwoInputs"),
    (tokens, {"data": normal(3, 5, 4)}, r"but 0 puts out \(3, 5, 6\); put nn.LayerNorm\(6\) there"),
    (OwnWeight, {"data": normal(8, 20)}, r"the linear is called as a function in OwnWeight\.forward"),
    (Within, {"data": normal(8, 20)}, r"the linear is called as a function in OwnLayer\.forward \(module body\)"),
    (Recurrent, {}, "layer runs several times, not always in front of a hidden activation"),
    (
        Functional,
        {"position": "after"},
        r"the relu behind first is called as a function in Functional\.forward, .* write self.normalization = "
        r"nn.BatchNorm1d\(16\) and call it on what relu puts out",
    ),
    (SharedAfter, {"position": "after"}, "act runs behind several layers; give each of them one of its own"),
    (Elsewhere, {}, "the relu behind a stays without normalisation, for forward calls a module from elsewhere"),
    (
        lambda: nn.Sequential(Residual(1), nn.Linear(3, 2)).append(Wrapped(Named(2, 4))),
        {},
        "a Named of the network has something called normalization already",
    ),
]  # fmt: skip


class Wrapped(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.relu(self.layer(x)))


def identity(model):
    """Modules, parameters, their bits and the hooks."""
    return (
        repr(model),
        [(name, id(module), len(module._forward_hooks | module._forward_pre_hooks)) for name, module in model.named_modules()],
        [(name, id(parameter)) for name, parameter in model.named_parameters()],
    )  # fmt: skip


@pytest.mark.parametrize(("build", "settings", "message"), NOTHING)
def test_where_nothing_can_be_done_the_model_stays_as_it_was(build, settings, message):
    model = quiet(build)
    before = identity(model)
    with pytest.raises(BadInput, match=message):
        insert_batch_norm(model, **settings)
    assert identity(model) == before


@pytest.mark.parametrize(
    ("model", "got"), [(None, "a NoneType"), ([nn.ReLU()], "a list"), (Recurrent, "the class Recurrent")]
)
def test_what_is_no_network_is_refused(model, got):
    with pytest.raises(BadInput, match=rf"the model must be a torch\.nn\.Module, got {got}"):
        insert_batch_norm(model)


def test_a_layer_without_a_module_can_still_be_normalised_at_its_activation():
    class Own(OwnWeight):
        def forward(self, x):
            return self.head(self.act(F.linear(x, self.weight)))

    model, x = insert_batch_norm(quiet(Own), data=normal(8, 20)), normal(8, 20)
    h = F.batch_norm(F.linear(x, model.weight), None, None, training=True)
    assert torch.allclose(model(x), model.head(F.relu(h)), atol=1e-5)
