"""Every public function of the theory refuses in one sentence what it cannot use, argument by argument."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from gainstage import theory
from gainstage.errors import BadInput
from gainstage.theory import Fans, Scheme, field, pointwise
from gainstage.theory.moments import pair_moments

NOTHING = {"None": None, "list": [], "dict": {}, "object": object(), "array": np.zeros(3), "tensor": torch.zeros(3)}
NO_NUMBER = {**NOTHING, "str": "1", "bool": True, "function": torch.tanh, "complex": 1j}
BAD = {  # values of which none will do, by the kind of argument
    "activation": {**NOTHING, "unknown": "tnah", "number": 1.0, "sum": lambda z: z.sum(), "class": nn.Linear,
                   "layer": nn.Linear(1, 1)},
    "function": {**NOTHING, "str": "tanh", "number": 1.0},
    "finite": {**NO_NUMBER, "nan": math.nan, "inf": -math.inf},
    "positive": {**NO_NUMBER, "nan": math.nan, "inf": math.inf, "zero": 0.0, "negative": -1.0},
    "not negative": {**NO_NUMBER, "nan": math.nan, "inf": math.inf, "negative": -1.0},
    "power": {**NO_NUMBER, "negative": -1.0},
    "number": NO_NUMBER,
    "correlation": {**NO_NUMBER, "nan": math.nan, "two": 2.0, "below": -1.1},
    "similarity": {**NO_NUMBER, "nan": math.nan, "zero": 0.0, "one": 1.0},
    "whole": {**NO_NUMBER, "float": 2.0, "zero": 0, "negative": -1, "nan": math.nan},
    "shape": {**NOTHING, "str": "ab", "short": (3,), "floats": (3.0, 4.0, 3.0), "negative": (-3, 4, 3), "number": 3},
    "stride": {"None": None, "str": "ab", "zero": 0, "float": 1.5, "many": (1, 2, 3), "negative": (-1, 1)},
    "flag": {**NOTHING, "str": "yes", "number": 1},
    "breaks": {"None": None, "str": "ab", "number": 1.0, "nan": (math.nan,), "words": ("a",), "complex": (1j,)},
    "name": {**NOTHING, "unknown": "foo", "number": 1},
    "str": {**NOTHING, "number": 1},
    "fans": {**NOTHING, "pair": (3, 4), "zero": Fans(0, 3), "nan": Fans(math.nan, 3)},
    "tensor": {"None": None, "list": [], "number": 1.0, "array": np.zeros(3)},
}  # fmt: skip
ACTIVATION = ("tanh", "activation")
Q, POWERS = (1.0, "positive"), ((1.5, "positive"), (0.1, "not negative"))
DEPTH = (9, "whole")
CASES = {  # what is called, and for each argument a good value and its kind
    "lookup": (theory.lookup, ACTIVATION),
    "moments": (theory.moments, ACTIVATION, Q, (0.0, "finite")),
    "finite_moments": (theory.finite_moments, ACTIVATION, Q),
    "pair_moments": (pair_moments, ACTIVATION, Q, (0.5, "finite"), (0.0, "finite")),
    "signal_power": (theory.signal_power, ACTIVATION, Q, (0.5, "not negative")),
    "saturated_share": (theory.saturated_share, ACTIVATION, (1.0, "power")),
    "stationary_level": (theory.stationary_level, ACTIVATION, *POWERS, DEPTH),
    "depth_scale": (theory.depth_scale, (0.5, "power")),
    "phase": (theory.phase, ACTIVATION, *POWERS),
    "correlation_map": (theory.correlation_map, ACTIVATION, *POWERS, Q, (0.5, "correlation")),
    "edge_of_chaos": (theory.edge_of_chaos, ACTIVATION, Q),
    "level_keeping": (theory.level_keeping, ACTIVATION, Q),
    "power_for_depth": (theory.power_for_depth, ACTIVATION, DEPTH, Q),
    "depth_for_power": (theory.depth_for_power, ACTIVATION, Q, Q),
    "tailored_slope": (theory.tailored_slope, DEPTH, (0.9, "similarity")),
    "tailored_leaky_relu": (theory.tailored_leaky_relu, DEPTH, (0.9, "similarity")),
    "leaky_relu": (theory.leaky_relu, (0.1, "finite")),
    "decibels": (theory.decibels, (1.0, "power")),
    "ratio": (theory.ratio, (1.0, "number")),
    "linear_fans": (theory.linear_fans, ((4, 3), "shape")),
    "convolution_fans": (
        theory.convolution_fans,
        ((4, 3, 3, 3), "shape"),
        (1, "stride"),
        (1, "whole"),
        (False, "flag"),
    ),
    "scheme_for": (theory.scheme_for, ACTIVATION),
    "Scheme": (Scheme, ("own", "any"), (2.0, "positive"), ("fan_in", "name")),
    "Scheme.variance": (theory.HE.variance, (Fans(3, 4), "fans")),
    "field": (field, (1.0, "power"), (0.5, "power"), (4, "whole")),
    "expectation": (theory.expectation, (torch.tanh, "function"), Q, ((0.5,), "breaks")),
    "gaussian_nodes": (theory.gaussian_nodes, Q, ((0.5,), "breaks"), (0.0, "finite")),
    "Activation": (theory.Activation, ("own", "str"), (torch.tanh, "function"), ("relu", "name")),
    "pointwise": (pointwise, (torch.tanh, "function")),
    "Composite": (pointwise(torch.tanh), (torch.zeros(3), "tensor")),
}
ALLOWED = {("decibels", "None"), ("scheme_for", "None")}  # nothing observed; no activation
TRIALS = [
    pytest.param(name, place, bad, id=f"{name}-{place}-{bad}")
    for name, (_, *arguments) in CASES.items()
    for place, (_, kind) in enumerate(arguments)
    for bad in BAD.get(kind, ())
    if (name, bad) not in ALLOWED
]


@pytest.mark.parametrize("name", CASES)
def test_good_arguments_are_taken(name):
    function, *arguments = CASES[name]
    function(*(good for good, _ in arguments))


@pytest.mark.parametrize(("name", "place", "bad"), TRIALS)
def test_a_bad_argument_gets_one_sentence(name, place, bad):
    function, *arguments = CASES[name]
    values = [good for good, _ in arguments]
    values[place] = BAD[arguments[place][1]][bad]
    with pytest.raises(BadInput) as caught:
        function(*values)
    assert "\n" not in str(caught.value)


def test_every_public_function_is_tried():
    plain = {"selu_constants"}  # without arguments
    graphs = {"propagate", "gradients"}  # in test_network.py
    values = {
        "Composite",
        "Fans",
        "Field",
        "Moments",
        "Node",
        "Phase",
        "Propagation",
        "Slot",
        "Step",
    }  # put together by these
    public = {name for name in dir(theory) if callable(getattr(theory, name)) and not name.startswith("_")}
    assert public == {name for name in CASES if hasattr(theory, name)} | plain | graphs | values


NO_MOMENTS = {"nan": torch.log, "pole": lambda z: 1 / z, "growth": lambda z: (z * z).exp(), "nothing": torch.zeros_like}


@pytest.mark.parametrize("kind", NO_MOMENTS)
@pytest.mark.parametrize("name", ["finite_moments", "phase", "correlation_map", "edge_of_chaos", "level_keeping",
                                  "power_for_depth", "depth_for_power", "scheme_for"])  # fmt: skip
def test_an_activation_that_no_weights_fit_gets_one_sentence_too(name, kind):
    function, _, *arguments = CASES[name]
    with pytest.raises(BadInput, match=r"no weights (fit|keep)"):
        function(NO_MOMENTS[kind], *(good for good, _ in arguments))


@pytest.mark.parametrize("name", ["phase", "correlation_map"])
def test_where_the_slope_has_no_bound_there_is_no_theory_of_depth(name):
    function, _, *arguments = CASES[name]
    with pytest.raises(BadInput, match=r"the slope of .* grows without end at 0.5: no theory of depth holds for it"):
        function(lambda z: (z - 0.5).abs().sqrt(), *(good for good, _ in arguments))


def test_a_slope_of_nothing_has_no_edge_of_chaos():
    with pytest.raises(BadInput, match="of sign, for an edge of chaos, must be positive and finite, got 0"):
        theory.edge_of_chaos(torch.sign)


@pytest.mark.parametrize("name", ["moments", "phase", "correlation_map", "edge_of_chaos", "depth_for_power"])
def test_a_number_may_be_of_any_kind(name):
    function, _, *arguments = CASES[name]
    plain = function("tanh", *(good for good, _ in arguments))
    for kind in (np.float64, partial(torch.tensor, dtype=torch.float64)):
        assert function("tanh", *(kind(good) for good, _ in arguments)) == plain


@pytest.mark.parametrize("name", ["moments", "pair_moments", "phase", "expectation", "saturated_share"])
def test_the_theory_stays_on_the_cpu_whatever_the_default_device(name):
    function, (_, *_), *arguments = CASES[name]
    numbers = [good for good, _ in arguments]
    plain = function(lambda z: z.tanh() * 1.5, *numbers)
    with torch.device("meta"):
        assert function(lambda z: z.tanh() * 1.5, *numbers) == plain


def test_slopes_are_known_in_inference_mode():
    with torch.inference_mode():
        inside = theory.moments(lambda z: torch.sin(z) * 1.5)
    assert inside == theory.moments(lambda z: torch.sin(z) * 1.5)
    assert inside.slope > 0
