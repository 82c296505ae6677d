"""gs.initialize: draw every layer's weights for what really follows it in the traced network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gainstage.data import as_source
from gainstage.display import Displayed
from gainstage.errors import BadInput
from gainstage.nn.initializers import check_distribution, fill
from gainstage.signal import Graph, Stage, trace
from gainstage.theory import Scheme, scheme_for

SCHEMES = ("auto",)
EXAMPLE_SIZES = (32, 28, 64, 16, 8, 128, 224)  # image sizes tried when no data is given


@dataclass(frozen=True)
class InitializedStage:
    """What was done to one layer: its stage, what follows it, the scheme and the variance that were drawn, and why."""

    stage: str
    follows: str
    scheme: str
    variance: float
    reason: str


@dataclass(frozen=True)
class Initialization(Displayed):
    """The table that gs.initialize returns."""

    rows: tuple[InitializedStage, ...]
    skipped: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {"stages": [asdict(row) for row in self.rows], "skipped": list(self.skipped)}


def initialize(
    model: nn.Module,
    data: Any = None,
    *,
    scheme: str = "auto",
    distribution: str = "normal",
    generator: torch.Generator | None = None,
) -> Initialization:
    """Draw the weights of every linear and convolutional layer anew, in place, and set their biases to zero.

    scheme "auto" is the chapter's table: Glorot for none, tanh, logistic and softmax, He for the ReLU family, LeCun for
    SELU, chosen for each layer from what follows it in one traced forward pass. `data` is any training data, or inputs
    alone; without it a zero input of a plausible shape is tried. distribution: "normal", "truncated_normal", "uniform".
    Raises BadInput for unknown names, and when the network cannot be run on the inputs.
    """
    if scheme not in SCHEMES:
        raise BadInput(f"no scheme is called {scheme!r}; known are: {', '.join(SCHEMES)}")
    check_distribution(distribution)
    graph = trace_example(model) if data is None else trace(model, _inputs(data))
    return initialize_stages(model, graph, graph.stages, distribution, generator)


def initialize_stages(
    model: nn.Module,
    graph: Graph,
    stages: Iterable[Stage],
    distribution: str = "normal",
    generator: torch.Generator | None = None,
) -> Initialization:
    """The same for some stages of a graph that is already known."""
    rows, skipped, seen = [], [], set()
    for stage in stages:
        weight = weight_of(model, stage)
        if weight is None or stage.layer.fans is None:
            skipped.append(stage.name)
            continue
        if id(weight) in seen:
            continue
        seen.add(id(weight))
        chosen = scheme_of(stage)
        variance = chosen.variance(stage.layer.fans)
        fill(weight, variance, distribution, generator)
        _zero_bias(model, stage, weight)
        rows.append(InitializedStage(stage.name, follower(stage), chosen.name, variance, _reason(chosen, stage)))
    return Initialization(tuple(rows), tuple(skipped))


def scheme_of(stage: Stage) -> Scheme:
    """The row of the chapter's table for what follows the stage's layer."""
    return scheme_for(stage.activation)


def follower(stage: Stage) -> str:
    """Name of what follows the layer: its activation, else softmax or none."""
    if stage.activation is not None:
        return stage.activation.name
    unknown = stage.first("activation")
    return unknown.name if unknown else "softmax" if stage.first("softmax") else "none"


def _reason(scheme: Scheme, stage: Stage) -> str:
    return f"{scheme.name} fits {follower(stage)}: variance {scheme.scale:.3g}/{scheme.mode}"


def weight_of(model: nn.Module, stage: Stage) -> nn.Parameter | None:
    """The layer's weight as a parameter of the model, or None where it is computed from others (weight norm)."""
    parameters = dict(model.named_parameters())
    for name in stage.layer.parameters[:1]:
        found = parameters.get(name)
        if found is not None and found.ndim > 1:
            return found
    return None


def _zero_bias(model: nn.Module, stage: Stage, weight: Tensor) -> None:
    parameters = dict(model.named_parameters())
    for name in stage.layer.parameters:
        if parameters[name] is not weight and parameters[name].ndim == 1:
            with torch.no_grad():
                parameters[name].zero_()


def _inputs(data: Any) -> Any:
    """Inputs of a few samples, from inputs alone or from data with targets."""
    if isinstance(data, Tensor):
        return data[:8]
    return as_source(data).sample(8, seed=0)[0]


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
        dimensions = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}.get(type(layer))
        if dimensions:
            for size in EXAMPLE_SIZES:
                yield where.new_zeros(2, layer.in_channels, *[size] * dimensions)  # type: ignore[union-attr]
            return
