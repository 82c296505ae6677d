"""Activation modules by name compute what theory reckons with."""

import pytest
import torch
from torch import nn

from gainstage.errors import BadInput
from gainstage.nn import activation
from gainstage.nn.activations import MODULES
from gainstage.theory import KNOWN

Z = torch.linspace(-8, 8, 161, dtype=torch.float64)


@pytest.mark.parametrize("name", KNOWN)
def test_the_module_computes_what_theory_knows(name):
    module = activation(name).eval().double()
    assert torch.allclose(module(Z).detach(), KNOWN[name].function(Z), atol=1e-12)


@pytest.mark.parametrize(
    ("spelling", "kind"),
    [
        ("ReLU", nn.ReLU),
        ("swish", nn.SiLU),
        ("sigmoid", nn.Sigmoid),
        ("linear", nn.Identity),
        ("leaky-relu", nn.LeakyReLU),
        ("Hard Sigmoid", nn.Hardsigmoid),
        ("rrelu", nn.RReLU),
        ("prelu", nn.PReLU),
    ],
)
def test_a_name_gives_torchs_own_module(spelling, kind):
    assert type(activation(spelling)) is kind


def test_softmax_normalises_the_last_dimension():
    assert torch.allclose(activation("softmax")(Z.reshape(1, 7, 23)).sum(-1), torch.ones(1, 7, dtype=torch.float64))


def test_every_call_makes_a_new_module():
    assert activation("prelu") is not activation("prelu")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(BadInput, match="no activation is called 'softmin'") as caught:
        activation("softmin")
    assert all(name in str(caught.value) for name in MODULES)
