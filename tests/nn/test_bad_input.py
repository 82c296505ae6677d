"""What builds networks refuses in one sentence what it cannot use, argument by argument."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gainstage import nn as gnn
from gainstage.errors import BadInput
from gainstage.nn.activations import pointwise
from gainstage.nn.orthogonal import DeltaOrthogonal, Orthogonal, orthogonal_matrix
from gainstage.theory import HE, Fans
from tests.tools import generator, quiet

NOTHING = {"dict": {}, "object": object(), "array": np.zeros(3), "tensor": torch.zeros(3), "number": 1.5}
NO_NUMBER = {
    "None": None,
    "list": [],
    "str": "1",
    "bool": True,
    "function": torch.tanh,
    "tensor": torch.zeros(3),
    "nan": math.nan,
}
BAD = {  # values of which none will do, by the kind of argument
    "activation": {**NOTHING, "None": None, "unknown": "rleu", "sum": lambda z: z.sum(), "sine": torch.sin, "class": nn.Linear},
    "whole": {**NO_NUMBER, "float": 2.0, "zero": 0, "negative": -1, "tuple": (3, 32, 32)},
    "from zero": {**NO_NUMBER, "float": 2.0, "negative": -1, "tuple": (2, 2)},
    "widths": {"None": None, "number": 5, "str": "35", "floats": [3.5], "zero": [4, 0], "flags": [True], "nested": [[4], [4]]},
    "odd": {**NO_NUMBER, "even": 2, "float": 3.0, "negative": -1, "tuple": (3, 3)},
    "rate": {**NO_NUMBER, "one": 1.0, "negative": -0.1},
    "positive": {**NO_NUMBER, "inf": math.inf, "zero": 0.0, "negative": -1.0},
    "finite": {**NO_NUMBER, "inf": math.inf},
    "setting": {**NO_NUMBER, "inf": math.inf} | {"None": []},  # None is the default
    "share": {**NO_NUMBER, "zero": 0.0, "one": 1.0, "negative": -1.0},
    "initializer": {**NOTHING, "None": None, "list": [], "unknown": "hee", "class": gnn.VarianceScaling},
    "preset": {**NOTHING, "None": None, "list": [], "unknown": "hee", "function": nn.init.zeros_},
    "name": {**NOTHING, "list": [], "unknown": "foo"},
    "normalization": {**NOTHING, "list": [], "unknown": "bach", "bool": True},
    "flag": {**NOTHING, "None": None, "str": "yes", "zero": 0},
    "generator": {**NOTHING, "seed": 3, "str": "3"},
    "weight": {"None": None, "list": [1.0], "array": np.zeros((3, 3)), "whole": torch.zeros(3, 3, dtype=torch.long)},
    "fans": {**NOTHING, "None": None, "pair": (3, 3), "zero": Fans(0, 3)},
    "layer": {**NOTHING, "None": None, "str": "linear", "class": nn.Linear},
    "scheme": {**NOTHING, "None": None, "str": "he"},
    "shape": {**NOTHING, "None": None, "str": "ab", "short": (3,), "long": (3, 3, 3), "floats": (3.0, 3.0), "zero": (0, 3)},
    "shares": {"None": None, "str": "ab", "number": 1.0, "one": [1.0], "zero": [1, 0], "ragged": [[1], [1, 2]],
               "complex": [1j, 2], "complex tensor": torch.tensor([1j, 2])},
    "targets": {"None": None, "list": [1.0], "str": "ab", "none": torch.zeros(0), "whole": torch.arange(3)},
}  # fmt: skip
NETWORK = {"activation": ("relu", "activation"), "initializer": ("auto", "initializer")}
SETTINGS = {
    "normalization": ("batch", "normalization"),
    "dropout": (0.1, "rate"),
    "generator": (generator(), "generator"),
}


def weight():
    return torch.zeros(3, 3)


CASES = {  # what is called, and for each argument a good value and its kind
    "dense_network": (gnn.dense_network, {"inputs": (3, "whole"), "hidden": ([4, 4], "widths"), "outputs": (2, "whole"),
                                          **NETWORK, **SETTINGS, "normalize_inputs": (True, "flag")}),
    "convolutional_network": (gnn.convolutional_network, {
        "channels": (3, "whole"), "hidden": ([4, 4], "widths"), "outputs": (2, "whole"), **NETWORK, **SETTINGS,
        "kernel": (3, "odd"), "pool_every": (2, "from zero")}),
    "activation": (gnn.activation, {"name": ("relu", "activation")}),
    "prelu": (lambda **given: gnn.activation("prelu", **given), {"slope": (0.1, "setting"), "channels": (3, "whole")}),
    "elu": (lambda **given: gnn.activation("elu", **given), {"alpha": (1.0, "positive")}),
    "tailored": (lambda **given: gnn.activation("tailored_leaky_relu", **given),
                 {"depth": (9, "whole"), "similarity": (0.8, "share")}),
    "pointwise": (pointwise, {"name": ("relu", "activation")}),
    "initializer": (gnn.initializer, {"name": ("he_normal", "preset"), "distribution": ("uniform", "name")}),
    "VarianceScaling": (gnn.VarianceScaling, {"scale": (1.0, "positive"), "mode": ("fan_in", "name"),
                                              "distribution": ("normal", "name")}),
    "scaling": (gnn.VarianceScaling(), {"weight": (weight(), "weight"), "fans": (Fans(3, 3), "fans"),
                                        "generator": (generator(), "generator")}),
    "fill": (gnn.fill, {"weight": (weight(), "weight"), "variance": (1.0, "positive"), "distribution": ("normal", "name"),
                        "generator": (generator(), "generator")}),
    "from_scheme": (gnn.from_scheme, {"scheme": (HE, "scheme"), "distribution": ("normal", "name")}),
    "fans_of": (gnn.fans_of, {"layer": (nn.Flatten(), "layer")}),
    "blocks_of": (gnn.blocks_of, {"layer": (nn.Flatten(), "layer")}),
    "Constant": (gnn.Constant, {"value": (0.5, "finite")}),
    "constant": (gnn.Constant(), {"weight": (weight(), "weight")}),
    "prior_bias": (gnn.prior_bias, {"shares": ([1, 2], "shares")}),
    "prior_bias_binary": (gnn.prior_bias_binary, {"share": (0.3, "share")}),
    "mean_bias": (gnn.mean_bias, {"targets": (torch.ones(3, 2), "targets")}),
    "Orthogonal": (Orthogonal, {"gain": (1.0, "positive")}),
    "orthogonal": (Orthogonal(), {"weight": (weight(), "weight"), "generator": (generator(), "generator")}),
    "delta": (DeltaOrthogonal(), {"weight": (weight(), "weight"), "generator": (generator(), "generator")}),
    "orthogonal_matrix": (orthogonal_matrix, {"shape": ((3, 3), "shape"), "generator": (generator(), "generator")}),
}  # fmt: skip
ALLOWED = {("tailored", "depth", "None"), ("prelu", "channels", "None"), ("elu", "alpha", "None"),
           ("tailored", "similarity", "None"), ("prior_bias", "shares", "ab")}  # fmt: skip
TRIALS = [
    pytest.param(name, argument, bad, id=f"{name}-{argument}-{bad}")
    for name, (_, arguments) in CASES.items()
    for argument, (_, kind) in arguments.items()
    for bad in BAD[kind]
    if (name, argument, bad) not in ALLOWED
]


def called(name, /, **changed):
    function, arguments = CASES[name]
    return quiet(lambda: function(**{**{argument: good for argument, (good, _) in arguments.items()}, **changed}))


@pytest.mark.parametrize("name", CASES)
def test_good_arguments_are_taken(name):
    called(name)


@pytest.mark.parametrize(("name", "argument", "bad"), TRIALS)
def test_a_bad_argument_gets_one_sentence(name, argument, bad):
    kind = CASES[name][1][argument][1]
    with pytest.raises(BadInput) as caught:
        called(name, **{argument: BAD[kind][bad]})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((3, 5, 1), r"hidden is a list of widths, one for each hidden layer, such as \[300, 100\], got 5"),
        ((3, [3.5], 1), "each width in hidden must be a whole number of at least 1, got 3.5"),
        (("3", [3], 1), "inputs must be a whole number of at least 1, got '3'"),
        ((3, [3], 1, torch.sin), "no module computes sin as it is given here; give the name of one: identity"),
        ((3, [3], 1, "relu", gnn.VarianceScaling), "no initialiser is called <class"),
        ((3, [3], 1, "relu", "hee"), "no initialiser is called 'hee'; known are: auto, glorot_normal"),
    ],
)
def test_the_sentence_says_what_was_wrong(arguments, sentence):
    with pytest.raises(BadInput, match=sentence):
        gnn.dense_network(*arguments)


def test_channels_are_not_the_shape_of_an_image():
    with pytest.raises(BadInput, match=r"channels must be a whole number of at least 1, got \(3, 32, 32\)"):
        gnn.convolutional_network((3, 32, 32), [8], 10)


def test_a_refused_network_has_drawn_nothing():
    for settings in ({"initializer": "hee"}, {"generator": 3}, {"dropout": 2}, {"normalization": "bach"}):
        with pytest.raises(BadInput):
            gnn.dense_network(3, [4], 2, **settings)  # the guard of all tests looks at the random state
