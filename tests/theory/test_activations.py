"""The activations known by name: their functions, kinks, rows of the table and spellings."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gainstage.errors import BadInput
from gainstage.theory import KNOWN, Activation, leaky_relu, lookup, moments, pointwise, selu_constants
from gainstage.theory.activations import ALIASES, canonical_name
from gainstage.theory.quadrature import expectation

Z = torch.linspace(-8, 8, 321, dtype=torch.float64)


def leaky(slope):
    return lambda z: torch.where(z > 0, z, slope * z)


FORMULAS = {
    "identity": lambda z: z,
    "logistic": lambda z: 1 / (1 + torch.exp(-z)),
    "tanh": lambda z: (torch.exp(z) - torch.exp(-z)) / (torch.exp(z) + torch.exp(-z)),
    "relu": leaky(0),
    "leaky_relu": leaky(0.01),
    "huge_leaky_relu": leaky(0.2),
    "keras_leaky_relu": leaky(0.3),
    "rrelu": leaky(11 / 48),
    "prelu": leaky(0.25),
    "elu": lambda z: torch.where(z > 0, z, torch.exp(z) - 1),
    "selu": lambda z: 1.0507009873554805 * torch.where(z > 0, z, 1.6732632423543772 * (torch.exp(z) - 1)),
    "celu": lambda z: torch.where(z > 0, z, torch.exp(z) - 1),
    "gelu": lambda z: z * 0.5 * torch.erfc(-z / math.sqrt(2)),
    "silu": lambda z: z / (1 + torch.exp(-z)),
    "mish": lambda z: z * torch.tanh(torch.log1p(torch.exp(z))),
    "softplus": lambda z: torch.log1p(torch.exp(z)),
    "relu6": lambda z: z.clamp(0, 6),
    "hardswish": lambda z: z * (z + 3).clamp(0, 6) / 6,
    "hardtanh": lambda z: z.clamp(-1, 1),
    "hardsigmoid": lambda z: ((z + 3) / 6).clamp(0, 1),
    "softsign": lambda z: z / (1 + z.abs()),
}


def fixes_mean_and_variance(constants):
    """SELU's defining property: mean 0 and variance 1 go in and come out."""
    alpha, scale = constants

    def selu(z):
        return scale * torch.where(z > 0, z, alpha * torch.expm1(z))

    return abs(expectation(selu)) < 1e-12 and abs(expectation(lambda z: selu(z) ** 2) - 1) < 1e-12


def test_every_known_activation_is_tested():
    assert FORMULAS.keys() == KNOWN.keys()


@pytest.mark.parametrize("name", KNOWN)
def test_the_function_is_the_textbook_formula(name):
    assert torch.allclose(KNOWN[name].function(Z), FORMULAS[name](Z), atol=1e-9)


def test_selu_constants_are_the_published_ones():
    assert selu_constants() == pytest.approx((1.6732632423543772, 1.0507009873554805), rel=1e-14)


def test_selu_constants_are_the_fixed_point():
    alpha, scale = selu_constants()
    assert fixes_mean_and_variance((alpha, scale))
    assert not fixes_mean_and_variance((1.6733, 1.0507)), "rounded constants must be rejected"
    assert not fixes_mean_and_variance((scale, alpha)), "swapped constants must be rejected"


def test_torch_uses_the_same_selu_constants():
    alpha, scale = selu_constants()
    expected = scale * torch.where(Z > 0, Z, alpha * torch.expm1(Z))
    assert torch.allclose(F.selu(Z), expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("name", "kinks"),
    [("relu", (0,)), ("relu6", (0, 6)), ("hardtanh", (-1, 1)), ("selu", (0,)), ("elu", ()), ("gelu", ()), ("tanh", ())],
)
def test_kinks(name, kinks):
    assert lookup(name).kinks == pytest.approx(kinks, abs=1e-8)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("tanh", -math.atanh(math.sqrt(0.95)), math.atanh(math.sqrt(0.95))),
        ("logistic", -math.log(39 + math.sqrt(1520)), math.log(39 + math.sqrt(1520))),
        ("softsign", 1 - math.sqrt(20), math.sqrt(20) - 1),
        ("hardtanh", -1, 1),
        ("elu", math.log(0.05), math.inf),
        ("relu", 0, math.inf),
        ("identity", -math.inf, math.inf),
    ],
)
def test_the_responsive_interval_is_where_the_slope_exceeds_5_percent_of_its_maximum(name, low, high):
    assert lookup(name).responsive == pytest.approx((low, high), abs=1e-3)


def test_the_responsive_interval_of_a_shifted_function_is_shifted():
    low, high = Activation("late", lambda z: torch.tanh(z - 5), "logistic").responsive
    assert (low, high) == pytest.approx((5 - 2.178, 5 + 2.178), abs=1e-2)


def test_only_functions_flat_on_both_sides_saturate():
    saturating = {name for name, activation in KNOWN.items() if activation.saturates}
    assert saturating == {"logistic", "tanh", "hardtanh", "hardsigmoid", "softsign"}


def test_leaky_relu_takes_its_slope():
    assert leaky_relu(0.3).function(torch.tensor([-2.0, 2.0])).tolist() == pytest.approx([-0.6, 2.0])
    assert leaky_relu(0.3).family == "relu"
    assert leaky_relu(0.3) is leaky_relu(0.3), "cached, so that its moments are"


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("ReLU", "relu"),
        ("SiLU", "silu"),
        ("swish", "silu"),
        ("Sigmoid", "logistic"),
        ("linear", "identity"),
        ("none", "identity"),
        ("leaky_relu", "leaky_relu"),
        ("Leaky ReLU", "leaky_relu"),
        ("leaky-relu", "leaky_relu"),
        ("hard_sigmoid", "hardsigmoid"),
        ("Hard-Tanh", "hardtanh"),
        ("Hardswish", "hardswish"),
        ("hard_silu", "hardswish"),
        ("huge leaky ReLU", "huge_leaky_relu"),
        ("Keras leaky ReLU", "keras_leaky_relu"),
        ("scaled_elu", "selu"),
        ("Scaled ELU", "selu"),
        ("randomized leaky ReLU", "rrelu"),
        ("randomised leaky ReLU", "rrelu"),
        ("parametric leaky ReLU", "prelu"),
        ("Parametric ReLU", "prelu"),
        ("leaky (ReLU)", "leaky_relu"),
    ],
)
def test_spellings_of_torch_keras_and_the_chapter(spelling, name):
    assert lookup(spelling) is KNOWN[name]


def test_the_class_name_of_torchs_leaky_relu_is_a_spelling():
    assert lookup("LeakyReLU") is KNOWN["leaky_relu"]


def test_every_alias_means_another_name_and_none_hides_one():
    assert set(ALIASES.values()) <= set(KNOWN)
    assert not set(ALIASES) & set(KNOWN)


@pytest.mark.parametrize("name", ["rleu", "", "softmax", "huge relu"])
def test_an_unknown_name_lists_all_known_ones(name):
    with pytest.raises(BadInput, match="no activation is called") as caught:
        lookup(name)
    listed = str(caught.value).split("known are: ")[1].split(", ")
    assert listed == sorted([*KNOWN, *ALIASES])
    assert repr(name) in str(caught.value)


def test_canonical_name_knows_only_what_it_is_given():
    assert canonical_name("Swish", ["silu"]) == "silu"
    with pytest.raises(BadInput, match=r"no activation is called 'relu'; known are: silu, swish$"):
        canonical_name("relu", ["silu"])
    with pytest.raises(BadInput, match="no activation is called 'linear'"):
        canonical_name("linear", ["silu"])


def test_functions_with_settings_are_activations_too():
    activation = Activation("elu(2)", partial(F.elu, alpha=2.0), "relu")
    assert activation.kinks == pytest.approx((0,), abs=1e-8), "the slope jumps from 2 to 1"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (torch.tanh, "tanh"),
        (F.sigmoid, "logistic"),
        (torch.relu, "relu"),
        (nn.SiLU(), "silu"),
        (nn.SiLU, "silu"),
        (nn.PReLU, "prelu"),
        (nn.LeakyReLU(0.2), "huge_leaky_relu"),
        (lambda z: z.clamp(min=0), "relu"),
        (lambda z: z * torch.sigmoid(z), "silu"),
        (partial(F.leaky_relu, negative_slope=0.3), "keras_leaky_relu"),
        (pointwise(torch.tanh), "tanh"),
        (KNOWN["gelu"], "gelu"),
    ],
)
def test_an_activation_may_be_given_as_what_computes_it(given, name):
    assert lookup(given) is KNOWN[name]


@pytest.mark.parametrize(
    "function",
    [torch.sin, nn.ELU(alpha=2.0), nn.GELU("tanh"), partial(F.hardtanh, min_val=-600.0, max_val=600.0), torch.exp],
)
def test_a_function_that_is_not_known_is_one_of_ones_own(function):
    found = lookup(function)
    assert (found.function, found.family) == (function, "other")
    assert found.name in ("sin", "ELU", "GELU", "hardtanh", "exp")
    assert found is lookup(function), "cached, so that its moments are"


def test_an_activation_of_ones_own_is_taken_as_it_is():
    own = Activation("own", torch.tanh, "other")
    assert lookup(own) is own


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (None, "an activation is given by its name, such as 'tanh', or as a function, got None"),
        (3, "or as a function, got 3"),
        (nn.Linear, "or as a function, got <class"),
        (nn.MultiheadAttention, "no activation is called 'MultiheadAttention'; known are"),
        (nn.PReLU(), "PReLU has parameters, which change; give the function that it is now"),
        (nn.ReLU(inplace=True), "ReLU cannot be an activation, .* it changes its input in place"),
        (nn.Softmax(-1), "Softmax cannot be an activation, a function of one number"),
    ],
)
def test_what_is_no_activation_gets_one_sentence(given, sentence):
    with pytest.raises(BadInput, match=sentence):
        lookup(given)


def test_an_activation_is_checked_as_soon_as_it_can_be():
    with pytest.raises(BadInput, match="no family of activations is called 'foo'; known are: linear, logistic, relu"):
        Activation("own", torch.sin, "foo")
    with pytest.raises(BadInput, match="an activation's name must be a string, got 3"):
        Activation(3, torch.sin, "other")
    with pytest.raises(BadInput, match="an activation's function must be something that can be called"):
        Activation("own", "tanh", "other")
    centred = Activation("centred", lambda z: z - z.mean(), "other")
    for use in (lambda: centred.kinks, lambda: centred.responsive, lambda: moments(centred)):
        with pytest.raises(BadInput, match="depends on the numbers beside it"):
            use()


@pytest.mark.parametrize("slope", [math.nan, math.inf, None, "0.1", True])
def test_the_slope_of_a_leaky_relu_is_a_finite_number(slope):
    with pytest.raises(BadInput, match="the slope of a leaky ReLU must be a finite number, got"):
        leaky_relu(slope)
