"""Weights scaled to the data: every pre-activation of unit variance, in one forward pass (Mishkin 2015, LSUV).

LSUV runs a forward pass for each layer. Here each layer's output is measured as soon as it is there, and the weight and
the output are divided by what was found before the pass goes on, which for a layer without bias is the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gainstage.initialization.plans import OUTPUT_GAIN, branch_ends
from gainstage.initialization.stages import bias_of, current_weight, set_weight
from gainstage.program import run_model
from gainstage.signal import Graph, Operation, Stage, untouched
from gainstage.signal.statistics import signal_and_offset
from gainstage.signal.trace import Observer, Tracer


def fit_to_data(model: nn.Module, inputs: Any, graph: Graph) -> None:
    """Scale the weights of the layers of `graph`, in place."""
    fitter = _Fitter(model, graph)
    with untouched(model), torch.no_grad():
        tracer = Tracer(model, fitter)
        with tracer.of(model, inputs):
            run_model(model, inputs)


class _Fitter(Observer):
    """The tracer's observer: divides each layer's weight and output by the output's standard deviation."""

    def __init__(self, model: nn.Module, graph: Graph):
        self.model, self.graph = model, graph
        self.ends = branch_ends(graph)
        self.done: set[str] = set()

    def layer_output(self, operation: Operation, output: Tensor) -> None:
        """A layer has put out `output`; a layer that runs again keeps its first scale."""
        stage = self.graph.stages[operation.stage]
        weight = current_weight(self.model, stage)
        if weight is None or stage.layer.module in self.done or len(output) < 2:
            return
        self.done.add(stage.layer.module)
        bias = bias_of(self.model, stage)
        if bias is not None:
            output.sub_(bias.view(-1, *[1] * (output.ndim - 2)) if stage.layer.channel_dim == 1 else bias)
            bias.zero_()
        std = float(signal_and_offset(output)[0].sqrt())
        if std > 0:
            factor = self._target(stage) / std
            set_weight(self.model, stage, weight * factor)
            output.mul_(factor)

    def _target(self, stage: Stage) -> float:
        if stage.index == self.graph.output_stage:
            return OUTPUT_GAIN
        scaled = stage.index in self.ends and stage.first("normalization") is None
        return len(self.ends) ** -0.5 if scaled else 1.0
