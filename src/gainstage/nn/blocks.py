"""The matrices inside a layer: recurrent gates and packed attention hold several in one tensor, each with its own fans."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gainstage.errors import BadInput
from gainstage.theory import Fans, convolution_fans, linear_fans
from gainstage.theory.checks import shown

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Block(NamedTuple):
    """One weight matrix: the parameter's name in its module, a view on it, its fans, and what it is.

    Where the weight is computed from others (weight norm), the view is on the computed value: `assign` sets it.
    """

    parameter: str
    weight: Tensor
    fans: Fans
    role: str


def blocks_of(layer: nn.Module) -> list[Block]:
    """All weight matrices of a layer, empty for modules that are not layers.

    Linear (out, in); Bilinear (out, in1, in2); convolutions and their transposes with groups, strides and dilation;
    Embedding (entries, width), of which each sample reads one row, so fan_in is 1; LSTM, GRU and RNN, one (hidden, in)
    matrix a gate; MultiheadAttention, query, key and value apart, though packed in one tensor. Raises BadInput for what is
    no module.
    """
    _check_module(layer)
    if isinstance(layer, nn.MultiheadAttention):
        return list(_attention(layer))
    if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)):
        return list(_recurrent(layer))
    fans = _single_fans(layer)
    weight = None if fans is None else value_of(layer, "weight")
    return [] if fans is None or weight is None else [Block("weight", weight, fans, "weight")]


def fans_of(layer: nn.Module) -> Fans | None:
    """Fans of a layer with one weight matrix; None for other modules. Raises BadInput for what is no module."""
    _check_module(layer)
    return _single_fans(layer)


def _check_module(layer: object) -> None:
    if not isinstance(layer, nn.Module):
        raise BadInput(f"a layer is a torch.nn.Module, such as nn.Linear(3, 4), got {shown(layer)}")


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


def _recurrent_names(layer: nn.RNNBase | nn.RNNCellBase) -> list[str]:
    if isinstance(layer, nn.RNNCellBase):
        return ["weight_ih", "weight_hh"]
    ways = ("", "_reverse") if layer.bidirectional else ("",)
    kinds = ("ih", "hh", "hr") if layer.proj_size else ("ih", "hh")
    return [f"weight_{kind}_l{n}{way}" for n in range(layer.num_layers) for way in ways for kind in kinds]


def _recurrent(layer: nn.RNNBase | nn.RNNCellBase) -> Iterator[Block]:
    """weight_ih* and weight_hh* of shape (gates * hidden, in), weight_hr* of shape (projected, hidden)."""
    gates = _gates(layer)
    for name in _recurrent_names(layer):
        weight = value_of(layer, name)
        assert weight is not None
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


def value_of(layer: nn.Module, name: str) -> Tensor | None:
    """A layer's weight as it is used, also where it is computed from others; None where there is none."""
    if parametrize.is_parametrized(layer, name):
        return _parametrized_value(layer, name)
    if _is_weight_normed(layer, name):
        return _weight_normed_value(layer, name)
    found = getattr(layer, name, None)
    return found if isinstance(found, Tensor) else None


@torch.no_grad()
def assign(layer: nn.Module, name: str, values: Tensor) -> bool:
    """Set a layer's weight to `values`, also where it is computed from others (weight norm of either kind, orthogonal).

    False, with the layer as it was, where these values cannot come out (spectral norm, pruning).
    """
    if parametrize.is_parametrized(layer, name):
        return _assign_parametrized(layer, name, values)
    if _is_weight_normed(layer, name):
        _assign_weight_normed(layer, name, values)
        return True
    parameter = getattr(layer, name, None)
    if not isinstance(parameter, nn.Parameter):
        return False
    parameter.copy_(values)
    return True


def _parametrized_value(layer: nn.Module, name: str) -> Tensor:
    """Read in eval mode: spectral norm iterates whenever it is read."""
    parametrization = layer.get_submodule(f"parametrizations.{name}")
    modes = [(module, module.training) for module in parametrization.modules()]
    parametrization.eval()
    try:
        return getattr(layer, name).detach()
    finally:
        for module, training in modes:
            module.training = training


def _assign_parametrized(layer: nn.Module, name: str, values: Tensor) -> bool:
    parametrization = layer.get_submodule(f"parametrizations.{name}")
    if any(hasattr(module, "n_power_iterations") for module in parametrization.modules()):
        return False  # spectral norm: it would take the values, and give out others
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    try:
        setattr(layer, name, values)
        taken = values.is_meta or _close(_parametrized_value(layer, name), values)
    except (RuntimeError, ValueError):  # it has no inverse, or none for these values
        taken = False
    if not taken:
        layer.load_state_dict(before)
    return taken


def _close(found: Tensor, values: Tensor) -> bool:
    """Equal but for what half precision may round."""
    return torch.allclose(found, values, rtol=1e-2, atol=1e-3 * float(values.abs().max()))


def _is_weight_normed(layer: nn.Module, name: str) -> bool:
    """By torch.nn.utils.weight_norm, which keeps lengths and directions as parameters and the weight as an attribute."""
    computed = not isinstance(getattr(layer, name, None), nn.Parameter)
    return computed and all(isinstance(getattr(layer, name + part, None), nn.Parameter) for part in ("_g", "_v"))


def _weight_normed_value(layer: nn.Module, name: str) -> Tensor:
    length, direction = getattr(layer, f"{name}_g").detach(), getattr(layer, f"{name}_v").detach()
    return direction * (length / _lengths(direction, length))


def _assign_weight_normed(layer: nn.Module, name: str, values: Tensor) -> None:
    length, direction = getattr(layer, f"{name}_g"), getattr(layer, f"{name}_v")
    direction.copy_(values)
    length.copy_(_lengths(values, length))
    setattr(layer, name, _weight_normed_value(layer, name))


def _lengths(values: Tensor, like: Tensor) -> Tensor:
    """Norms of `values` over the dimensions that `like` has not, in its shape."""
    dims = [dim for dim in range(values.ndim) if like.ndim == 0 or like.shape[dim] == 1]
    return torch.linalg.vector_norm(values, dim=dims, keepdim=like.ndim > 0)
