"""Models whose weights are not there yet: on the meta device, moved from it by to_empty(), and lazy."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gainstage as gs
from gainstage.errors import BadInput
from tests.tools import generator, normal, quiet


class Model(nn.Module):
    """A convolution, a residual branch, batch normalisation, attention, a recurrent layer, an output."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16)
        self.branch = nn.Conv2d(16, 16, 3, padding=1)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.memory, self.head = nn.GRU(16, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, x):
        h = F.relu(self.norm(self.conv(x)))
        h = (h + self.branch(h)).flatten(2).transpose(1, 2)
        h = self.attention(h, h, h)[0]
        return self.head(self.memory(h)[0][:, -1])


class Words(nn.Module):
    """An embedding with padding and an output that shares its weight."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(30, 40, padding_idx=0), nn.Linear(40, 30)
        self.head.weight = self.words.weight

    def forward(self, x):
        return self.head(self.words(x).mean(1))


def on_meta(build):
    with torch.device("meta"):
        return build()


def poisoned(model):
    """The model on the CPU with NaN everywhere but in its normalisations: what to_empty() leaves may be anything."""
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    if isinstance(model, Words):
        model.head.weight = model.words.weight  # to_empty() unties
    return model


MODELS = pytest.mark.parametrize(
    ("build", "x"), [(Model, normal(8, 1, 6, 6)), (Words, torch.arange(40).reshape(8, 5) % 30)], ids=["model", "words"]
)


@MODELS
@pytest.mark.parametrize("scheme", ["auto", "exact", "isometric"])
def test_on_the_meta_device_the_table_is_the_same_and_no_value_is_made(build, x, scheme):
    model = on_meta(build)
    table = gs.initialize(model, x.to("meta"), scheme=scheme, generator=generator())
    assert table == gs.initialize(quiet(build), x, scheme=scheme, generator=generator())
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("scheme", ["auto", "exact", "isometric"])
def test_on_the_meta_device_without_data(scheme):
    model = on_meta(lambda: nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 3)))
    table = gs.initialize(model, scheme=scheme, distribution="uniform")
    assert [row.stage for row in table.rows] == ["0", "2"]
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(
    ("norm", "drawn"),
    [(nn.utils.parametrizations.weight_norm, ["0", "2"]), (nn.utils.parametrizations.spectral_norm, ["2"])],
)
def test_on_the_meta_device_computed_weights_are_told_apart(norm, drawn):
    model = on_meta(lambda: nn.Sequential(norm(nn.Linear(20, 30)), nn.ReLU(), nn.Linear(30, 3)))
    table = gs.initialize(model, generator=generator())
    assert [row.stage for row in table.rows] == drawn
    assert set(table.skipped) == {"0", "2"} - set(drawn)


@MODELS
@pytest.mark.parametrize("scheme", ["auto", "data"])
def test_a_model_from_the_meta_device_is_initialised_like_any_other(build, x, scheme):
    late, usual = poisoned(on_meta(build)), quiet(build)
    tables = [gs.initialize(model, x, scheme=scheme, generator=generator()) for model in (late, usual)]
    expected = usual.state_dict()
    assert tables[0] == tables[1]
    assert all(torch.equal(value, expected[name]) for name, value in late.state_dict().items())


def test_normalisations_are_not_reset():
    model = quiet(lambda: nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.PReLU(), nn.Linear(30, 3)))
    for parameter in (model[1].weight, model[1].bias, model[1].running_mean, model[2].weight):
        nn.init.constant_(parameter, 0.7)
    gs.initialize(model, normal(8, 20), generator=generator())
    assert all(bool((p == 0.7).all()) for p in (model[1].weight, model[1].bias, model[1].running_mean, model[2].weight))


@pytest.mark.parametrize(
    ("x", "scheme", "sentence"),
    [
        (normal(8, 20), "auto", "the model is on meta and its data on cpu; move one of them"),
        (normal(8, 20), "data", "nothing has values on the meta device; move the model first"),
        (normal(8, 20).to("meta"), "data", "nothing has values on the meta device; move the model first"),
    ],
)
def test_what_cannot_be_done_on_the_meta_device_is_said(x, scheme, sentence):
    model = on_meta(lambda: nn.Linear(20, 3))
    with pytest.raises(BadInput, match=sentence):
        gs.initialize(model, x, scheme=scheme)


def lazy_dense():
    return nn.Sequential(nn.LazyLinear(30), nn.BatchNorm1d(30), nn.Dropout(0.5), nn.ReLU(), nn.LazyLinear(3))


def lazy_images():
    return nn.Sequential(
        nn.LazyConv2d(8, 3),
        nn.LazyBatchNorm2d(),
        nn.ReLU(),
        nn.LazyConvTranspose2d(4, 2),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


@pytest.mark.parametrize(("build", "x"), [(lazy_dense, normal(8, 20)), (lazy_images, normal(8, 2, 6, 6))])
@pytest.mark.parametrize("scheme", ["auto", "data"])
def test_lazy_layers_take_their_sizes_from_the_data_and_are_drawn(build, x, scheme):
    lazy, usual = build(), build()
    modes = [module.training for module in lazy.modules()]
    table = gs.initialize(lazy, (x, torch.zeros(8).long()), scheme=scheme, generator=generator())
    quiet(lambda: usual.eval()(x))
    usual.train()
    assert table == gs.initialize(usual, x, scheme=scheme, generator=generator())
    expected = usual.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in lazy.state_dict().items())
    assert [module.training for module in lazy.modules()] == modes
    assert [type(module) for module in lazy] == [type(module) for module in usual]


def test_lazy_layers_without_data_ask_for_it():
    with pytest.raises(BadInput, match="the model has lazy layers, whose sizes only data can tell: give data="):
        gs.initialize(lazy_dense())


def test_what_the_network_is_run_on_is_not_changed():
    x = normal(8, 20)
    before = copy.deepcopy(x)
    for scheme in ("auto", "data"):
        gs.initialize(nn.Sequential(nn.ReLU(inplace=True), nn.LazyLinear(3)), x, scheme=scheme, generator=generator())
    assert torch.equal(x, before)


def test_each_pass_runs_on_the_same_inputs():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LazyLinear(3)

        def forward(self, x):
            sums.append(float(x.sum()))
            return self.layer(x.mul_(0.5))

    sums = []
    gs.initialize(Halves(), normal(8, 20), scheme="data", generator=generator())
    assert len(sums) == 3
    assert len(set(sums)) == 1
