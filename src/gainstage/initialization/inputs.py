"""What gs.initialize is given, checked before anything changes: the model, inputs to run it on, biases for its output."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gainstage.errors import BadInput
from gainstage.initialization.stages import bias_of
from gainstage.program import check_batch, run_model, tensors_in
from gainstage.randomness import preserved
from gainstage.signal import NETWORK_INPUT, Graph, trace
from gainstage.signal.example import example_inputs, trace_example
from gainstage.signal.untouched import has_lazy_layers

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
SAMPLES = 256  # that the scheme "data" measures


def checked_inputs(model: Any, data: Any, scheme: str) -> Any:
    """Some inputs, or None without data; lazy layers have taken their shapes from them."""
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise BadInput(f"the model must be a torch.nn.Module, got {what}")
    lazy = has_lazy_layers(model)
    if data is None and scheme == "data":
        raise BadInput('the scheme "data" measures the network on a batch: give data=')
    if data is None and lazy:
        raise BadInput(
            "the model has lazy layers, whose sizes only data can tell: give data=, for example a batch of inputs"
        )
    inputs = None if data is None else _inputs(model, data)
    if scheme == "data":
        _check_measurable(model, inputs)
    if lazy:
        materialize(model, inputs)
    return inputs


@torch.no_grad()
def _inputs(model: nn.Module, data: Any) -> Any:
    """Inputs of some samples, from inputs alone or from data with targets."""
    if isinstance(data, np.ndarray):
        data = (data, np.zeros(len(data) if data.ndim else 0))
    if isinstance(data, Tensor) and (data.ndim == 0 or len(data) == 0):
        raise BadInput(f"the data, of shape {tuple(data.shape)}, hold no samples: give inputs of shape (samples, ...)")
    return example_inputs(model, data, SAMPLES)


def _check_measurable(model: nn.Module, inputs: Any) -> None:
    tensors = tensors_in(inputs)
    if any(tensor.is_meta for tensor in (*model.parameters(), *tensors)):
        raise BadInput(
            'the scheme "data" measures the network, and nothing has values on the meta device; '
            "move the model first, for example model.to_empty(device='cpu')"
        )
    samples = check_batch(inputs, ())
    if all(bool((tensor == tensor[:1]).all()) for tensor in tensors if tensor.ndim):
        raise BadInput(
            f'the scheme "data" scales to what differs between samples, but all {samples} inputs are alike; '
            "give samples that differ"
        )


def materialize(model: nn.Module, inputs: Any) -> None:
    """Give lazy layers their shapes by a pass that changes nothing else: in eval mode, without randomness of its own."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with preserved(), torch.no_grad():
            run_model(model, copy.deepcopy(inputs))
    finally:
        for module, training in modes:
            module.training = training


def traced(model: nn.Module, inputs: Any) -> Graph:
    """The graph on copies of these inputs, or on an example for None. BadInput where they cannot be run, and for one sample
    that is no batch."""
    if inputs is None:
        return trace_example(model)
    try:
        graph = trace(model, copy.deepcopy(inputs))
    except BadInput as error:
        raise BadInput(f"{error}{_unlike_types(model, inputs)}") from error
    for layer in (stage.layer for stage in graph.stages if stage.layer.inputs == (NETWORK_INPUT,)):
        if len(layer.given) < 2 + len(layer.settings.get("kernel", ())):
            raise BadInput(f"inputs of shape {layer.given} are one sample without a batch: give (samples, ...)")
    return graph


def _unlike_types(model: nn.Module, inputs: Any) -> str:
    """What to do where the inputs are of another type than the weights, and nothing in the model looks numbers up."""
    weights = {parameter.dtype for parameter in model.parameters()}
    given = {tensor.dtype for tensor in tensors_in(inputs)}
    if len(weights) != 1 or weights & given or any(isinstance(module, EMBEDDINGS) for module in model.modules()):
        return ""
    (dtype,) = weights
    return f"; the inputs are {', '.join(map(_name, given))}, the weights {_name(dtype)}: convert one, as with x.to({dtype})"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def checked_bias(model: nn.Module, graph: Graph, values: Any) -> tuple[nn.Parameter, Tensor]:
    """The bias of the layer that puts out, and values for it; BadInput where it has none of this size."""
    try:
        wanted = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"output_bias must be numbers, one for each output, got {values!r}") from error
    found = bias_of(model, graph.stages[graph.output_stage]) if graph.output_stage >= 0 else None
    if found is None or wanted.numel() != found.numel():
        given = f"{wanted.numel()} value{'s' * (wanted.numel() != 1)}"
        has = "no bias" if found is None else f"{found.numel()} bias{'es' * (found.numel() != 1)}"
        raise BadInput(f"output_bias has {given}, but the network's last layer has {has}")
    if wanted.is_complex() or not bool(wanted.isfinite().all()):
        raise BadInput("output_bias holds values that are NaN, infinite or complex")
    return found, wanted.view_as(found)
