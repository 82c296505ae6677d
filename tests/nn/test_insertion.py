"""Batch normalisation put into a network that is there already: the same as if it had been written there."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from gainstage.errors import BadInput
from gainstage.nn import insert_batch_norm
from tests.networks import Function, Images, Residual
from tests.tools import normal, quiet, random_states, refill, same_states


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


# any network: the oracle is a twin with the normalisation in its own code


class Dense(nn.Module):
    """Own forward with activations as functions; a parametric one as a module."""

    def __init__(self, normalized=""):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(20, 16), nn.Linear(16, 8, bias=False), nn.Linear(8, 3)
        self.act = nn.PReLU()
        self.norm1 = nn.BatchNorm1d(16) if normalized == "before" else nn.Identity()
        self.norm2 = nn.BatchNorm1d(8) if normalized == "before" else nn.Identity()

    def forward(self, x):
        h = torch.tanh(self.norm1(self.first(x)))
        return self.third(F.dropout(self.act(self.norm2(self.second(h))), 0.0))


class Series(nn.Module):
    """One dimension of places, pooling in front of the activation, a shared block of one module."""

    def __init__(self, normalized=""):
        super().__init__()
        self.conv, self.pool, self.act = nn.Conv1d(2, 6, 3), nn.MaxPool1d(2), nn.ELU()
        self.block = nn.Sequential(nn.Conv1d(6, 6, 1), nn.Tanh())
        self.head = nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6) if normalized == "before" else nn.Identity()
        if normalized == "before":
            self.block.insert(1, nn.BatchNorm1d(6))
        self.out = nn.BatchNorm1d(6) if normalized == "after" else nn.Identity()
        if normalized == "after":
            self.block.append(nn.BatchNorm1d(6))

    def forward(self, x):
        h = self.out(self.act(self.norm(self.pool(self.conv(x)))))
        return self.head(self.block(self.block(h)).amax(-1))


def leaky(x):
    return torch.where(x > 0, x, 0.1 * x)


def snake(x):
    return x + torch.sin(x) ** 2


class Snake(nn.Module):
    """x + sin(a x)^2 / a with one a for each unit."""

    def __init__(self, units):
        super().__init__()
        self.a = nn.Parameter(torch.linspace(0.5, 2.0, units))

    def forward(self, x):
        return x + torch.sin(self.a * x) ** 2 / self.a


class Written(nn.Module):
    """Activations that are written out: one in forward behind a convolution, one in a module of its own, which has parameters
    or none."""

    def __init__(self, normalized="", parameters=False):
        super().__init__()
        self.conv, self.second, self.head = nn.Conv1d(2, 6, 3), nn.Linear(6, 5), nn.Linear(5, 3)
        self.act = Snake(5) if parameters else Function(snake)
        self.norm1 = nn.BatchNorm1d(6) if normalized == "before" else nn.Identity()
        self.norm2 = nn.BatchNorm1d(5) if normalized == "before" else nn.Identity()

    def forward(self, x):
        h = self.norm1(self.conv(x))
        h = leaky(h).amax(-1)
        return self.head(self.act(self.norm2(self.second(h))))


class Modules(nn.Module):
    """The same behind pooling, all in modules."""

    def __init__(self, normalized="", parameters=False):
        super().__init__()
        self.conv, self.pool, self.second, self.head = (
            nn.Conv1d(2, 6, 3),
            nn.MaxPool1d(2),
            nn.Linear(6, 5),
            nn.Linear(5, 3),
        )
        self.act1 = Function(leaky)
        self.act2 = Snake(5) if parameters else Function(snake)
        norms = {"before": ["before1", "before2"], "after": ["after1", "after2"]}.get(normalized, [])
        for name in ("before1", "before2", "after1", "after2"):
            units = 6 if name.endswith("1") else 5
            setattr(self, name, nn.BatchNorm1d(units) if name in norms else nn.Identity())

    def forward(self, x):
        h = self.after1(self.act1(self.before1(self.pool(self.conv(x)))))
        return self.head(self.after2(self.act2(self.before2(self.second(h.amax(-1))))))


def with_parameters(build):
    return lambda *normalized: build(*normalized, parameters=True)


def pictures(samples=16):
    return 2 + 3 * normal(samples, 3, 7, 7)


def series():
    return normal(16, 2, 11) - 1


NETWORKS = {
    "dense, functions": (Dense, "before", lambda: normal(16, 20)),
    "images, functions": (Images, "before", pictures),
    "images, one module": (lambda *n: Images(*n, activations="shared"), "before", pictures),
    "images, modules": (lambda *n: Images(*n, activations="modules"), "before", pictures),
    "images, modules, after": (lambda *n: Images(*n, activations="modules"), "after", pictures),
    "series": (Series, "before", series),
    "series, after": (Series, "after", series),
    "written out": (Written, "before", series),
    "written out, parameters": (with_parameters(Written), "before", series),
    "written out in modules": (Modules, "before", series),
    "written out in modules, after": (Modules, "after", series),
    "written out in modules, parameters": (with_parameters(Modules), "before", series),
    "written out in modules, parameters, after": (with_parameters(Modules), "after", series),
}
networks = pytest.mark.parametrize(("build", "position", "data"), NETWORKS.values(), ids=NETWORKS)


def weights(model):
    """Weights and biases of the layers, in the order in which the layers were made."""
    layers = (m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd, nn.PReLU)))
    return [(type(m).__name__, m.weight, getattr(m, "bias", None)) for m in layers]


def with_weights_of(twin, model):
    with torch.no_grad():
        for (kind, weight, bias), (other, mine, own) in zip(weights(model), weights(twin), strict=True):
            assert kind == other
            mine.copy_(weight)
            if bias is not None:
                own.copy_(bias)
    return twin


@networks
def test_the_network_is_the_one_with_the_normalisation_in_its_code(build, position, data):
    x = data()
    model, plain = quiet(build), quiet(build)
    twin = with_weights_of(quiet(lambda: build(position)), model)
    assert insert_batch_norm(model, position, data=x) is model
    assert len(norms(model)) == len(norms(twin)) > 0
    for norm in (*norms(model), *norms(twin)):
        norm.momentum = 1.0  # the running statistics are those of the first pass
    for mode in (True, False):
        assert torch.allclose(model.train(mode)(x), twin.train(mode)(x), atol=1e-5)
    assert not torch.allclose(plain(x), twin.train()(x), atol=1e-2), "or this test could not fail"


@networks
def test_no_parameter_is_renamed_or_replaced_and_a_second_time_there_is_nothing_to_do(build, position, data):
    model, x = quiet(build), data()
    before = dict(model.named_parameters())
    insert_batch_norm(model, position, data=x)
    after = dict(model.named_parameters())
    kept = {name: p for name, p in before.items() if name in after}
    assert all(after[name] is p for name, p in kept.items())
    assert all(name.endswith("bias") for name in before.keys() - kept.keys())
    named = repr(model)
    with pytest.raises(BadInput, match="there is nothing to normalise"):
        insert_batch_norm(model, position, data=x)
    assert repr(model) == named


@networks
def test_the_network_can_be_copied_saved_and_trained_afterwards(build, position, data):
    model, x = insert_batch_norm(quiet(build), position, data=data()), data()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        twin.load_state_dict(model.state_dict())
    model(x).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_biases_go_where_the_normalisation_directly_follows_and_only_there():
    model = insert_batch_norm(quiet(lambda: Images(activations="modules")), data=pictures())
    assert [bias is None for _, _, bias in weights(model)] == [True, True, True, True, False]
    model = insert_batch_norm(quiet(Series), data=series())
    assert model.conv.bias is not None, "there is pooling between"
    assert model.block.get_submodule("0").bias is not None, "it runs twice"


class Sums(nn.Module):
    """A layer that is read in two places, and an activation behind a layer that is read in none but that."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(20, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.act = nn.ReLU()

    def forward(self, x):
        h = self.a(x)
        return self.c(self.b(self.act(h)) + h)


def test_where_a_layer_is_read_elsewhere_too_all_readers_get_what_is_normalised():
    model, x = insert_batch_norm(quiet(Sums)), normal(64, 20)
    h = F.batch_norm(F.linear(x, model.a.weight), None, None, training=True)
    assert torch.allclose(model(x), model.c(model.b(F.relu(h)) + h), atol=1e-5)
    assert model.act.__class__ is nn.ReLU


def test_a_projection_beside_a_branch_gets_its_own():
    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch, self.shortcut, self.head = nn.Linear(20, 8), nn.Linear(20, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(torch.relu(self.branch(x) + self.shortcut(x)))

    model = insert_batch_norm(quiet(Projected))
    assert [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm1d)] == [
        "branch.normalization",
        "shortcut.normalization",
    ]


class Sloped(nn.Module):
    """An activation without parameters that has a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("slope", torch.tensor(0.1))

    def forward(self, x):
        return torch.where(x > 0, x, self.slope * x)


@pytest.mark.parametrize("position", ["before", "after"])
def test_buffers_keep_their_names_too(position):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act, self.second = nn.Linear(20, 8), Sloped(), nn.Linear(8, 3)

        def forward(self, x):
            return self.second(self.act(self.first(x)))

    model = quiet(Net)
    before = set(model.state_dict()) - {"first.bias"}
    assert before <= set(insert_batch_norm(model, position).state_dict())
    assert type(model.act) is Sloped
    assert len(norms(model)) == 1


class Variational(nn.Module):
    """Puts out a mean and the logarithm of a variance; draws between them. KL: in forward, or by the caller."""

    def __init__(self, kl=False):
        super().__init__()
        self.body, self.mean, self.log_variance = nn.Linear(20, 8), nn.Linear(8, 4), nn.Linear(8, 4)
        self.back, self.out, self.kl = nn.Linear(4, 8), nn.Linear(8, 20), kl

    def forward(self, x):
        h = F.relu(self.body(x))
        mean, log_variance = self.mean(h), self.log_variance(h).clamp(-10, 2)
        z = mean + torch.exp(0.5 * log_variance) * torch.ones(4)
        decoded = self.out(F.relu(self.back(z)))
        if self.kl:
            return decoded, (mean**2 + log_variance.exp() - 1 - log_variance).sum()
        return decoded, mean, log_variance


@pytest.mark.parametrize("kl", [False, True])
def test_the_logarithm_of_a_variance_is_left_alone(kl):
    model = insert_batch_norm(quiet(lambda: Variational(kl)))
    assert [name for name, m in model.named_modules() if m in norms(model)] == [
        "body.normalization",
        "back.normalization",
    ]


class Picks(nn.Module):
    """Runs the entries of an nn.Sequential by number."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.net[2](self.net[1](self.net[0](x)))


def test_an_nn_sequential_that_is_not_run_as_a_whole_keeps_its_numbers():
    model, x = quiet(Picks), normal(16, 20)
    insert_batch_norm(model)
    assert len(model.net) == 3
    h = F.batch_norm(F.linear(x, model.net[0].weight), None, None, training=True)
    assert torch.allclose(model(x), model.net[2](F.relu(h)), atol=1e-5)


def test_one_activation_module_at_several_entries_gets_one_normalisation_each():
    def build():
        act = nn.Tanh()
        return nn.Sequential(
            nn.Linear(4, 6), act, nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.0)), act, nn.Linear(5, 2)
        )

    for position, expected in (("before", [6, 5]), ("after", [6, 5])):
        model = insert_batch_norm(quiet(build), position)
        assert [m.num_features for m in model if isinstance(m, nn.BatchNorm1d)] == expected
        assert model(normal(10, 4)).shape == (10, 2)


# first


@pytest.mark.parametrize(
    ("build", "data", "kind"),
    [
        (Dense, lambda: normal(64, 20), nn.BatchNorm1d),
        (Residual, lambda: normal(64, 20), nn.BatchNorm1d),
        (Images, lambda: normal(32, 3, 7, 7), nn.BatchNorm2d),
        (lambda: nn.Sequential(quiet(lambda: Residual(2)), nn.ReLU(), nn.Linear(3, 2)), lambda: normal(64, 20), nn.BatchNorm1d),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(75, 8), nn.ReLU(), nn.Linear(8, 3)),
            lambda: normal(64, 3, 5, 5),
            nn.BatchNorm1d,
        ),
    ],
    ids=["a layer", "a layer and a skip", "a convolution", "a skip in an nn.Sequential", "flattened"],
)  # fmt: skip
def test_first_takes_the_place_of_standardised_inputs_in_any_network(build, data, kind):
    x = data()
    raw = 50 + 300 * x
    over = (0, 2, 3) if kind is nn.BatchNorm2d else 0
    standard = (raw - raw.mean(over, keepdim=True)) / raw.std(over, keepdim=True, unbiased=False)
    with_first, without = (insert_batch_norm(refill(quiet(build)), first=first, data=raw) for first in (True, False))
    assert len(norms(with_first)) == len(norms(without)) + 1
    assert torch.allclose(with_first(raw), without(standard), atol=2e-3)
    assert type(next(m for name, m in with_first.named_modules() if name.endswith("input_normalization"))) is kind


def test_first_is_not_needed_where_the_input_is_normalised_already():
    layers = quiet(lambda: [nn.Flatten(), nn.BatchNorm1d(20), nn.Linear(20, 4), nn.ReLU(), nn.Linear(4, 2)])
    assert len(norms(insert_batch_norm(nn.Sequential(*layers), first=True, data=normal(8, 20)))) == 2


# data


@pytest.mark.parametrize(
    "data",
    [
        normal(40, 3, 7, 7),
        (normal(40, 3, 7, 7), torch.zeros(40)),
        DataLoader(TensorDataset(normal(40, 3, 7, 7), torch.zeros(40)), 10),
        TensorDataset(normal(40, 3, 7, 7), torch.zeros(40)),
    ],
    ids=["inputs", "pair", "loader", "dataset"],
)
def test_the_network_is_traced_on_whatever_data_is_given_and_nothing_else_changes(data):
    model, random = quiet(lambda: Images(activations="modules")), random_states()
    kept = data.clone() if isinstance(data, torch.Tensor) else None
    assert len(norms(insert_batch_norm(model.eval(), data=data))) == 4
    assert same_states(random_states(), random)
    assert kept is None or torch.equal(data, kept)
    assert all(norm.running_mean.abs().sum() == 0 and not norm.training for norm in norms(model))
