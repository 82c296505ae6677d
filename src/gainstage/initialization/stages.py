"""A stage's weights: where they are, what follows them, how they are set."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gainstage.nn.blocks import assign, value_of
from gainstage.signal import Stage
from gainstage.signal.functions import has_mixed_function
from gainstage.theory import Scheme, scheme_for


def scheme_of(stage: Stage) -> Scheme:
    """The row of the chapter's table for what follows the stage's layer."""
    return scheme_for(stage.activation)


def follower(stage: Stage) -> str:
    """Name of what follows the layer: its activation, else softmax or none, also for a function that theory does not
    follow."""
    if stage.activation is not None:
        return stage.activation.name
    unknown = None if has_mixed_function(stage.operations) else stage.first("activation")
    return unknown.name if unknown else "softmax" if stage.first("softmax") else "none"


def has_one_matrix(model: nn.Module, stage: Stage) -> bool:
    """True for layers with one weight matrix; embeddings, recurrent layers and attention have matrices of their own kind."""
    inside_attention = isinstance(model.get_submodule(stage.layer.module), nn.MultiheadAttention)
    return stage.layer.fans is not None and not inside_attention


def weight_of(model: nn.Module, stage: Stage) -> nn.Parameter | None:
    """The weight of a layer with one matrix as a parameter of the model, or None where it is computed from others (weight
    norm)."""
    named = stage.layer.weight and has_one_matrix(model, stage)
    found = model.get_parameter(stage.layer.weight) if named else None
    return found if found is not None and found.ndim > 1 else None


def whole(parameter: Tensor) -> Tensor:
    """A parameter's values, also of one that FSDP2 keeps in shards; every process must ask then."""
    shards = getattr(parameter, "full_tensor", None)
    return parameter.detach() if shards is None else shards().detach()


def current_weight(model: nn.Module, stage: Stage) -> Tensor | None:
    """The layer's weight as it is used, also where weight norm or a parametrisation computes it; None where the module's
    forward pass does."""
    if stage.layer.weight:
        return weight_of(model, stage)
    weight = value_of(model.get_submodule(stage.layer.module), "weight")
    return None if isinstance(weight, nn.Parameter) else weight


def set_weight(model: nn.Module, stage: Stage, values: Tensor) -> bool:
    """Write the layer's weight, through what computes it where something does; False, with the weight as it was, where
    that cannot take these values (spectral norm)."""
    parameter = weight_of(model, stage)
    if parameter is None:
        return assign(model.get_submodule(stage.layer.module), "weight", values)
    with torch.no_grad():
        parameter.copy_(values)
    return True


def bias_of(model: nn.Module, stage: Stage) -> nn.Parameter | None:
    """The layer's bias, where it has one."""
    biases = (model.get_parameter(name) for name in stage.layer.parameters if name.endswith("bias"))
    return next((bias for bias in biases if bias.ndim == 1), None)
