"""Whole networks in one line: shape, names, and weights that fit what follows each layer."""

import numpy as np
import pytest
import torch
from torch import nn

from gainstage.errors import BadInput
from gainstage.nn import VarianceScaling, dense_network, fans_of
from gainstage.theory import lookup, scheme_for, tailored_slope
from tests.tools import generator, normal, quiet


def network(*args, seed=0, **settings):
    return quiet(lambda: dense_network(*args, generator=generator(seed), **settings))


def has_variance(weight, variance, sigmas=5.0):
    squares = weight.detach().double().square().flatten()
    return abs(float(squares.mean()) - variance) < sigmas * float(squares.std()) / squares.numel() ** 0.5


def test_modules_have_readable_names_in_order():
    names = [name for name, _ in network(8, [6, 4], 3).named_children()]
    assert names == ["hidden1", "activation1", "hidden2", "activation2", "output"]


def test_sizes_chain_from_inputs_to_outputs():
    model = network(8, [6, 4], 3)
    assert [(m.in_features, m.out_features) for m in model if isinstance(m, nn.Linear)] == [(8, 6), (6, 4), (4, 3)]
    assert model(normal(5, 8)).shape == (5, 3)


def test_without_hidden_layers_only_the_output_is_left():
    assert [name for name, _ in network(8, [], 3).named_children()] == ["output"]


def test_the_activation_comes_after_each_hidden_layer_only():
    assert [type(module) for module in network(8, [6], 3, activation="swish")] == [nn.Linear, nn.SiLU, nn.Linear]
    assert isinstance(network(8, [6], 3).activation1, nn.SELU), "SELU is the default"


@pytest.mark.parametrize("initializer", ["auto", "he_uniform"])
def test_biases_start_at_zero(initializer):
    model = network(8, [6, 4], 3, initializer=initializer)
    assert not any(layer.bias.any() for layer in model if isinstance(layer, nn.Linear))


@pytest.mark.parametrize(
    ("activation", "variance"),
    [("relu", 2 / 300), ("gelu", 2 / 300), ("selu", 1 / 300), ("tanh", 2 / 500), ("prelu", 2 / (1.0625 * 300))],
)
def test_auto_draws_the_variance_of_the_chapters_table(activation, variance):
    model = network(300, [200], 100, activation=activation)
    assert has_variance(model.hidden1.weight, variance)
    assert not has_variance(model.hidden1.weight, 1.2 * variance), "the check must bite"
    assert has_variance(model.output.weight, 2 / 300), "nothing follows the output: Glorot"


@pytest.mark.parametrize("initializer", ["lecun_uniform", VarianceScaling(1.0, "fan_in", "uniform")])
def test_a_named_initialiser_draws_every_layer(initializer):
    model = network(300, [200], 100, activation="relu", initializer=initializer)
    assert has_variance(model.hidden1.weight, 1 / 300)
    assert has_variance(model.output.weight, 1 / 200)
    assert float(model.output.weight.detach().abs().max()) <= (3 / 200) ** 0.5


def test_a_function_may_fill_the_weights():
    model = network(4, [4], 4, initializer=nn.init.eye_)
    assert torch.equal(model.hidden1.weight, torch.eye(4))
    assert torch.equal(model.output.weight, torch.eye(4))


def test_the_generator_decides_the_weights():
    first, again, other = (network(8, [6], 3, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.output.weight, other.output.weight)


def test_layers_of_one_unit_are_layers():
    assert network(1, [1], 1)(normal(5, 1)).shape == (5, 1)


@pytest.mark.parametrize(("sizes", "what"), [((0, [4], 2), "inputs"), ((3, [4, 0], 2), "each width in hidden"),
                                             ((3, [4], -1), "outputs")])  # fmt: skip
def test_a_layer_without_units_is_refused(sizes, what):
    with pytest.raises(BadInput, match=f"{what} must be a whole number of at least 1, got"):
        network(*sizes)


@pytest.mark.parametrize(
    ("settings", "message", "known"),
    [
        ({"activation": "rleu"}, "no activation is called 'rleu'", "leaky_relu"),
        ({"initializer": "hee"}, "no initialiser is called 'hee'", "kaiming_uniform"),
    ],
)
def test_unknown_names_list_the_known_ones(settings, message, known):
    with pytest.raises(BadInput, match=message) as caught:
        network(3, [4], 2, **settings)
    assert known in str(caught.value)


@pytest.mark.parametrize(
    ("given", "kind"),
    [(torch.tanh, nn.Tanh), (nn.Tanh, nn.Tanh), (nn.ReLU(), nn.ReLU), (lookup("gelu"), nn.GELU), ("Swish", nn.SiLU)],
)
def test_an_activation_may_be_given_as_pytorch_writes_it(given, kind):
    model = network(300, [200, 200], 100, activation=given)
    assert [type(model.activation1), type(model.activation2)] == [kind, kind]
    assert model.activation1 is not model.activation2
    assert has_variance(model.hidden1.weight, scheme_for(given).variance(fans_of(model.hidden1)))


@pytest.mark.parametrize("spelling", ["tailored_leaky_relu", "Tailored leaky ReLU"])
def test_a_tailored_slope_fits_the_depth_in_any_spelling(spelling):
    model = network(8, [6] * 30, 3, activation=spelling)
    assert model.activation1.negative_slope == pytest.approx(tailored_slope(30))


def test_widths_may_come_from_anything_that_can_be_gone_through():
    for widths in ((6, 5), range(6, 4, -1), np.array([6, 5]), (width for width in (6, 5))):
        assert [layer.out_features for layer in network(8, widths, 3) if isinstance(layer, nn.Linear)] == [6, 5, 3]


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tailored_leaky_relu"])
def test_a_network_may_be_laid_out_on_the_meta_device(activation):
    with torch.device("meta"):
        model = dense_network(8, [6, 4], 3, activation)
    assert all(parameter.is_meta for parameter in model.parameters())
