"""One step of a user's training under observation: forward, backward, update."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from gainstage.monitor.reading import Measured
from gainstage.program import tensors_in
from gainstage.signal import NETWORK_INPUT, Graph, Operation
from gainstage.signal.probes import Probes
from gainstage.signal.replay import Replay, Script
from gainstage.signal.trace import Tracer

MOST_READ = 2**15  # elements of one tensor that are read, about


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
    """Measures the model's next forward pass, the backward pass behind it, and the optimiser's step.

    script: of an earlier pass; the pass is traced anew without one, and where it does not fit the inputs.
    """

    def __init__(self, model: nn.Module, inputs: Any, script: Script | None = None):
        self.probes = GuardedProbes(most=MOST_READ)
        self.graph: Graph | None = None
        self.script = script if script is not None and script.fits(inputs) else None
        self._stack = ExitStack()
        self._before: dict[int, Tensor] = {}
        tensors = tensors_in(inputs)
        self._samples = len(tensors[0]) if tensors and tensors[0].ndim else 0
        for number, tensor in enumerate(tensors):
            self.probes.stage_output(NETWORK_INPUT - number, NETWORK_INPUT, tensor.detach())
        if self.script is not None:
            self._replay = self._stack.enter_context(Replay(self.script, self.probes))
        else:
            self._tracer = Tracer(model, self.probes)
            self._stack.enter_context(self._tracer.of(model, inputs))

    def forward_done(self, output: Any) -> None:
        """The forward pass has ended with `output`."""
        self._stack.close()
        if self.script is None:
            self.graph = self._tracer.finish(output)
            self.script = self._tracer.script(self.graph)
        elif self._replay.followed:
            self.graph = self.script.graph
        else:
            self.script = None  # the network took another way

    def before_step(self) -> None:
        """The gradients are complete and the weights not yet changed."""
        weights = {stage: w for stage, w in self.probes.weights.items() if isinstance(w, nn.Parameter)}
        self.probes.weight_gradients({id(w): w.grad for w in weights.values() if w.grad is not None})
        self.probes.read_weights()
        self._before = {stage: self.probes.rows(w).clone() for stage, w in weights.items()}

    def after_step(self) -> Measured | None:
        """What was measured; None where the pass was not seen to its end. Raises what a probe raised."""
        stages = list(self._before)
        if stages and self.graph is not None:
            after = [self.probes.rows(self.probes.weights[stage]) for stage in stages]
            self.probes.updates(stages, torch._foreach_sub(after, list(self._before.values())))
        self.abandon()
        if self.probes.error is not None:
            raise self.probes.error
        if self.graph is None:
            return None
        readings = self.probes.read()
        return Measured(self.graph, tuple(readings), array("d", readings.values()), self.probes.units, self._samples)

    def abandon(self) -> None:
        """Take every hook off."""
        self._stack.close()
        self.probes.detach()
