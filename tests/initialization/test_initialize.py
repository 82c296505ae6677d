"""gs.initialize: each layer by what really follows it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gainstage as gs
from tests.networks import Functional, Residual, deep, residual
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


@pytest.mark.parametrize("shape", [(3, 8, 3)])
def test_without_data_an_input_is_made_up_from_the_first_layer(shape):
    model = quiet(
        lambda: nn.Sequential(nn.Conv2d(*shape), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    )
    assert [row.scheme for row in gs.initialize(model, generator=generator()).rows] == ["He", "Glorot"]


def test_the_table_prints():
    text = str(gs.initialize(deep(1, "selu"), generator=generator()))
    assert "LeCun fits selu: variance 1/fan_in" in text


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


def test_the_output_starts_at_the_given_bias():
    model, bias = deep(2, "tanh"), gs.nn.prior_bias([0.7, 0.2, 0.1])
    for scheme in ("auto", "data"):
        gs.initialize(model, normal(64, 20), scheme=scheme, output_bias=bias, generator=generator())
        assert torch.equal(model.output.bias, bias)
    gs.initialize(deep(1, "tanh", outputs=1), output_bias=gs.nn.prior_bias_binary(0.1), generator=generator())


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
