"""Inputs to run a network on: some of the user's data, or zeros of a shape that fits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from gainstage.data import as_source
from gainstage.errors import BadInput
from gainstage.signal.graph import Graph
from gainstage.signal.measure import trace

SAMPLES = 256
SIZES = (32, 28, 64, 16, 8, 128, 224)  # image sizes tried first when no data is given
MOST_PLACES = 4096  # of an image, of those sizes that are tried afterwards


def example_inputs(model: nn.Module, data: Any = None, samples: int = SAMPLES) -> Any:
    """Inputs of at most `samples` samples from `data`, which is inputs alone or training data; without it zeros whose
    shape is read off the first layer. BadInput for other data, and when no such zeros go through the network."""
    if data is None:
        return _traced_example(model)[0]
    if isinstance(data, Tensor):
        return data[:samples].clone()  # a network may work in place on what it is given
    return as_source(data).sample(samples, seed=0)[0]


def trace_example(model: nn.Module) -> Graph:
    """The graph on a zero input whose shape is read off the first layer; BadInput when no such input goes through."""
    return _traced_example(model)[1]


def _traced_example(model: nn.Module) -> tuple[Tensor, Graph]:
    for x in _candidates(model):
        try:
            return x, trace(model, x)
        except BadInput:
            continue
    raise BadInput("the shape of the network's inputs cannot be guessed; give data=, for example one batch of inputs")


def _candidates(model: nn.Module) -> Iterator[Tensor]:
    if any(map(is_lazy, model.parameters())):
        raise BadInput("the model has lazy layers without a shape yet; run one batch through it first")
    where = next(model.parameters(), torch.empty(0))
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            yield where.new_zeros(2, layer.in_features)
            return
        if isinstance(layer, nn.Embedding):
            yield torch.zeros(2, 8, dtype=torch.long, device=where.device)
            return
        if isinstance(layer, _ConvNd):
            places = len(layer.kernel_size)
            for size in dict.fromkeys((*SIZES, *range(1, int(MOST_PLACES ** (1 / places)) + 1)[:128])):
                yield where.new_zeros(2, layer.in_channels, *[size] * places)
            return
