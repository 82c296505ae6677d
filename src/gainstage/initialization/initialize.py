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
from gainstage.initialization.fitting import fit_to_data
from gainstage.initialization.plans import Plan, check_names, is_gate, plan_for
from gainstage.initialization.stages import bias_of, current_weight, follower, set_weight, trace_example, weight_of
from gainstage.nn.blocks import Block, blocks_of
from gainstage.nn.initializers import check_distribution, fill
from gainstage.signal import Graph, Stage, trace
from gainstage.theory import GLOROT, LECUN

OTHERS = (nn.Embedding, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
SAMPLES = 256  # that the scheme "data" measures


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
    """The table that gs.initialize returns. skipped: layers whose weights were left as they are."""

    rows: tuple[InitializedStage, ...]
    skipped: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {"stages": [asdict(row) for row in self.rows], "skipped": list(self.skipped)}


def initialize(
    model: nn.Module,
    data: Any = None,
    *,
    scheme: str = "auto",
    keep: str = "signal",
    distribution: str = "normal",
    generator: torch.Generator | None = None,
) -> Initialization:
    """Draw the weights of every layer anew, in place, chosen for each from what surrounds it in one traced forward pass.

    scheme: "auto", the chapter's table (Glorot for none, tanh, logistic and softmax, He for the ReLU family, LeCun for
    SELU); "exact", the variance by quadrature for the very activation, that keeps="signal", "gradient" or "both" (the
    geometric mean); "isometric", orthogonal weights that keep level and gradient through the depth of this network;
    "data", orthogonal weights scaled so that every pre-activation has unit variance on a batch, in one forward pass.
    Biases become zero. In residual networks the last layer of each branch is scaled by
    1/sqrt(branches), and kept where it is all zero; but for "auto" the output layer is scaled so that the loss starts at
    chance. Recurrent gates, attention's matrices and embeddings are drawn one by one (Glorot; embeddings variance 1).
    data: any training data, or inputs alone; without it a zero input of a plausible shape is traced ("data" needs it).
    distribution: "normal", "truncated_normal" or "uniform", where weights are not orthogonal.
    Raises BadInput for unknown names, when the network cannot be run, and where no weights keep an activation's gradient.
    """
    check_names(scheme, keep)
    check_distribution(distribution)
    if data is None and scheme == "data":
        raise BadInput('the scheme "data" measures the network on a batch: give data=')
    inputs = None if data is None else _inputs(data)
    graph = trace_example(model) if inputs is None else trace(model, inputs)
    table = initialize_stages(model, graph, graph.stages, distribution, generator, scheme, keep)
    if scheme == "data":
        fit_to_data(model, inputs, graph)
    others = _initialize_others(model, graph, distribution, generator)
    return Initialization((*table.rows, *others), table.skipped)


def initialize_stages(
    model: nn.Module,
    graph: Graph,
    stages: Iterable[Stage],
    distribution: str = "normal",
    generator: torch.Generator | None = None,
    scheme: str = "auto",
    keep: str = "signal",
) -> Initialization:
    """The same for some stages of a graph that is already known."""
    plans = [(stage, plan_for(graph, stage, scheme, keep)) for stage in stages if stage.layer.fans is not None]
    rows, skipped, seen = [], [], set()
    for stage, plan in plans:
        weight = current_weight(model, stage)
        key = stage.layer.weight or stage.layer.module
        if weight is None or is_gate(graph, stage, weight):
            skipped.append(stage.name)
        elif key not in seen:
            seen.add(key)
            if _draw(model, stage, plan, weight, distribution, generator):
                rows.append(InitializedStage(stage.name, follower(stage), plan.scheme, plan.variance, plan.reason))
            else:
                skipped.append(stage.name)
    return Initialization(tuple(rows), tuple(skipped))


def _draw(model: nn.Module, stage: Stage, plan: Plan, weight: Tensor, distribution: str, generator) -> bool:
    values = torch.empty_like(weight, requires_grad=False)
    plan.draw(values, distribution, generator)
    if not set_weight(model, stage, values):
        return False
    bias = bias_of(model, stage)
    if bias is not None:
        nn.init.zeros_(bias)
    return True


def _initialize_others(model: nn.Module, graph: Graph, distribution: str, generator) -> list[InitializedStage]:
    """Layers that the trace sees as one operation each: embeddings, recurrent layers, attention. A weight that a traced
    layer shares has been drawn already."""
    drawn = {id(weight) for stage in graph.stages if (weight := weight_of(model, stage)) is not None}
    outputs = {id(m.out_proj) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    rows = []
    for path, layer in model.named_modules():
        if not isinstance(layer, OTHERS) and id(layer) not in outputs:
            continue
        for block in blocks_of(layer):
            if id(getattr(layer, block.parameter)) not in drawn:
                rows.append(_draw_block(path, layer, block, distribution, generator))
    return rows


def _draw_block(path: str, layer: nn.Module, block: Block, distribution: str, generator) -> InitializedStage:
    scheme = LECUN if isinstance(layer, nn.Embedding) else GLOROT
    variance = scheme.variance(block.fans)
    fill(block.weight, variance, distribution, generator)
    if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
        with torch.no_grad():
            block.weight[layer.padding_idx] = 0
    name = f"{path or '(model)'}.{block.parameter} ({block.role})"
    return InitializedStage(name, "none", scheme.name, variance, f"one matrix of {tuple(block.weight.shape)}")


def _inputs(data: Any) -> Any:
    """Inputs of some samples, from inputs alone or from data with targets."""
    if isinstance(data, Tensor):
        return data[:SAMPLES]
    return as_source(data).sample(SAMPLES, seed=0)[0]
