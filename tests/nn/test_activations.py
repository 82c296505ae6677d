"""Activation modules by name compute what theory reckons with."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from gainstage.errors import BadInput
from gainstage.nn import activation
from gainstage.nn.activations import MODULES, SETTINGS, pointwise
from gainstage.theory import KNOWN, Activation, leaky_relu, lookup
from gainstage.theory.activations import ALIASES
from gainstage.theory.meanfield import composed, leaky_correlation
from tests.tools import normal, quiet

Z = torch.linspace(-8, 8, 161, dtype=torch.float64)
NAMES = sorted(KNOWN)
VALUES = {"slope": 0.5, "alpha": 2.0, "channels": 4, "depth": 30, "similarity": 0.7}


@pytest.mark.parametrize("name", NAMES)
def test_the_module_computes_what_theory_knows(name):
    module = activation(name).eval().double()
    assert torch.allclose(module(Z).detach(), pointwise(name).function(Z), atol=1e-12)


@pytest.mark.parametrize("name", [*KNOWN, *ALIASES])
def test_theory_and_modules_know_the_same_spellings(name):
    spelling = name.replace("_", " ").upper()
    assert pointwise(spelling) is lookup(spelling)
    assert repr(activation(spelling)) == repr(activation(ALIASES.get(name, name)))


@pytest.mark.parametrize(
    ("spelling", "kind"),
    [
        ("ReLU", nn.ReLU),
        ("swish", nn.SiLU),
        ("sigmoid", nn.Sigmoid),
        ("linear", nn.Identity),
        ("leaky-relu", nn.LeakyReLU),
        ("Hard Sigmoid", nn.Hardsigmoid),
        ("hard_silu", nn.Hardswish),
        ("rrelu", nn.RReLU),
        ("randomized leaky ReLU", nn.RReLU),
        ("prelu", nn.PReLU),
        ("parametric leaky ReLU", nn.PReLU),
        ("Scaled ELU", nn.SELU),
        ("huge leaky ReLU", nn.LeakyReLU),
    ],
)
def test_a_name_gives_torchs_own_module(spelling, kind):
    assert type(activation(spelling)) is kind


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"tailored_leaky_relu"}))
def test_every_module_is_torchs_own(name):
    assert type(activation(name)).__module__ == "torch.nn.modules.activation" or name == "identity"


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (partial(activation, "leaky_relu"), -0.01),
        (partial(activation, "huge leaky relu"), -0.2),
        (partial(activation, "keras_leaky_relu"), -0.3),
        (partial(activation, "leaky_relu", slope=0.3), -0.3),
        (partial(activation, "keras_leaky_relu", slope=0.1), -0.1),
        (partial(activation, "leaky_relu", slope=0), 0.0),
        (partial(activation, "prelu"), -0.25),
        (partial(activation, "prelu", slope=0.1), -0.1),
        (partial(activation, "elu"), math.exp(-1) - 1),
        (partial(activation, "elu", alpha=2), 2 * (math.exp(-1) - 1)),
        (partial(activation, "celu", alpha=2), 2 * (math.exp(-0.5) - 1)),
    ],
)
def test_settings_decide_on_the_value_at_minus_one(build, expected):
    assert build()(torch.tensor([-1.0])).item() == pytest.approx(expected, abs=1e-7)


def test_a_prelu_learns_one_slope_a_channel():
    module = activation("prelu", channels=3)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([0.1, 0.2, 0.3]))
    out = module(-torch.ones(2, 3, 4))
    assert torch.allclose(out, torch.tensor([-0.1, -0.2, -0.3])[:, None].expand(2, 3, 4))
    assert activation("prelu").weight.shape == (1,)


def test_rrelu_draws_in_training_and_takes_the_mean_in_evaluation():
    module, z = activation("rrelu"), -torch.ones(1000)
    slopes = -quiet(lambda: module.train()(z))
    assert slopes.min() >= 1 / 8
    assert slopes.max() <= 1 / 3
    assert slopes.std() == pytest.approx((1 / 3 - 1 / 8) / math.sqrt(12), rel=0.1)
    assert torch.allclose(module.eval()(z), torch.full((1000,), -(1 / 8 + 1 / 3) / 2))


@pytest.mark.parametrize("similarity", [0.7, 0.9])
@pytest.mark.parametrize("depth", [20, 50])
def test_a_tailored_slope_ends_at_the_asked_similarity(depth, similarity):
    slope = activation("tailored_leaky_relu", depth=depth, similarity=similarity).negative_slope
    reached = composed(partial(leaky_correlation, slope), depth, 0.0)
    assert reached == pytest.approx(similarity, abs=1e-6)
    assert composed(partial(leaky_correlation, slope), depth + 1, 0.0) > similarity + 1e-4, "or the depth did not count"


def test_a_tailored_slope_is_meant_for_a_similarity_of_nine_tenths():
    slopes = [activation("tailored leaky ReLU", depth=20, **more).negative_slope for more in ({}, {"similarity": 0.9})]
    assert slopes[0] == slopes[1]


def test_softmax_normalises_the_last_dimension():
    assert torch.allclose(activation("softmax")(Z.reshape(1, 7, 23)).sum(-1), torch.ones(1, 7, dtype=torch.float64))


def test_every_call_makes_a_new_module():
    assert activation("prelu") is not activation("prelu")


@pytest.mark.parametrize("name", NAMES)
def test_making_a_module_draws_no_random_numbers_and_runs_on_a_batch(name):
    x = normal(2, 3, 4)
    assert activation(name).eval()(x).shape == x.shape


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(BadInput, match="no activation is called 'softmin'") as caught:
        activation("softmin")
    assert all(name in str(caught.value) for name in MODULES)


def said(module):
    """Everything that a setting may have changed in a module."""
    return repr(module), [parameter.tolist() for parameter in module.parameters()]


@pytest.mark.parametrize("setting", VALUES)
@pytest.mark.parametrize("name", MODULES)
def test_a_setting_is_either_taken_or_refused_in_one_sentence(name, setting):
    needed = {"depth": 20} if name == "tailored_leaky_relu" else {}
    settings = {**needed, setting: VALUES[setting]}
    if setting in SETTINGS.get(name, ()):
        assert said(activation(name, **settings)) != said(activation(name, **needed))
    else:
        with pytest.raises(BadInput, match=rf"^{name} takes no {setting}; leave it out, or choose .*: [\w, ]+$"):
            activation(name, **settings)


@pytest.mark.parametrize(
    ("name", "settings", "phrase"),
    [
        ("tailored_leaky_relu", {}, "pass depth="),
        ("tailored_leaky_relu", {"depth": 0}, "depth must be a whole number of at least 1, got 0"),
        ("tailored_leaky_relu", {"depth": 2.5}, "depth must be a whole number of at least 1, got 2.5"),
        ("tailored_leaky_relu", {"depth": 9, "similarity": 1.0}, "similarity at the end must lie between 0 and 1"),
        ("tailored_leaky_relu", {"depth": 9, "similarity": math.nan}, "similarity must be a finite number"),
        ("prelu", {"channels": 0}, "channels must be a whole number of at least 1, got 0"),
        ("prelu", {"channels": True}, "channels must be a whole number"),
        ("leaky_relu", {"slope": math.inf}, "slope must be a finite number, got inf"),
        ("leaky_relu", {"slope": "0.1"}, "slope must be a finite number, got '0.1'"),
        ("elu", {"alpha": 0}, "alpha must be positive and finite, got 0"),
        ("celu", {"alpha": -1.0}, "alpha must be positive and finite, got -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(name, settings, phrase):
    with pytest.raises(BadInput, match=phrase):
        activation(name, **settings)


@pytest.mark.parametrize("name", ["softmax", "tailored_leaky_relu"])
def test_what_is_not_one_function_of_one_number_has_no_curve(name):
    with pytest.raises(BadInput, match=f"{name} is not one function of one number; choose from: celu, ") as caught:
        pointwise(name)
    assert all(known in str(caught.value) for known in NAMES)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.tanh, "Tanh()"),
        (nn.Softmax, "Softmax(dim=-1)"),
        (nn.PReLU, "PReLU(num_parameters=1)"),
        (nn.LeakyReLU(0.2), "LeakyReLU(negative_slope=0.2)"),
        (leaky_relu(0.3), "LeakyReLU(negative_slope=0.3)"),
        (lookup("mish"), "Mish()"),
    ],
)
def test_a_function_or_a_class_will_do_for_a_name(given, expected):
    assert repr(activation(given)) == expected


@pytest.mark.parametrize(
    "given", [torch.sin, leaky_relu(0.4), nn.ELU(alpha=2.0), Activation("elu", torch.expm1, "relu")]
)
def test_a_function_without_a_module_lists_those_that_have_one(given):
    with pytest.raises(
        BadInput, match=r"no module computes .* as it is given here; give the name of one: identity, logistic, tanh"
    ):
        activation(given)
