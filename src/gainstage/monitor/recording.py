"""One step of a user's training under observation: forward, backward, update."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gainstage.monitor.distributed import LEVELS, Contribution, Sums, Together, fired, local, sums_of
from gainstage.monitor.fuses import Fuses
from gainstage.monitor.guarded import GuardedTracer
from gainstage.monitor.recomputation import Recomputation
from gainstage.monitor.scaling import Scaling
from gainstage.program import tensors_in
from gainstage.signal import NETWORK_INPUT, Graph, Ledger, Operation
from gainstage.signal.prediction import source_fields
from gainstage.signal.probes import Probes
from gainstage.signal.rows import make_ledger
from gainstage.signal.statistics import mean_square

SHARDED = (
    "weight_gradient",
    "update",
)  # read from the optimiser's side, where a process may have a part of a weight only
# another watch may trace the pass around this one: what is done inside is none of its network's
unseen = torch._C.DisableTorchFunction


def power(x: Tensor) -> Tensor:
    """Mean square; 0 of a part that is empty."""
    return mean_square(x) if x.numel() else x.new_zeros(())


class GuardedProbes(Probes):
    """Probes whose errors never reach the training they watch: what failed is not observed, and told by the fuses."""

    def __init__(self, fuses: Fuses):
        super().__init__()
        self.fuses = fuses
        self.in_half = False  # of float16, which overflows
        self.sums: dict[int, Sums] | None = None  # where several processes measure together
        self.fired: dict[int, Tensor] = {}

    def probe(self, quantity: str) -> AbstractContextManager[Any]:
        return self.fuses.guard(f"the probe of {quantity}")

    def _guarded(self, what: str, action: Callable[..., None], *arguments: Any) -> None:
        with unseen(), self.probe(what):
            action(*arguments)

    def stage_output(self, operation: int, stage: int, tensor: Tensor) -> None:
        self.in_half = self.in_half or tensor.dtype == torch.float16
        self._guarded("outputs", super().stage_output, operation, stage, tensor)
        if self.sums is not None and ("signal", operation) in self.values and operation not in self.sums:
            self.sums[operation] = sums_of(tensor)

    def layer(self, operation: Operation, weight: Tensor | None, bias: Tensor | None) -> None:
        self._guarded("layers", super().layer, operation, weight, bias)

    def normalization(self, operation: Operation, scale: Tensor | None, shift: Tensor | None) -> None:
        self._guarded("normalization", super().normalization, operation, scale, shift)

    def activation(self, operation: Operation, before: Tensor) -> None:
        self._guarded("saturation", super().activation, operation, before)

    def activated(self, operation: Operation, after: Tensor) -> None:
        self._guarded("dead units", super().activated, operation, after)
        if self.sums is not None and ("dead", operation.stage) in self.values:
            self.fired[operation.stage] = fired(after, self.channel_dims.get(operation.stage, -1))

    def constant(self, operation: Operation, tensor: Tensor) -> None:
        self._guarded("constants", super().constant, operation, tensor)

    def gradient(self, operation: int, gradient: Tensor) -> None:
        self._guarded("gradient", super().gradient, operation, gradient)


class Recording:
    """Traces and measures the model's next forward pass, the backward pass behind it, and the optimiser's step."""

    def __init__(self, model: nn.Module, inputs: Any, fuses: Fuses, together: bool = False):
        self.graph: Graph | None = None
        self.probes = GuardedProbes(fuses)
        self.probes.sums = {} if together else None
        self._model = model
        self._tracer = GuardedTracer(model, self.probes)
        self._stack = ExitStack()
        self._before: dict[int, Tensor] = {}
        self._again: Recomputation | None = None
        tensors = tensors_in(inputs)
        self._samples = len(tensors[0]) if tensors and tensors[0].ndim else 0
        with unseen():
            for number, tensor in enumerate(tensors):
                self.probes.stage_output(NETWORK_INPUT - number, NETWORK_INPUT, tensor.detach())
        self._stack.enter_context(self._tracer.of(model, inputs))

    def forward_done(self, output: Any) -> None:
        """The forward pass has ended with `output`; raises what the tracer raised on the way."""
        self._stack.close()
        if self._tracer.error is not None:
            raise self._tracer.error
        with unseen():
            self.graph = self._tracer.finish(output)
        blind = [self.graph.operations[index] for index in self._tracer.blind]
        if blind and torch.is_grad_enabled():
            self._again = Recomputation(self._model, blind, self.probes.gradient, self.probes.fuses)

    def backward_begun(self) -> None:
        """A backward pass has come to the output."""
        if self._again is not None:
            self._again.begun = True

    def unscale(self, scale: float) -> None:
        """Take the scale of the loss out of the gradients that were read."""
        for key, value in self.probes.values.items():
            if key[0] == "gradient":
                self.probes.values[key] = value / scale**2

    def before_step(self, optimizer: Optimizer, scaling: Scaling) -> None:
        """An optimiser is about to change weights: the gradients that it takes are complete. What others have taken before
        it in this step is known already."""
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        weights = self._weights()
        with self.probes.probe("weight gradient"):
            for stage, weight in weights.items():
                key = "weight_gradient", stage
                if weight.grad is not None and (id(weight) in own or key not in self.probes.values):
                    scale = scaling.left if id(weight) in own else scaling.scale
                    self.probes.values[key] = power(local(weight.grad)) / scale**2
        if not self._before:
            self._before = {stage: local(w).clone() for stage, w in weights.items()}

    def stepped(self) -> None:
        """An optimiser has changed the weights."""
        with self.probes.probe("update"):
            for stage, weight in self._weights().items():
                if stage in self._before:
                    self.probes.values["update", stage] = power(local(weight) - self._before[stage])

    def _weights(self) -> dict[int, nn.Parameter]:
        """The layers' weights as the model has them now: those of the forward pass may be gone where they are sharded."""
        parameters = dict(self._model.named_parameters())
        names = {stage.index: stage.layer.weight for stage in self.graph.stages} if self.graph is not None else {}
        return {stage: parameters[name] for stage, name in names.items() if name in parameters}

    def contribution(self) -> Contribution:
        """What the other processes need of this one."""
        values, sums, channels = self.probes.values, self.probes.sums or {}, self.probes.fired
        apart = {(quantity, op) for op in sums for quantity in LEVELS} | {("dead", stage) for stage in channels}
        means = {key: value for key, value in values.items() if key not in apart}
        weights = {key: float(self._before[key[1]].numel() if key[0] in SHARDED else self._samples) for key in means}
        return Contribution(self._samples, means, weights, sums, channels)

    def share(self, together: Together) -> None:
        """Put the figures of all processes in the place of this one's."""
        self.probes.values.update(together.values)
        self._samples = together.samples

    def result(self) -> tuple[Graph, Ledger]:
        """The graph and ledger of the step."""
        self.abandon()
        if self.graph is None:
            raise RuntimeError("the forward pass of this step was not seen")
        readings = self.probes.read()
        sources = source_fields(self.graph, readings)
        return self.graph, make_ledger(self.graph, readings, sources, self.probes.units, self._samples, None)

    def abandon(self) -> None:
        """Take every hook off."""
        self._stack.close()
        self.probes.detach()
        if self._again is not None:
            self._again.abandon()
