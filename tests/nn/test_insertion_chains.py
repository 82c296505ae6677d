"""Batch normalisation put into an nn.Sequential."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gainstage.errors import BadInput
from gainstage.nn import batch_norm_after, dense_network, insert_batch_norm
from tests.tools import generator, normal, quiet


def dense(hidden, activation="relu"):
    return quiet(lambda: dense_network(20, hidden, 3, activation, generator=generator()))


def kinds(model):
    return [type(m).__name__ for m in model.modules() if not isinstance(m, nn.Sequential)]


def test_before_it_stands_between_layer_and_activation_and_the_useless_bias_goes():
    model = dense([16, 16])
    names = set(model.state_dict())
    assert insert_batch_norm(model) is model
    assert kinds(model) == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert model.hidden1.bias is None
    assert model.hidden2.bias is None
    assert model.output.bias is not None
    assert names - set(model.state_dict()) == {"hidden1.bias", "hidden2.bias"}, "no parameter is renamed"


def test_after_it_follows_the_activation_and_the_biases_stay():
    model = insert_batch_norm(dense([16, 8]), "after")
    assert kinds(model) == ["Linear", "ReLU", "BatchNorm1d", "Linear", "ReLU", "BatchNorm1d", "Linear"]
    assert [m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm1d)] == [16, 8]
    assert model.hidden1.bias is not None
    assert model(normal(10, 20)).shape == (10, 3)


def test_the_removed_bias_made_no_difference():
    x, layer = normal(64, 20), quiet(lambda: nn.Linear(20, 16))
    norm = batch_norm_after(layer)
    assert torch.allclose(norm(layer(x)), norm(F.linear(x, layer.weight)), atol=1e-5)


def test_first_takes_the_place_of_standardised_inputs():
    x = normal(64, 20)
    raw = 50 + 300 * x
    model = insert_batch_norm(dense([16]), first=True)
    assert kinds(model)[:2] == ["BatchNorm1d", "Linear"]
    assert torch.allclose(model(raw), model((raw - raw.mean(0)) / raw.std(0)), atol=1e-3)
    plain = insert_batch_norm(dense([16], "tanh"), "after")
    assert not torch.allclose(plain(raw), plain(x), atol=1e-1), "or this test could not fail"


def convolutions():
    block = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Dropout(0.1))
    twice = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Identity(), nn.GELU())
    return nn.Sequential(block, twice, nn.Flatten(), nn.Linear(24, 8), nn.PReLU(), nn.Linear(8, 3), nn.Softmax(1))


def test_nested_sequentials_pooling_and_names_that_are_numbers():
    model = quiet(convolutions)
    insert_batch_norm(model, first=True)
    assert kinds(model) == [
        "BatchNorm2d", "Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU", "Dropout", "Conv2d", "Identity", "BatchNorm2d",
        "GELU", "Flatten", "Linear", "BatchNorm1d", "PReLU", "Linear", "Softmax",
    ]  # fmt: skip
    assert model.get_submodule("0.2_normalization").num_features == 4
    assert model.get_submodule("0.0").bias is not None, "behind pooling it stays"
    assert model.get_submodule("1.0").bias is None
    assert model.get_submodule("3").bias is None
    with torch.random.fork_rng(devices=[]):
        assert model(normal(10, 1, 8, 8)).shape == (10, 3)


@pytest.mark.parametrize("position", ["before", "after"])
def test_what_is_normalised_already_is_left_alone_and_a_second_time_there_is_nothing_to_do(position):
    model = quiet(
        lambda: nn.Sequential(
            *(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()),
            *(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.1), nn.LayerNorm(4)),
            *(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
        )
    )
    insert_batch_norm(model, position, first=True)
    assert sum(isinstance(m, nn.BatchNorm1d) for m in model) == 3
    with pytest.raises(BadInput, match="there is nothing to normalise"):
        insert_batch_norm(model, position, first=True)


def test_a_layer_that_is_used_again_keeps_its_bias_and_a_shared_block_gets_one():
    def build():
        shared, block = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        return nn.Sequential(shared, nn.ReLU(), shared, block, block, nn.Linear(4, 2))

    model = insert_batch_norm(quiet(build))
    assert model.get_submodule("0").bias is not None
    assert kinds(model[4])[:3] == ["Linear", "BatchNorm1d", "Tanh"]
    assert len(model[4]) == 3
    assert model(normal(10, 4)).shape == (10, 2)


def test_mode_device_and_dtype_are_the_networks():
    model = nn.Sequential(
        nn.Linear(4, 4, device="meta", dtype=torch.float64), nn.ReLU(), nn.Linear(4, 2, device="meta")
    )
    insert_batch_norm(model.eval(), first=True)
    for norm in (model[0], model[2]):
        assert (norm.weight.device.type, norm.weight.dtype, norm.training) == ("meta", torch.float64, False)
