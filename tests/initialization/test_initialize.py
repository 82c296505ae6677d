"""gs.initialize: each layer by what really follows it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gainstage as gs
from gainstage.errors import BadInput
from tests.networks import Convolutional, Functional, Residual, deep, residual
from tests.tools import blobs, generator, normal, quiet


def variance(weight):
    return float(weight.detach().double().var(unbiased=False))


def fits(weight, expected):
    """Within four standard errors of a normal sample's variance."""
    return abs(variance(weight) / expected - 1) < 4 * (2 / weight.numel()) ** 0.5


def test_each_layer_is_drawn_for_its_own_activation_functional_ones_included():
    model = quiet(Functional)
    table = gs.initialize(model, normal(8, 20), generator=generator())
    assert [(row.stage, row.follows, row.scheme) for row in table.rows] == [
        ("first", "relu", "He"),
        ("second", "tanh", "Glorot"),
        ("third", "none", "Glorot"),
    ]
    assert fits(model.first.weight, 2 / 20)
    assert fits(model.second.weight, 2 / 32)
    assert not fits(deep(1, "relu", width=64).hidden1.weight, 1 / 20)


def test_convolutions_count_their_taps_and_biases_become_zero():
    model = quiet(Convolutional)
    gs.initialize(model, (normal(8, 1, 8, 8), torch.zeros(8).long()), generator=generator())
    assert fits(model.conv.weight, 2 / 9)
    assert float(model.up.bias.detach().abs().max()) == 0


def test_leaky_slopes_enter_the_variance():
    model = quiet(lambda: nn.Sequential(nn.Linear(50, 200), nn.LeakyReLU(0.5)))
    table = gs.initialize(model, generator=generator())
    assert table.rows[0].variance == pytest.approx(2 / (1 + 0.25) / 50, rel=1e-6)


@pytest.mark.parametrize("distribution", ["normal", "truncated_normal", "uniform"])
def test_every_distribution_has_the_same_variance(distribution):
    model = deep(1, "selu", inputs=200, width=200)
    gs.initialize(model, distribution=distribution, generator=generator())
    assert fits(model.hidden1.weight, 1 / 200)


def test_the_same_generator_gives_the_same_weights():
    first, second = deep(2, "relu", seed=1), deep(2, "relu", seed=2)
    gs.initialize(first, generator=generator(5))
    gs.initialize(second, generator=generator(5))
    assert torch.equal(first.hidden2.weight, second.hidden2.weight)


def test_a_layer_used_twice_is_drawn_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(20, 20)

        def forward(self, x):
            return F.relu(self.layer(F.relu(self.layer(x))))

    assert len(gs.initialize(quiet(Twice), blobs(), generator=generator()).rows) == 1


@pytest.mark.draws
def test_weights_that_a_parametrisation_computes_are_set_through_it():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(50, 300)), nn.ReLU())
    gs.initialize(model, normal(8, 50), generator=generator())
    assert fits(model[0].weight, 2 / 50)


@pytest.mark.draws
def test_weights_that_cannot_take_the_variance_are_left_as_they_are_and_named():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(50, 300)), nn.ReLU())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = gs.initialize(model, normal(8, 50), generator=generator())
    assert table.skipped == ("0",)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("shape", [(3, 8, 3)])
def test_without_data_an_input_is_made_up_from_the_first_layer(shape):
    model = quiet(
        lambda: nn.Sequential(nn.Conv2d(*shape), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    )
    assert [row.scheme for row in gs.initialize(model, generator=generator()).rows] == ["He", "Glorot"]


def test_the_table_prints():
    text = str(gs.initialize(deep(1, "selu"), generator=generator()))
    assert "LeCun fits selu: variance 1/fan_in" in text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scheme": "magic"}, "no scheme is called 'magic'; known are: auto, exact, isometric, data"),
        ({"keep": "everything"}, "keep must be one of signal, gradient, both"),
        ({"distribution": "cauchy"}, "no distribution is called 'cauchy'; known are: normal"),
    ],
)
def test_unknown_names_list_the_known_ones(options, sentence):
    with pytest.raises(BadInput, match=sentence):
        gs.initialize(deep(1, "relu"), **options)


def test_a_network_whose_input_cannot_be_guessed_asks_for_data():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x):
            return self.layer(x.reshape(len(x), 5, 4))

    with pytest.raises(BadInput, match="give data="):
        gs.initialize(quiet(Odd))


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", ["auto", "isometric"])
def test_half_precision_is_drawn_in_float32(dtype, scheme):
    half, full = deep(2, "tanh").to(dtype), deep(2, "tanh")
    gs.initialize(half, normal(8, 20).to(dtype), scheme=scheme, generator=generator(3))
    gs.initialize(full, normal(8, 20), scheme=scheme, generator=generator(3))
    assert torch.allclose(half.hidden2.weight.float(), full.hidden2.weight, rtol=1e-2, atol=1e-3)


def test_the_loss_starts_at_chance_but_for_the_chapters_scheme():
    x, y = blobs(512)
    chance = torch.log(torch.tensor(3.0)).item()
    for scheme in ("exact", "isometric", "data"):
        model = deep(5, "tanh")
        gs.initialize(model, x, scheme=scheme, generator=generator())
        assert gs.check(model, nn.CrossEntropyLoss(), (x, y)).ledger.loss == pytest.approx(chance, abs=0.05)


@pytest.mark.parametrize("scheme", ["auto", "exact", "isometric", "data"])
def test_the_signal_of_a_residual_network_does_not_grow_with_its_depth(scheme):
    def last_signal(blocks):
        model = quiet(lambda: Residual(blocks))
        gs.initialize(model, normal(256, 20), scheme=scheme, generator=generator())
        return gs.check(model, nn.CrossEntropyLoss(), (normal(256, 20), torch.arange(256) % 3)).ledger.rows[-2].signal

    assert last_signal(30) < 1.5 * last_signal(3)


def test_gates_of_zeros_stay_zero():
    model = residual(gated=True)
    table = gs.initialize(model, normal(8, 20), generator=generator())
    assert not any(block[2].weight.detach().any() for block in model.blocks)
    assert "blocks.0.2" in table.skipped


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
    assert fits(model.head.weight, 2 / 70)


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


def test_of_a_block_with_a_layer_on_its_shortcut_the_branch_is_scaled():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.shortcut = nn.Linear(20, 40), nn.Linear(40, 40), nn.Linear(20, 40)

        def forward(self, x):
            return self.two(F.relu(self.one(x))) + self.shortcut(x)

    model = quiet(lambda: nn.Sequential(nn.Linear(20, 20), Block(), nn.Linear(40, 20), Block(), nn.Linear(40, 3)))
    table = gs.initialize(model, normal(8, 20), generator=generator())
    scaled = [row.stage for row in table.rows if "branches" in row.reason]
    assert scaled == ["1.two", "3.two"]


def test_a_depthwise_convolution_is_never_reduced_to_its_centre():
    model = quiet(
        lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    )
    gs.initialize(model, normal(4, 8, 8, 8), scheme="isometric", generator=generator())
    assert bool(model[0].weight.detach()[:, :, 0, 0].any())
    assert not bool(model[2].weight.detach()[:, :, 0, 0].any())
