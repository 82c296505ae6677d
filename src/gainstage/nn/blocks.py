"""The matrices inside a layer: recurrent gates and packed attention hold several in one tensor, each with its own fans."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gainstage.theory import Fans, convolution_fans, linear_fans

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Block(NamedTuple):
    """One weight matrix: the parameter's name in its module, a view on it, its fans, and what it is."""

    parameter: str
    weight: Tensor
    fans: Fans
    role: str


def blocks_of(layer: nn.Module) -> list[Block]:
    """All weight matrices of a layer, empty for modules that are not layers.

    Linear (out, in); Bilinear (out, in1, in2); convolutions and their transposes with groups, strides and dilation;
    Embedding (entries, width), of which each sample reads one row, so fan_in is 1; LSTM, GRU and RNN, one (hidden, in)
    matrix a gate; MultiheadAttention, query, key and value apart, though packed in one tensor.
    """
    if isinstance(layer, nn.MultiheadAttention):
        return list(_attention(layer))
    if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)):
        return list(_recurrent(layer))
    fans = _single_fans(layer)
    weight = getattr(layer, "weight", None)
    return [] if fans is None or not isinstance(weight, Tensor) else [Block("weight", weight, fans, "weight")]


def fans_of(layer: nn.Module) -> Fans | None:
    """Fans of a layer with one weight matrix; None for other modules."""
    return _single_fans(layer)


def _single_fans(layer: nn.Module) -> Fans | None:
    if isinstance(layer, nn.Linear):
        return linear_fans((layer.out_features, layer.in_features))
    if isinstance(layer, nn.Bilinear):
        return Fans(layer.in1_features * layer.in2_features, layer.out_features * layer.in2_features)
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        return Fans(1, layer.embedding_dim)
    if isinstance(layer, TRANSPOSED):
        shape = (layer.in_channels, layer.out_channels // layer.groups, *layer.kernel_size)
        return convolution_fans(shape, layer.stride, layer.groups, transposed=True)
    if isinstance(layer, CONVOLUTIONS):
        shape = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
        return convolution_fans(shape, layer.stride, layer.groups)
    return None


GATES = {"LSTM": ("input", "forget", "cell", "output"), "GRU": ("reset", "update", "new"), "RNN": ("hidden",)}


def _gates(layer: nn.Module) -> tuple[str, ...]:
    if isinstance(layer, nn.RNNBase):
        return GATES[layer.mode.split("_")[0]]
    return GATES["LSTM" if isinstance(layer, nn.LSTMCell) else "GRU" if isinstance(layer, nn.GRUCell) else "RNN"]


def _recurrent(layer: nn.Module) -> Iterator[Block]:
    """weight_ih* and weight_hh* of shape (gates * hidden, in), weight_hr* of shape (projected, hidden)."""
    gates = _gates(layer)
    for name, weight in layer.named_parameters(recurse=False):
        if not name.startswith("weight"):
            continue
        roles = ("projection",) if name.startswith("weight_hr") else gates
        for role, part in zip(roles, weight.chunk(len(roles)), strict=True):
            yield Block(name, part, linear_fans(part.shape), f"{role} gate" if len(roles) > 1 else role)


def _attention(layer: nn.MultiheadAttention) -> Iterator[Block]:
    if layer.in_proj_weight is not None:
        for role, part in zip(("query", "key", "value"), layer.in_proj_weight.chunk(3), strict=True):
            yield Block("in_proj_weight", part, linear_fans(part.shape), role)
    else:
        for role in ("q", "k", "v"):
            weight = getattr(layer, f"{role}_proj_weight")
            yield Block(f"{role}_proj_weight", weight, linear_fans(weight.shape), role)


@torch.no_grad()
def assign(layer: nn.Module, name: str, values: Tensor) -> None:
    """Set a layer's weight to `values`, also where it is computed from others (weight norm, orthogonal): then through the
    parametrisation's inverse."""
    if parametrize.is_parametrized(layer, name):
        setattr(layer, name, values)
    else:
        getattr(layer, name).copy_(values)
