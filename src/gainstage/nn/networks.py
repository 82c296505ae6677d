"""Whole networks in one line, as plain nn.Sequential with readable names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

from gainstage.errors import BadInput
from gainstage.nn import activations
from gainstage.nn.blocks import fans_of
from gainstage.nn.initializers import PRESETS, VarianceScaling, check_generator, from_scheme, get
from gainstage.nn.normalization import batch_norm_after
from gainstage.theory import Activation, scheme_for, tailored_leaky_relu
from gainstage.theory.activations import ActivationLike
from gainstage.theory.checks import check_known, finite, flag, shown, whole

Initializer = str | VarianceScaling | Callable[[torch.Tensor], object]
NORMALIZATIONS = ("batch", "batch_after", "layer")  # or None
TAILORED = "tailored_leaky_relu"


def dense_network(
    inputs: int,
    hidden: Sequence[int],
    outputs: int,
    activation: ActivationLike = "selu",
    initializer: Initializer = "auto",
    *,
    normalization: str | None = None,
    normalize_inputs: bool = False,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """A plain deep network (batch, inputs) -> (batch, outputs): modules hidden1, activation1, ..., output.

    activation: a name, or PyTorch's function or module of it; "tailored_leaky_relu" has its slope worked out from the
    depth. initializer: "auto" (the chapter's table), a preset's name, a VarianceScaling, or a function that fills a weight
    in place; biases start at zero. normalization: "batch" in front of each activation (the layers then have no bias),
    "batch_after" behind it, "layer" in front. normalize_inputs: batch normalisation as first layer, in place of standardised
    inputs. dropout: rate behind each activation, alpha dropout with SELU. Raises BadInput for sizes that are no whole
    numbers from 1, rates outside [0, 1) and unknown names.
    """
    inputs, outputs = whole(inputs, "inputs"), whole(outputs, "outputs")
    hidden, name = _widths(hidden), activations.known_name(activation)
    dropout = _rate(dropout)
    _check(normalization, initializer, generator)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if flag(normalize_inputs, "normalize_inputs"):
        layers["normalization0"] = nn.BatchNorm1d(inputs)
    for number, (fan_in, fan_out) in enumerate(pairwise([inputs, *hidden]), start=1):
        layer = nn.Linear(fan_in, fan_out, bias=normalization != "batch")
        _add_stage(layers, number, layer, _activation(name, len(hidden)), normalization, dropout)
    layers["output"] = nn.Linear([inputs, *hidden][-1], outputs)
    return _initialized(nn.Sequential(layers), name, len(hidden), initializer, generator)


def convolutional_network(
    channels: int,
    hidden: Sequence[int],
    outputs: int,
    activation: ActivationLike = "relu",
    initializer: Initializer = "auto",
    *,
    kernel: int = 3,
    pool_every: int = 2,
    normalization: str | None = None,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """A plain convolutional network (batch, channels, height, width) -> (batch, outputs), for images of any size.

    One convolution of `kernel` taps for each entry of `hidden`, zero-padded; every `pool_every` of them a maximum over
    2x2 (0: never); at the end the mean over all positions and a linear output. Other settings as in dense_network.
    """
    channels, outputs = whole(channels, "channels"), whole(outputs, "outputs")
    hidden, name = _widths(hidden), activations.known_name(activation)
    dropout = _rate(dropout)
    _check(normalization, initializer, generator)
    pool_every = whole(pool_every, "pool_every", 0)
    if whole(kernel, "the kernel's taps along each side") % 2 == 0:
        raise BadInput(f"the kernel must be an odd number of taps, so that the image keeps its size, got {kernel}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (fan_in, fan_out) in enumerate(pairwise([channels, *hidden]), start=1):
        layer = nn.Conv2d(fan_in, fan_out, kernel, padding=kernel // 2, bias=normalization != "batch")
        _add_stage(layers, number, layer, _activation(name, len(hidden)), normalization, dropout)
        if pool_every and number % pool_every == 0:
            layers[f"pool{number}"] = nn.MaxPool2d(2, ceil_mode=True)
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["output"] = nn.Linear([channels, *hidden][-1], outputs)
    return _initialized(nn.Sequential(layers), name, len(hidden), initializer, generator)


def _widths(hidden: Sequence[int]) -> list[int]:
    """The hidden layers' widths; empty for none."""
    try:
        widths = list(hidden)
    except TypeError as error:
        raise BadInput(
            f"hidden is a list of widths, one for each hidden layer, such as [300, 100], got {shown(hidden)}"
        ) from error
    return [whole(width, "each width in hidden") for width in widths]


def _rate(dropout: float) -> float:
    rate = finite(dropout, "a dropout rate")
    if not 0 <= rate < 1:
        raise BadInput(f"a dropout rate lies between 0 and 1, got {rate}")
    return rate


def _check(normalization: str | None, initializer: Initializer, generator: torch.Generator | None) -> None:
    if normalization is not None:
        check_known(normalization, NORMALIZATIONS, "normalization")
    if not callable(initializer) or isinstance(initializer, type):
        check_known(initializer, ("auto", *PRESETS), "initialiser")
    check_generator(generator)


def _activation(name: str, depth: int) -> nn.Module:
    return activations.make(name, depth=depth) if name == TAILORED else activations.make(name)


def _add_stage(
    layers: OrderedDict[str, nn.Module],
    number: int,
    layer: nn.Module,
    activation: nn.Module,
    normalization: str | None,
    dropout: float,
) -> None:
    layers[f"hidden{number}"] = layer
    if normalization == "batch":
        layers[f"normalization{number}"] = batch_norm_after(layer)
    elif normalization == "layer":
        layers[f"normalization{number}"] = _layer_norm(layer)
    layers[f"activation{number}"] = activation
    if normalization == "batch_after":
        layers[f"normalization{number}"] = batch_norm_after(layer)
    if dropout:
        layers[f"dropout{number}"] = (
            nn.AlphaDropout(dropout) if isinstance(activation, nn.SELU) else nn.Dropout(dropout)
        )


def _layer_norm(layer: nn.Module) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return nn.LayerNorm(layer.out_features)
    assert isinstance(layer, nn.Conv2d)
    return nn.GroupNorm(1, layer.out_channels)


def _initialized(
    model: nn.Sequential, activation: str, depth: int, initializer: Initializer, generator: torch.Generator | None
) -> nn.Sequential:
    for name, layer in model.named_children():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            follows = None if name == "output" else _theory(activation, max(depth, 1))
            _initialize(layer, from_scheme(scheme_for(follows)) if initializer == "auto" else initializer, generator)
    return model


def _theory(activation: str, depth: int) -> Activation:
    return tailored_leaky_relu(depth) if activation == TAILORED else activations.pointwise(activation)


def _initialize(layer: nn.Linear | nn.Conv2d, initializer: Initializer, generator: torch.Generator | None) -> None:
    with torch.no_grad():
        if layer.bias is not None:
            layer.bias.zero_()
        if isinstance(initializer, (str, VarianceScaling)):
            fans = fans_of(layer)
            assert fans is not None
            get(initializer)(layer.weight, fans, generator)
        else:
            initializer(layer.weight)
