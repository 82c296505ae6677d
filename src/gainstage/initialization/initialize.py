"""gs.initialize: draw every layer's weights for what really follows it in the traced network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from gainstage.display import Displayed
from gainstage.initialization.fitting import fit_to_data
from gainstage.initialization.inputs import EMBEDDINGS, checked_bias, checked_inputs, traced
from gainstage.initialization.notes import on_slopes
from gainstage.initialization.plans import Plan, check_names, is_gate, plan_for
from gainstage.initialization.stages import bias_of, current_weight, follower, has_one_matrix, set_weight, weight_of
from gainstage.nn.blocks import Block, assign, blocks_of, fans_of, value_of
from gainstage.nn.initializers import check_distribution, check_variance, fill
from gainstage.program import unwrapped
from gainstage.signal import Graph, Stage
from gainstage.signal.operations import CONVOLUTIONS
from gainstage.theory import GLOROT, LECUN, Scheme

OTHERS = (*EMBEDDINGS, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear)
UNFITTED = "not scaled: on the data it puts out a constant, or its weight has run before"


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
    output_bias: Any = None,
    generator: torch.Generator | None = None,
) -> Initialization:
    """Draw the weights of every layer anew, in place, chosen for each from what surrounds it in one traced forward pass.

    scheme: "auto", the chapter's table (Glorot for none, tanh, logistic and softmax, He for the ReLU family, LeCun for
    SELU); "exact", the variance by quadrature for the very activation, that keeps="signal", "gradient" or "both" (the
    geometric mean); "isometric", orthogonal weights that keep level and gradient through the depth of this network;
    "data", orthogonal weights scaled so that every pre-activation has unit variance on a batch, in one forward pass.
    In residual networks the last layer of each branch is scaled by 1/sqrt(branches), and kept where it is all zero; but for
    "auto" the output layer is scaled so that the loss starts at chance. Recurrent gates, attention's matrices, bilinear
    layers and embeddings are drawn one by one (Glorot; embeddings variance 1, zero for padding).
    data: any training data, or inputs alone; without it a zero input of a plausible shape is traced ("data" and lazy
    layers need it).
    distribution: "normal", "truncated_normal" or "uniform", where weights are not orthogonal.
    output_bias: for the last layer, for example gs.nn.prior_bias(shares).

    Set are weights and biases (to zero) of layers, a shared one once, one under weight norm through it. Left as they are:
    scale, shift and statistics of normalisations, slopes of PReLU, and parameters that belong to no layer (a position
    embedding); a model that comes from the meta device by to_empty() needs its own values for those first, for example by
    their reset_parameters(). Layers that were left (spectral norm, gates of zeros, layers that the pass did not reach) are
    in `skipped`. On the meta device the table is all that is made. Where weights cannot help, or theory cannot, the reason
    says so: a function that is constant, parameters inside an activation that differ from unit to unit, "exact" weights for
    a level that runs away with the depth, layers whose output the data leave constant.
    Raises BadInput for unknown names, data that hold no samples or, for "data", the same sample again and again, when the
    network cannot be run, and where no weights keep an activation's gradient; no weight has changed then.
    """
    check_names(scheme, keep)
    check_distribution(distribution)
    model = unwrapped(model) if isinstance(model, nn.Module) else model
    inputs = checked_inputs(model, data, scheme)
    graph = traced(model, inputs)
    bias = None if output_bias is None else checked_bias(model, graph, output_bias)
    table = initialize_stages(model, graph, graph.stages, distribution, generator, scheme, keep)
    others = _initialize_others(model, graph, distribution, generator)
    if scheme == "data":
        table = _told(table, fit_to_data(model, inputs, graph))
    if bias is not None:
        parameter, values = bias
        with torch.no_grad():
            parameter.copy_(values)
    return Initialization((*table.rows, *others.rows), (*table.skipped, *others.skipped, *_unreached(model, graph)))


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
    plans = [(stage, _checked_plan(graph, stage, scheme, keep)) for stage in stages if has_one_matrix(model, stage)]
    rows, skipped, seen = [], [], set()
    for stage, plan in plans:
        key = stage.layer.weight or stage.layer.module
        if key in seen:
            continue
        seen.add(key)
        weight = current_weight(model, stage)
        if plan is None or weight is None or _is_closed(graph, stage, weight):
            skipped.append(stage.name)
        elif _draw(model, stage, plan, weight, distribution, generator):
            reason = "; ".join([plan.reason, *on_slopes(model, stage)])
            rows.append(InitializedStage(stage.name, follower(stage), plan.scheme, plan.variance, reason))
        else:
            skipped.append(stage.name)
    return Initialization(tuple(rows), tuple(skipped))


def _told(table: Initialization, fitted: set[str]) -> Initialization:
    """The table with a word on the stages that could not be scaled to the data."""
    rows = [row if row.stage in fitted else replace(row, reason=f"{row.reason}; {UNFITTED}") for row in table.rows]
    return replace(table, rows=tuple(rows))


def _checked_plan(graph: Graph, stage: Stage, scheme: str, keep: str) -> Plan | None:
    """None for a layer without inputs or outputs, which has no weights."""
    fans = stage.layer.fans
    if fans is None or not all(fans):
        return None
    plan = plan_for(graph, stage, scheme, keep)
    check_variance(plan.variance)
    return plan


def _is_closed(graph: Graph, stage: Stage, weight: Tensor) -> bool:
    return not weight.is_meta and is_gate(graph, stage, weight)


def _draw(model: nn.Module, stage: Stage, plan: Plan, weight: Tensor, distribution: str, generator) -> bool:
    values = torch.empty_like(weight, requires_grad=False)
    plan.draw(values, distribution, generator)
    if plan.orthogonal_gain is not None and stage.layer.name not in ("linear", *CONVOLUTIONS):
        # (in, out, *kernel): the rows that were made orthonormal are inputs, so the power of the outputs is put right here
        values *= plan.variance**0.5 / values.float().square().mean().sqrt()
    if not set_weight(model, stage, values):
        return False
    bias = bias_of(model, stage)
    if bias is not None:
        nn.init.zeros_(bias)
    return True


def _initialize_others(model: nn.Module, graph: Graph, distribution: str, generator) -> Initialization:
    """Layers that the trace sees as one operation each: embeddings, recurrent layers, attention, bilinear ones. A weight
    that another layer shares has been drawn already."""
    seen = {id(weight) for stage in graph.stages if (weight := weight_of(model, stage)) is not None}
    rows, skipped = [], []
    for path, layer in _others(model):
        drawn, left = _draw_other(path or "(model)", layer, seen, distribution, generator)
        rows += drawn
        skipped += left
        if drawn or not left:
            _clear(layer)
    return Initialization(tuple(rows), tuple(skipped))


def _others(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    projections = {id(m.out_proj) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    return ((path, m) for path, m in model.named_modules() if isinstance(m, OTHERS) or id(m) in projections)


def _draw_other(
    path: str, layer: nn.Module, seen: set[int], distribution: str, generator
) -> tuple[list[InitializedStage], list[str]]:
    """Rows of the matrices drawn, and names of the weights left; a weight in `seen` is neither."""
    scheme = LECUN if isinstance(layer, EMBEDDINGS) else GLOROT
    rows, left = [], []
    for name, group in groupby(blocks_of(layer), key=lambda block: block.parameter):
        weight, blocks = value_of(layer, name), list(group)
        if weight is None or id(weight) in seen:
            continue
        if isinstance(weight, nn.Parameter):  # others are computed anew each time
            seen.add(id(weight))
        if _draw_blocks(layer, weight, blocks, scheme, distribution, generator):
            rows += [_row(f"{path}.{name} ({block.role})", block, scheme) for block in blocks]
        else:
            left.append(f"{path}.{name}")
    return rows, left


def _draw_blocks(
    layer: nn.Module, weight: Tensor, blocks: list[Block], scheme: Scheme, distribution, generator
) -> bool:
    values = torch.empty_like(weight, requires_grad=False)
    for block, part in zip(blocks, values.chunk(len(blocks)), strict=True):
        fill(part, scheme.variance(block.fans), distribution, generator)
    return assign(layer, blocks[0].parameter, values)


def _row(name: str, block: Block, scheme: Scheme) -> InitializedStage:
    reason = f"one matrix of {tuple(block.weight.shape)}"
    return InitializedStage(name, "none", scheme.name, scheme.variance(block.fans), reason)


@torch.no_grad()
def _clear(layer: nn.Module) -> None:
    """Zero the biases, and the row of the padding."""
    for name, parameter in layer.named_parameters(recurse=False):
        if "bias" in name:
            parameter.zero_()
        elif name == "weight" and isinstance(layer, EMBEDDINGS) and layer.padding_idx is not None:
            parameter[layer.padding_idx] = 0


def _unreached(model: nn.Module, graph: Graph) -> list[str]:
    """Layers of which the traced pass used nothing."""
    others = {id(layer) for _, layer in _others(model)}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    used = {name for stage in graph.stages for name in stage.layer.parameters}
    return [
        path
        for path, layer in model.named_modules()
        if fans_of(layer) and id(layer) not in others and not any(names[id(p)] in used for p in layer.parameters())
    ]
