"""One step of a user's training under observation: forward, backward, update."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from gainstage.program import tensors_in
from gainstage.signal import NETWORK_INPUT, Graph, Ledger, Operation
from gainstage.signal.prediction import source_fields
from gainstage.signal.probes import Probes
from gainstage.signal.rows import make_ledger
from gainstage.signal.statistics import mean_square
from gainstage.signal.trace import Tracer


class GuardedProbes(Probes):
    """Probes whose errors never reach the training they watch: the first one is kept, and all of them fall silent."""

    error: Exception | None = None

    def _guarded(self, probe: Callable[..., None], *arguments: Any) -> None:
        if self.error is None:
            try:
                probe(*arguments)
            except Exception as error:
                self.error = error

    def stage_output(self, operation: int, stage: int, tensor: Tensor) -> None:
        self._guarded(super().stage_output, operation, stage, tensor)

    def layer(self, operation: Operation, weight: Tensor | None, bias: Tensor | None) -> None:
        self._guarded(super().layer, operation, weight, bias)

    def normalization(self, operation: Operation, scale: Tensor | None, shift: Tensor | None) -> None:
        self._guarded(super().normalization, operation, scale, shift)

    def activation(self, operation: Operation, before: Tensor) -> None:
        self._guarded(super().activation, operation, before)

    def activated(self, operation: Operation, after: Tensor) -> None:
        self._guarded(super().activated, operation, after)

    def constant(self, operation: Operation, tensor: Tensor) -> None:
        self._guarded(super().constant, operation, tensor)

    def gradient(self, operation: int, gradient: Tensor) -> None:
        self._guarded(super().gradient, operation, gradient)


class Recording:
    """Traces and measures the model's next forward pass, the backward pass behind it, and the optimiser's step."""

    def __init__(self, model: nn.Module, inputs: Any):
        self.graph: Graph | None = None
        self.probes = GuardedProbes()
        self._tracer = Tracer(model, self.probes)
        self._stack = ExitStack()
        self._before: dict[int, Tensor] = {}
        tensors = tensors_in(inputs)
        self._samples = len(tensors[0]) if tensors and tensors[0].ndim else 0
        for number, tensor in enumerate(tensors):
            self.probes.stage_output(NETWORK_INPUT - number, NETWORK_INPUT, tensor.detach())
        self._stack.enter_context(self._tracer.of(model, inputs))

    def forward_done(self, output: Any) -> None:
        """The forward pass has ended with `output`."""
        self._stack.close()
        self.graph = self._tracer.finish(output)

    def before_step(self) -> None:
        """The gradients are complete and the weights not yet changed."""
        weights = {stage: w for stage, w in self.probes.weights.items() if isinstance(w, nn.Parameter)}
        self.probes.weight_gradients({id(w): w.grad for w in weights.values() if w.grad is not None})
        self._before = {stage: w.detach().clone() for stage, w in weights.items()}

    def after_step(self) -> tuple[Graph, Ledger]:
        """The graph and ledger of the step; raises what a probe raised."""
        for stage, before in self._before.items():
            self.probes.values["update", stage] = mean_square(self.probes.weights[stage] - before)
        self.abandon()
        if self.probes.error is not None:
            raise self.probes.error
        if self.graph is None:
            raise RuntimeError("the forward pass of this step was not seen")
        readings = self.probes.read()
        sources = source_fields(self.graph, readings)
        return self.graph, make_ledger(self.graph, readings, sources, self.probes.units, self._samples, None)

    def abandon(self) -> None:
        """Take every hook off."""
        self._stack.close()
        self.probes.detach()
