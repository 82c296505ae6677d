"""Activation modules by name: PyTorch's own wherever they exist."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from gainstage.theory.activations import canonical_name

MODULES: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": partial(nn.LeakyReLU, 0.01),
    "rrelu": nn.RReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "softmax": partial(nn.Softmax, dim=-1),
}


def make(name: str) -> nn.Module:
    """A new module of the activation `name`, in PyTorch's, Keras's or the chapter's spelling; BadInput lists all."""
    return MODULES[canonical_name(name, MODULES)]()
