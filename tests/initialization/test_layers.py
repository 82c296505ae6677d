"""gs.initialize on layers of every kind: what is one matrix, what is shared, what becomes zero."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gainstage as gs
from tests.initialization.test_initialize import fits
from tests.networks import Convolutional
from tests.tools import blobs, generator, normal, quiet


def test_convolutions_count_their_taps_and_biases_become_zero():
    model = quiet(Convolutional)
    gs.initialize(model, (normal(8, 1, 8, 8), torch.zeros(8).long()), generator=generator())
    assert fits(model.conv.weight, 2 / 9)
    assert float(model.up.bias.detach().abs().max()) == 0


def test_a_layer_used_twice_is_drawn_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(20, 20)

        def forward(self, x):
            return F.relu(self.layer(F.relu(self.layer(x))))

    assert len(gs.initialize(quiet(Twice), blobs(), generator=generator()).rows) == 1


def test_recurrent_gates_attention_and_embeddings_are_drawn_one_matrix_at_a_time():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.attention = nn.Embedding(50, 64), nn.MultiheadAttention(64, 2, batch_first=True)
            self.memory, self.head = nn.GRU(64, 48, batch_first=True), nn.Linear(48, 3)

        def forward(self, x):
            h = self.words(x)
            h = self.attention(h, h, h)[0]
            return self.head(self.memory(h)[0][:, -1])

    model = quiet(Text)
    table = gs.initialize(model, torch.arange(40).reshape(8, 5), generator=generator())
    names = [row.stage for row in table.rows]
    assert "attention.in_proj_weight (query)" in names
    assert "memory.weight_hh_l0 (update gate)" in names
    assert fits(model.words.weight, 1.0)
    assert fits(model.attention.in_proj_weight[:64], 2 / 128)
    assert not fits(model.attention.in_proj_weight[:64], 2 / 256), "packed, the fans would be wrong"
    assert fits(model.memory.weight_ih_l0[:48], 2 / (64 + 48))


def test_tied_weights_are_drawn_once_and_padding_stays_zero():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(30, 40, padding_idx=0), nn.Linear(40, 30, bias=False)
            self.head.weight = self.words.weight

        def forward(self, x):
            return self.head(self.words(x).mean(1))

    model = quiet(Tied)
    table = gs.initialize(model, torch.arange(40).reshape(8, 5) % 30, generator=generator())
    assert [row.stage for row in table.rows] == ["head"]
    assert model.head.weight is model.words.weight
    assert fits(model.head.weight.detach()[1:], 2 / 70)
    assert not model.words.weight.detach()[0].any()


def test_embeddings_that_share_a_weight_are_drawn_once():
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.bag = (kind(30, 40) for kind in (nn.Embedding, nn.Embedding, nn.EmbeddingBag))
            self.right.weight = self.left.weight

        def forward(self, x):
            return self.left(x).mean(1) + self.right(x).mean(1) + self.bag(x)

    model = quiet(Twins)
    table = gs.initialize(model, torch.arange(40).reshape(8, 5) % 30, generator=generator())
    assert [row.stage for row in table.rows] == ["left.weight (weight)", "bag.weight (weight)"]
    assert fits(model.right.weight, 1.0)


def test_layers_that_share_a_weight_are_drawn_once():
    model = quiet(lambda: nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 3)))
    model[2].weight = model[0].weight
    table = gs.initialize(model, normal(8, 40), generator=generator())
    assert [row.stage for row in table.rows] == ["0", "4"]
    assert fits(model[2].weight, 2 / 40)


class Everything(nn.Module):
    """Every kind of layer with a bias, and one that is never run."""

    def __init__(self):
        super().__init__()
        self.conv, self.up = nn.Conv1d(1, 4, 3), nn.ConvTranspose1d(4, 8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)
        self.memory, self.cell = nn.LSTM(8, 8, batch_first=True), nn.GRUCell(8, 8)
        self.both, self.head, self.idle = nn.Bilinear(8, 20, 30), nn.Linear(30, 3), nn.Linear(8, 8)

    def forward(self, x):
        h = F.relu(self.up(self.conv(x[:, None]))).transpose(1, 2)
        h = self.memory(self.attention(h, h, h)[0])[0][:, -1]
        return self.head(self.both(self.cell(h), x))


def everything():
    model = quiet(Everything)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            nn.init.constant_(parameter, 0.5)
    return model


def test_biases_of_every_kind_become_zero():
    model = everything()
    gs.initialize(model, normal(8, 20), generator=generator())
    left = [name for name, parameter in model.named_parameters() if "bias" in name and parameter.detach().any()]
    assert left == ["idle.bias"]


def test_bilinear_layers_are_drawn_and_layers_that_the_pass_does_not_reach_are_named():
    model = everything()
    idle = model.idle.weight.detach().clone()
    table = gs.initialize(model, normal(8, 20), generator=generator())
    assert "both.weight (weight)" in [row.stage for row in table.rows]
    assert fits(model.both.weight, 2 / (8 * 20 + 30 * 20))
    assert table.skipped == ("idle",)
    assert torch.equal(model.idle.weight, idle)


@pytest.mark.parametrize("scheme", ["auto", "isometric", "data"])
def test_one_seed_one_network(scheme):
    models = [quiet(Everything) for _ in range(3)]
    for model, seed in zip(models, (5, 5, 6), strict=True):
        gs.initialize(model, normal(8, 20), scheme=scheme, generator=generator(seed))
    first, again, other = ({n: p for n, p in m.named_parameters() if "idle" not in n} for m in models)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "bias" not in name)


def test_a_layer_without_inputs_has_nothing_to_draw():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about tensors without entries
        model = quiet(lambda: nn.Sequential(nn.Linear(20, 0), nn.ReLU(), nn.Linear(0, 3)))
    table = gs.initialize(model, normal(8, 20))
    assert (table.rows, table.skipped) == ((), ("0", "2"))


@pytest.mark.parametrize("groups", [1, 2])
def test_orthogonal_transposed_convolutions_keep_the_power(groups):
    model = quiet(
        lambda: nn.Sequential(nn.ConvTranspose2d(32, 16, 2, stride=2, groups=groups), nn.Conv2d(16, 3, 1), nn.Flatten())
    )
    x = normal(512, 32, 2, 2)
    gs.initialize(model, x, scheme="isometric", generator=generator())
    with torch.no_grad():
        power = float(model[0](x).square().mean())
    # the power of each of x's 4 * 32 * 512 numbers has variance 2, and on average is passed on whole
    assert power == pytest.approx(1.0, abs=4 * (2 / x.numel()) ** 0.5)


def test_two_weights_of_one_module_are_both_drawn():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Parameter(torch.zeros(50, 20)), nn.Parameter(torch.zeros(3, 50))

        def forward(self, x):
            return F.linear(F.relu(F.linear(x, self.first)), self.second)

    model = Pair()
    gs.initialize(model, normal(8, 20), generator=generator())
    assert fits(model.first, 2 / 20)
    assert fits(model.second, 2 / 53)


def test_a_depthwise_convolution_is_never_reduced_to_its_centre():
    model = quiet(
        lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    )
    gs.initialize(model, normal(4, 8, 8, 8), scheme="isometric", generator=generator())
    assert bool(model[0].weight.detach()[:, :, 0, 0].any())
    assert not bool(model[2].weight.detach()[:, :, 0, 0].any())
