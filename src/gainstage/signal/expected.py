"""predict(): what theory expects of a network from its input and the sizes of its weights, before anything is measured."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from gainstage.display import Displayed
from gainstage.program import run_model, tensors_in
from gainstage.signal.graph import NETWORK_INPUT, Graph, Stage
from gainstage.signal.ledger import row_called
from gainstage.signal.prediction import Theory, source_fields, theory_from_input
from gainstage.signal.probes import WeightProbes
from gainstage.signal.statistics import signal_and_offset
from gainstage.signal.trace import Tracer
from gainstage.signal.untouched import untouched


@dataclass(frozen=True)
class ExpectedStage:
    """What theory expects at the output of one stage; None: no prediction.

    signal, offset: RMS values. similarity: mean cosine between samples. gradient: RMS of the gradient of the loss with
    respect to the stage's output, over that at the network's output. signal_error, gradient_error: their relative standard
    errors for weights drawn at random, from the finite width of all layers on the way; upper bounds.
    """

    name: str
    description: str
    signal: float | None = None
    offset: float | None = None
    similarity: float | None = None
    signal_error: float | None = None
    gradient: float | None = None
    gradient_error: float | None = None


@dataclass(frozen=True)
class Prediction(Displayed):
    """Theory's expectation for all stages, in order of execution."""

    rows: tuple[ExpectedStage, ...]
    coverage: str

    def row(self, name: str) -> ExpectedStage:
        """The stage called `name`; KeyError names the stages there are."""
        return row_called(self.rows, name)

    def to_dict(self) -> dict[str, Any]:
        return {"stages": [asdict(row) for row in self.rows], "coverage": self.coverage}


def predict(model: nn.Module, inputs: Any) -> tuple[Graph, Prediction]:
    """The graph of one forward pass on `inputs`, and what theory expects of it; leaves no trace on the model.

    Of the inputs their signal, offset and similarity between positions are taken, of the layers the mean square of their
    weights and biases. Raises BadInput when the network cannot be run on the inputs.
    """
    probes = WeightProbes()
    with untouched(model), torch.no_grad():
        tracer = Tracer(model, probes)
        with tracer.of(model, inputs):
            output = run_model(model, inputs)
        graph = tracer.finish(output)
        for number, tensor in enumerate(tensors_in(inputs)):
            if tensor.is_floating_point() and tensor.ndim and len(tensor) > 1:
                place = NETWORK_INPUT - number
                for quantity, power in zip(("signal", "offset"), signal_and_offset(tensor), strict=True):
                    probes.values.add(quantity, (place,), power)
        probes.read_weights()
        readings = probes.read()
    theory = theory_from_input(graph, readings, source_fields(graph, readings, inputs))
    return graph, Prediction(tuple(_expected(theory, stage) for stage in graph.stages), graph.coverage)


def _expected(theory: Theory, stage: Stage) -> ExpectedStage:
    after = theory.graph.output_of(stage)
    level, (power, variance) = theory.level(after), theory.gradient(after)
    forward = backward = {}
    if level.known:
        forward = {
            "signal": math.sqrt(max(level.signal, 0.0)),
            "offset": math.sqrt(level.offset),
            "similarity": level.similarity if level.level > 0 else None,
            "signal_error": math.sqrt(level.variance) / 2,
        }
    if math.isfinite(power):
        backward = {"gradient": math.sqrt(power), "gradient_error": math.sqrt(variance) / 2}
    return ExpectedStage(stage.name, stage.description, **forward, **backward)
