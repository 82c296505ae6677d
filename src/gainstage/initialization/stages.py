"""A stage's weights: where they are, what follows them, how they are set."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gainstage.errors import BadInput
from gainstage.nn.blocks import assign
from gainstage.signal import Graph, Stage, trace
from gainstage.theory import Scheme, scheme_for

EXAMPLE_SIZES = (32, 28, 64, 16, 8, 128, 224)  # image sizes tried when no data is given


def scheme_of(stage: Stage) -> Scheme:
    """The row of the chapter's table for what follows the stage's layer."""
    return scheme_for(stage.activation)


def follower(stage: Stage) -> str:
    """Name of what follows the layer: its activation, else softmax or none."""
    if stage.activation is not None:
        return stage.activation.name
    unknown = stage.first("activation")
    return unknown.name if unknown else "softmax" if stage.first("softmax") else "none"


def weight_of(model: nn.Module, stage: Stage) -> nn.Parameter | None:
    """The layer's weight as a parameter of the model, or None where it is computed from others (weight norm)."""
    found = model.get_parameter(stage.layer.weight) if stage.layer.weight else None
    return found if found is not None and found.ndim > 1 else None


def current_weight(model: nn.Module, stage: Stage) -> Tensor | None:
    """The layer's weight as it is used, also where a parametrisation computes it; None for other computed weights."""
    if not _is_parametrized(model, stage):
        return weight_of(model, stage)
    return _computed_weight(model.get_submodule(stage.layer.module))


def _is_parametrized(model: nn.Module, stage: Stage) -> bool:
    return parametrize.is_parametrized(model.get_submodule(stage.layer.module), "weight")


def set_weight(model: nn.Module, stage: Stage, values: Tensor) -> bool:
    """Write the layer's weight, through its parametrisation where it has one; False, with the weight as it was, where the
    parametrisation cannot take these values (spectral norm)."""
    parameter = weight_of(model, stage)
    if parameter is not None:
        with torch.no_grad():
            parameter.copy_(values)
        return True
    layer = model.get_submodule(stage.layer.module)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    assign(layer, "weight", values)
    if torch.allclose(_computed_weight(layer), values, rtol=1e-2, atol=1e-3 * float(values.abs().max())):
        return True
    layer.load_state_dict(before)
    return False


def _computed_weight(layer: nn.Module) -> Tensor:
    """The weight as a parametrisation computes it, read in eval mode: spectral norm iterates whenever it is read."""
    parametrization = layer.get_submodule("parametrizations.weight")
    modes = [(module, module.training) for module in parametrization.modules()]
    parametrization.eval()
    try:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        return weight.detach()
    finally:
        for module, training in modes:
            module.training = training


def bias_of(model: nn.Module, stage: Stage) -> nn.Parameter | None:
    """The layer's bias, where it has one."""
    parameters = dict(model.named_parameters())
    vectors = [
        parameters[name] for name in stage.layer.parameters if name.endswith("bias") and parameters[name].ndim == 1
    ]
    return vectors[0] if vectors else None


def trace_example(model: nn.Module) -> Graph:
    """The graph on a zero input whose shape is read off the first layer; BadInput when no such input goes through."""
    for x in _example_inputs(model):
        try:
            return trace(model, x)
        except BadInput:
            continue
    raise BadInput("the shape of the network's inputs cannot be guessed; give data=, for example one batch of inputs")


def _example_inputs(model: nn.Module) -> Iterable[Tensor]:
    where = next((p for p in model.parameters()), torch.empty(0))
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            yield where.new_zeros(2, layer.in_features)
            return
        if isinstance(layer, nn.Embedding):
            yield torch.zeros(2, 8, dtype=torch.long, device=where.device)
            return
        dimensions = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}.get(type(layer))
        if dimensions:
            for size in EXAMPLE_SIZES:
                yield where.new_zeros(2, layer.in_channels, *[size] * dimensions)  # type: ignore[union-attr]
            return
