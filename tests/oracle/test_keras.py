"""Keras 3 as an oracle, on its torch backend: initialisers, activations and batch normalisation compute the same numbers.

Keras draws and scales weights, takes moments and normalises by code of its own. Its activations end in torch's functions:
there the oracle judges which variant and which constants belong to a name.
"""

import importlib
import math
import os
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import ks_2samp
from torch import nn

from gainstage.errors import BadInput
from gainstage.nn import activation, batch_norm_after, initializer, keras_momentum, population_statistics
from gainstage.nn.initializers import truncated_std
from gainstage.randomness import preserved
from gainstage.theory import convolution_fans, linear_fans
from tests.tools import generator, normal, quiet

SIGMAS = 5  # no test here may fail by chance more often than once in a million runs


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    """Keras on torch and the CPU; its import draws random numbers and writes to the environment and to KERAS_HOME."""
    environment = dict(os.environ)
    os.environ |= {"KERAS_BACKEND": "torch", "KERAS_HOME": str(tmp_path_factory.mktemp("keras"))}
    try:
        with preserved():
            module = importlib.import_module("keras")
    finally:
        os.environ.clear()
        os.environ.update(environment)
    assert module.backend.backend() == "torch"
    with module.device("cpu"):
        yield module


def as_numbers(value):
    return value.detach().cpu()


# initialisers

SHAPES = {"dense": (400, 700), "convolution": (5, 5, 80, 150)}  # Keras: (in, out), (height, width, in, out)
SCHEMES = ["glorot", "he", "lecun"]
CLASSES = {"glorot": "Glorot", "he": "He", "lecun": "Lecun"}


def keras_draw(keras, scheme, distribution, shape):
    kind = "Uniform" if distribution == "uniform" else "Normal"
    return as_numbers(getattr(keras.initializers, f"{CLASSES[scheme]}{kind}")(seed=1)(SHAPES[shape])).flatten()


def fans(shape, swapped=False):
    *taps, inputs, outputs = SHAPES[shape]
    if swapped:
        inputs, outputs = outputs, inputs
    return convolution_fans((outputs, inputs, *taps)) if taps else linear_fans((outputs, inputs))


def ours(scheme, distribution):
    return initializer(f"{scheme}_{'uniform' if distribution == 'uniform' else 'normal'}", distribution)


def draw_ours(scheme, distribution, shape):
    return ours(scheme, distribution)(torch.empty(math.prod(SHAPES[shape])), fans(shape), generator(2))


def standard_errors(weights, variance):
    """How many standard errors the power of the weights is off `variance`."""
    squares = weights.double().square()
    return float((squares.mean() - variance).abs() / (squares.std() / len(squares) ** 0.5))


cases = pytest.mark.parametrize(
    ("scheme", "distribution", "shape"),
    [(s, d, shape) for s in SCHEMES for d in ("truncated_normal", "uniform") for shape in SHAPES],
)


@cases
def test_keras_draws_weights_of_the_variance_that_the_preset_names(keras, scheme, distribution, shape):
    weights = keras_draw(keras, scheme, distribution, shape)
    assert standard_errors(weights, ours(scheme, distribution).variance(fans(shape))) < SIGMAS


@pytest.mark.parametrize("scheme", ["he", "lecun"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_mutant_with_swapped_fans_and_that_of_another_scheme_are_seen(keras, scheme, shape):
    weights = keras_draw(keras, scheme, "uniform", shape)
    assert standard_errors(weights, ours(scheme, "uniform").variance(fans(shape, swapped=True))) > 10 * SIGMAS
    assert standard_errors(weights, ours("glorot", "uniform").variance(fans(shape))) > 10 * SIGMAS


def reach(scheme, distribution, shape):
    """Where the distribution ends: sqrt(3 variance), or two standard deviations of the normal before it was cut."""
    std = math.sqrt(ours(scheme, distribution).variance(fans(shape)))
    return math.sqrt(3) * std if distribution == "uniform" else 2 * std / truncated_std()


@cases
def test_both_reach_the_same_bounds(keras, scheme, distribution, shape):
    # on torch, Keras draws four times for a normal inside the cut and keeps what it has where all four fail: 4 in a million
    tolerated = 10 if distribution == "truncated_normal" else 0
    bound = reach(scheme, distribution, shape) * (1 + 1e-6)
    theirs, mine = keras_draw(keras, scheme, distribution, shape), draw_ours(scheme, distribution, shape)
    assert (theirs.abs() > bound).sum() <= tolerated
    assert (mine.abs() > bound).sum() == 0
    for weights in (theirs, mine):
        inside = weights[weights.abs() <= bound]
        assert inside.max() > 0.99 * bound
        assert inside.min() < -0.99 * bound


def test_the_bounds_of_a_uniform_are_exactly_those_that_keras_asks_for(keras, monkeypatch):
    asked = []
    drawing = importlib.import_module("keras.src.initializers.random_initializers").random
    monkeypatch.setattr(drawing, "uniform", lambda shape, minval, maxval, **_: asked.append((minval, maxval)))
    for scheme in SCHEMES:
        getattr(keras.initializers, f"{CLASSES[scheme]}Uniform")(seed=1)(SHAPES["dense"])
        bound = reach(scheme, "uniform", "dense")
        assert asked.pop() == pytest.approx((-bound, bound), rel=1e-14)


def distance(a, b):
    """The Kolmogorov-Smirnov distance, in units of what one in a million pairs of equal distribution exceeds."""
    limit = math.sqrt(-math.log(0.5e-6) / 2) * math.sqrt(1 / len(a) + 1 / len(b))
    return ks_2samp(a.numpy(), b.numpy(), method="asymp").statistic / limit


@cases
def test_both_draw_from_the_same_distribution(keras, scheme, distribution, shape):
    assert distance(keras_draw(keras, scheme, distribution, shape), draw_ours(scheme, distribution, shape)) < 1


def test_keras_normal_is_the_truncated_one_and_not_the_plain(keras):
    assert distance(keras_draw(keras, "he", "truncated_normal", "dense"), draw_ours("he", "normal", "dense")) > 1


# activations

SPELLINGS = (
    "linear", "relu", "sigmoid", "tanh", "elu", "selu", "celu", "gelu", "silu", "swish", "mish", "softplus", "softsign",
    "relu6", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "softmax",
)  # fmt: skip
# "leaky_relu" has PyTorch's slope 0.01 here and 0.2 in Keras: see below. Keras has no RReLU; its PReLU layer starts at
# slope 0, PyTorch's and Gainstage's at 0.25.
DIFFERENT = {"leaky_relu"}
GRID = torch.linspace(-10, 10, 4001).view(1, -1)


@pytest.mark.parametrize("name", SPELLINGS)
def test_an_activation_in_keras_spelling_is_keras_function(keras, name):
    expected = as_numbers(keras.activations.get(name)(GRID))
    assert torch.allclose(activation(name)(GRID), expected, rtol=0, atol=1e-6)


def test_no_activation_that_both_know_is_left_out(keras):
    def known(name):
        try:
            return activation(name) is not None
        except BadInput:
            return False

    assert {name for name in dir(keras.activations) if known(name)} <= {*SPELLINGS, *DIFFERENT}


def test_leaky_relu_has_the_slope_that_each_library_gives_it(keras):
    function, layer = keras.activations.leaky_relu, keras.layers.LeakyReLU()
    for expected, module in (
        (function(GRID), activation("huge_leaky_relu")),
        (layer(GRID), activation("keras_leaky_relu")),
        (function(GRID, negative_slope=0.01), activation("leaky_relu")),
    ):
        assert torch.allclose(module(GRID), as_numbers(expected), rtol=0, atol=1e-6)
    assert not torch.allclose(activation("leaky_relu")(GRID), as_numbers(function(GRID)), atol=1e-2)


# batch normalisation

EPSILON = 1e-3  # Keras's default; PyTorch's is 1e-5
MOMENTUM = 0.9
PLACES = {"dense": ((16, 5), -1), "images": ((16, 5, 3, 2), 1)}


def pair(keras, shape, momentum=MOMENTUM, share=None, epsilon=EPSILON):
    """Keras's layer and ours with the same gamma and beta; ours takes Keras's epsilon and its momentum, converted."""
    size, axis = PLACES[shape]
    theirs = keras.layers.BatchNormalization(axis=axis, momentum=momentum)
    theirs.build(size)
    layer = quiet(lambda: nn.Linear(3, 5) if len(size) == 2 else nn.Conv2d(3, 5, 1))
    norm = batch_norm_after(layer, momentum, "keras") if share is None else batch_norm_after(layer, share)
    norm.eps = epsilon
    gamma, beta = 1 + 0.3 * normal(5, seed=7), normal(5, seed=8)
    with torch.no_grad():
        norm.weight.copy_(gamma)
        norm.bias.copy_(beta)
    theirs.gamma.assign(gamma)
    theirs.beta.assign(beta)
    return SimpleNamespace(theirs=theirs, ours=norm, size=size, values=math.prod(size) // 5)


def batch(size, seed=0):
    return 1 + 0.2 * normal(*size, seed=seed)


shapes = pytest.mark.parametrize("shape", PLACES)


def test_the_defaults_are_those_that_the_conversion_is_about(keras):
    theirs = keras.layers.BatchNormalization()
    assert (theirs.momentum, theirs.epsilon) == (0.99, EPSILON)
    plain = batch_norm_after(quiet(lambda: nn.Linear(3, 5)))
    assert (plain.momentum, plain.eps) == (0.1, 1e-5)


@shapes
def test_training_mode_puts_out_the_same(keras, shape):
    both = pair(keras, shape)
    x = batch(both.size)
    assert torch.allclose(both.ours(x), both.theirs(x, training=True), atol=1e-5)
    mutant = pair(keras, shape, epsilon=1e-5)
    assert not torch.allclose(mutant.ours(x), both.theirs(x, training=True), atol=1e-3), "epsilon not converted"


def gradients(function, x, parameters):
    x = x.clone().requires_grad_()
    output = function(x)
    (output * normal(*output.shape, seed=9)).sum().backward()
    return [x.grad, *(p.grad for p in parameters)]


@shapes
def test_the_gradients_of_inputs_gamma_and_beta_are_the_same(keras, shape):
    both = pair(keras, shape)
    x = batch(both.size)
    mine = gradients(both.ours, x, [both.ours.weight, both.ours.bias])
    theirs = gradients(lambda x: both.theirs(x, training=True), x, [both.theirs.gamma.value, both.theirs.beta.value])
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)
        assert b.abs().max() > 0.1, "or this test could not fail"


def after_batches(both, batches=4):
    for seed in range(batches):
        x = batch(both.size, seed)
        both.ours(x)
        both.theirs(x, training=True)
    return as_numbers(both.theirs.moving_mean.value), as_numbers(both.theirs.moving_variance.value)


def keras_variance(norm, values, batches=4):
    """PyTorch's moving variance as Keras would have it: what the batches gave divides by n instead of n - 1, what is left
    of the 1 it started from stays."""
    start = (1 - norm.momentum) ** batches
    return start + (norm.running_var - start) * (values - 1) / values


@shapes
def test_the_moving_averages_are_the_same_with_the_momentum_converted(keras, shape):
    both = pair(keras, shape)
    mean, variance = after_batches(both)
    assert torch.allclose(both.ours.running_mean, mean, atol=1e-5)
    assert torch.allclose(keras_variance(both.ours, both.values), variance, atol=1e-5)
    assert not torch.allclose(both.ours.running_var, variance, atol=1e-4), "n - 1 taken for n"


@shapes
def test_the_mutant_whose_momentum_is_not_converted_is_seen(keras, shape):
    both = pair(keras, shape, share=MOMENTUM)
    mean, variance = after_batches(both)
    assert not torch.allclose(both.ours.running_mean, mean, atol=0.1)
    assert not torch.allclose(keras_variance(both.ours, both.values), variance, atol=0.1)
    assert both.ours.momentum != pytest.approx(keras_momentum(MOMENTUM))


@shapes
def test_evaluation_mode_puts_out_the_same_from_the_same_averages(keras, shape):
    both = pair(keras, shape)
    mean, variance = after_batches(both)
    both.ours.running_mean.copy_(mean)
    both.ours.running_var.copy_(variance)
    x = batch(both.size, seed=5)
    assert torch.allclose(both.ours.eval()(x), both.theirs(x, training=False), atol=1e-5)


@shapes
def test_the_population_is_what_keras_takes_from_the_whole_set_as_one_batch(keras, shape):
    both = pair(keras, shape, momentum=1e-9)  # the new batch replaces the average
    x = batch(both.size)
    both.theirs(x, training=True)
    variance = as_numbers(both.theirs.moving_variance.value)
    (row,) = population_statistics(both.ours, (x, torch.zeros(len(x))), 5).rows
    assert torch.allclose(row.mean.float(), as_numbers(both.theirs.moving_mean.value), atol=1e-6)
    assert torch.allclose(row.variance.float(), variance, atol=1e-6)
    assert not torch.allclose(row.variance.float() * row.values / (row.values - 1), variance, atol=1e-4), "n - 1 for n"
