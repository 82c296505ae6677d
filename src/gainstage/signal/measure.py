"""Measure: probes on one real pass, forward and backward, and the ledger that comes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gainstage.data import Batch
from gainstage.errors import BadInput
from gainstage.program import Loss, check_batch, run_loss, run_model, tensors_in
from gainstage.signal.graph import NETWORK_INPUT, Graph
from gainstage.signal.ledger import Ledger
from gainstage.signal.locating import locate
from gainstage.signal.prediction import source_fields
from gainstage.signal.probes import Probes
from gainstage.signal.rows import make_ledger
from gainstage.signal.trace import Tracer
from gainstage.signal.untouched import untouched


def measure(
    model: nn.Module, loss: Loss, batch: Batch, on_output: Callable[[Any], object] | None = None
) -> tuple[Graph, Ledger]:
    """Trace and measure one forward and backward pass on `batch` = (inputs, targets), and a second one where numbers are not
    finite, to find out where they first are not; leaves no trace. on_output: called with what the network puts out.

    Raises BadInput when the batch, the model or the loss cannot be used.
    """
    samples = check_batch(*batch)
    modules = [model, *([loss] if isinstance(loss, nn.Module) else [])]
    with untouched(*modules), torch.enable_grad():
        graph, ledger = _measure(model, loss, batch, samples, on_output or (lambda output: None))
    if ledger.non_finite is None and (ledger.loss is None or math.isfinite(ledger.loss)):
        return graph, ledger
    return graph, replace(ledger, non_finite=locate(model, loss, batch, samples))


def trace(model: nn.Module, x: Any) -> Graph:
    """The graph of one forward pass on inputs `x`, without any measuring; leaves no trace."""
    with untouched(model), torch.no_grad():
        tracer = Tracer(model)
        with tracer.of(model, x):
            output = run_model(model, x)
        return tracer.finish(output)


def _measure(
    model: nn.Module, loss: Loss, batch: Batch, samples: int, on_output: Callable[[Any], object]
) -> tuple[Graph, Ledger]:
    x, y = batch
    probes = Probes()
    tracer = Tracer(model, probes)
    for number, tensor in enumerate(tensors_in(x)):
        probes.stage_output(NETWORK_INPUT - number, NETWORK_INPUT, tensor.detach())
    try:
        with tracer.of(model, x):
            output = run_model(model, x)
        on_output(output)
        value = run_loss(loss, output, y, within=tracer.of_loss())
        graph = tracer.finish(output)
        _backward(model, value, probes)
        probes.read_weights()
    finally:
        probes.detach()
    readings = probes.read()
    sources = source_fields(graph, readings, x)
    return graph, make_ledger(graph, readings, sources, probes.units, samples, float(value.detach()))


def _backward(model: nn.Module, loss: Tensor, probes: Probes) -> None:
    """Run the backward pass without touching any .grad, and hand the weights' gradients to the probes."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not loss.requires_grad or not parameters:
        raise BadInput(
            "the loss does not depend on any trainable parameter: everything is frozen, detached or computed under no_grad; "
            "set requires_grad=True on what should learn"
        )
    # FSDP2 runs with parameters of its own in the place of the model's
    run = [weight for weight in probes.weights.values() if weight.requires_grad and weight.is_leaf]
    leaves = list({id(leaf): leaf for leaf in (*parameters, *run)}.values())
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    probes.weight_gradients({id(p): g for p, g in zip(leaves, gradients, strict=True) if g is not None})
