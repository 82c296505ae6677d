"""Weights scaled to the data: every pre-activation of unit variance, in one forward pass (Mishkin 2015, LSUV).

LSUV runs a forward pass for each layer. Here each layer's output is measured as soon as it is there, and the weight and
the output are divided by what was found before the pass goes on, which for a layer without bias is the same.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gainstage.initialization.plans import OUTPUT_GAIN, branch_ends
from gainstage.initialization.stages import current_weight, has_one_matrix, set_weight
from gainstage.program import run_model
from gainstage.signal import Graph, Operation, Stage, untouched
from gainstage.signal.observer import Observer
from gainstage.signal.statistics import signal_and_offset
from gainstage.signal.trace import Tracer

ROUNDING = 1e-10  # of the power of a constant, which rounding leaves as a signal


def fit_to_data(model: nn.Module, inputs: Any, graph: Graph) -> set[str]:
    """Scale the weights of the layers of `graph`, in place; their biases are zero. Returns the names of their stages.

    A weight that is used more than once is scaled where it is used first, and left as it is where that is no layer (an
    embedding tied to the output).
    """
    fitter = _Fitter(model, graph)
    with torch.no_grad():
        with untouched(model):
            tracer = Tracer(model, fitter)
            with tracer.of(model, inputs):
                run_model(model, inputs)
        for stage in fitter.fitted:  # a weight that is computed and kept as an attribute has gone back to the old one
            _scale(model, stage, 1.0)
    return {stage.name for stage in fitter.fitted}


class _Fitter(Observer):
    """The tracer's observer: divides each layer's weight and output by the output's standard deviation."""

    def __init__(self, model: nn.Module, graph: Graph):
        self.model, self.graph = model, graph
        self.ends = branch_ends(graph)
        self.fitted: list[Stage] = []
        self.first_use: dict[str, int] = {}
        for operation in graph.operations:
            for name in operation.parameters:
                self.first_use.setdefault(name, operation.index)

    def layer_output(self, operation: Operation, output: Tensor) -> None:
        """A layer has put out `output`."""
        stage = self.graph.stages[operation.stage]
        if len(output) < 2 or not has_one_matrix(self.model, stage) or not self._is_first_use(stage.layer):
            return
        signal, offset = map(float, signal_and_offset(output))
        if not ROUNDING * offset < signal < math.inf:
            return
        factor = self._target(stage) / math.sqrt(signal)
        if _scale(self.model, stage, factor):
            self.fitted.append(stage)
            output.mul_(factor)

    def _is_first_use(self, layer: Operation) -> bool:
        names = (layer.weight,) if layer.weight else layer.parameters
        return all(self.first_use[name] == layer.index for name in names)

    def _target(self, stage: Stage) -> float:
        if stage.index == self.graph.output_stage:
            return OUTPUT_GAIN
        scaled = stage.index in self.ends and stage.first("normalization") is None
        return len(self.ends) ** -0.5 if scaled else 1.0


def _scale(model: nn.Module, stage: Stage, factor: float) -> bool:
    weight = current_weight(model, stage)
    return weight is not None and set_weight(model, stage, weight * factor)
