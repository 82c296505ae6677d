"""Whole networks in one line, as plain nn.Sequential with readable names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

from gainstage.errors import BadInput
from gainstage.nn import activations
from gainstage.nn.initializers import VarianceScaling, fans_of, from_scheme, get
from gainstage.theory import lookup, scheme_for


def dense_network(
    inputs: int,
    hidden: Sequence[int],
    outputs: int,
    activation: str = "selu",
    initializer: str | VarianceScaling | Callable[[torch.Tensor], object] = "auto",
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """A plain deep network (batch, inputs) -> (batch, outputs): modules hidden1, activation1, ..., output.

    `initializer`: "auto" (the chapter's table), a preset's name, a VarianceScaling, or a function that fills a weight
    in place. Biases start at zero. Raises BadInput for sizes below one and for unknown names.
    """
    sizes = [inputs, *hidden, outputs]
    if min(sizes) < 1:
        raise BadInput(f"every layer needs at least one unit, got sizes {sizes}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (fan_in, fan_out) in enumerate(pairwise(sizes[:-1]), start=1):
        layers[f"hidden{number}"] = nn.Linear(fan_in, fan_out)
        layers[f"activation{number}"] = activations.make(activation)
    layers["output"] = nn.Linear(sizes[-2], outputs)
    hidden_scheme, output_scheme = scheme_for(lookup(activation)), scheme_for(None)
    for name, layer in layers.items():
        if isinstance(layer, nn.Linear):
            scheme = output_scheme if name == "output" else hidden_scheme
            _initialize(layer, from_scheme(scheme) if initializer == "auto" else initializer, generator)
    return nn.Sequential(layers)


def _initialize(layer: nn.Linear, initializer, generator: torch.Generator | None) -> None:
    with torch.no_grad():
        layer.bias.zero_()
        if isinstance(initializer, (str, VarianceScaling)):
            fans = fans_of(layer)
            assert fans is not None
            get(initializer)(layer.weight, fans, generator)
        else:
            initializer(layer.weight)
