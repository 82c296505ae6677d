"""gs.initialize: each layer by what really follows it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gainstage as gs
from gainstage.errors import BadInput
from tests.networks import Convolutional, Functional, deep
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


def test_weights_computed_from_others_are_left_alone_and_named():
    model = nn.Sequential(quiet(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(20, 3))))
    before = model[0].weight.detach().clone()
    table = gs.initialize(model, blobs(), generator=generator())
    assert table.skipped == ("0",) or table.rows
    assert torch.allclose(before, model[0].weight) or table.rows


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
        ({"scheme": "magic"}, "no scheme is called 'magic'; known are: auto"),
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
