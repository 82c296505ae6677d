"""One step of a user's training under observation: forward, backward, update."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gainstage.monitor.distributed import LEVELS, Contribution, Sums, Together, fired, local, sums_of
from gainstage.monitor.fuses import Fuses
from gainstage.monitor.guarded import GuardedTracer
from gainstage.monitor.reading import Measured
from gainstage.monitor.recomputation import Recomputation
from gainstage.monitor.scaling import Scaling
from gainstage.program import tensors_in
from gainstage.signal import NETWORK_INPUT, Graph, Operation
from gainstage.signal.operations import RECTIFIERS
from gainstage.signal.probes import Probes
from gainstage.signal.replay import Replay, Script
from gainstage.signal.values import Key

# another watch may trace the pass around this one: what is done inside is not its
unseen = torch._C.DisableTorchFunction
MOST_READ = 2**13  # elements of one tensor that are read where a script is followed, about
# read from the optimiser's side, where a process may have a part of a weight only
SHARDED = ("weight_gradient", "update")


class GuardedProbes(Probes):
    """Probes whose errors never reach the training they watch: what failed is not observed, and told by the fuses."""

    def __init__(self, fuses: Fuses, most: int | None = None):
        super().__init__(most=most, thorough=False)
        self.fuses = fuses
        self.in_half = False  # of float16, which overflows
        self.sums: dict[int, Sums] | None = None  # where several processes measure together
        self.fired: dict[int, Tensor] = {}

    def probe(self, quantity: str) -> AbstractContextManager[Any]:
        return self.fuses.guard(f"the probe of {quantity}")

    def _guarded(self, what: str, action: Callable[..., None], *arguments: Any) -> None:
        try:  # not by `probe`: this runs at every operation
            with unseen():
                action(*arguments)
        except Exception as error:
            self.fuses.blow(f"the probe of {what}", error)

    def stage_output(self, operation: int, stage: int, tensor: Tensor) -> None:
        self.in_half = self.in_half or tensor.dtype == torch.float16
        self._guarded("outputs", super().stage_output, operation, stage, tensor)
        if self.sums is not None and operation in self.units and operation not in self.sums:
            self.sums[operation] = sums_of(tensor)

    def layer(self, operation: Operation, weight: Tensor | None, bias: Tensor | None) -> None:
        self._guarded("layers", super().layer, operation, weight, bias)

    def normalization(self, operation: Operation, scale: Tensor | None, shift: Tensor | None) -> None:
        self._guarded("normalization", super().normalization, operation, scale, shift)

    def activation(self, operation: Operation, before: Tensor) -> None:
        self._guarded("saturation", super().activation, operation, before)

    def activated(self, operation: Operation, after: Tensor) -> None:
        self._guarded("dead units", super().activated, operation, after)
        if self.sums is not None and operation.name in RECTIFIERS and after.ndim > 1:
            self.fired[operation.stage] = fired(after, self.channel_dims.get(operation.stage, -1))

    def constant(self, operation: Operation, tensor: Tensor) -> None:
        self._guarded("constants", super().constant, operation, tensor)

    def taken(self, operation: Operation, tensors: Sequence[Tensor]) -> None:
        self._guarded("sums and attention", super().taken, operation, tensors)

    def gradient(self, operation: int, gradient: Tensor) -> None:
        self._guarded("gradient", super().gradient, operation, gradient)


class Recording:
    """Measures the model's next forward pass, the backward pass behind it, and the optimiser's step.

    script: of an earlier pass, to follow; the pass is traced anew without one, and where it does not fit the inputs. A pass
    that follows a script is read in part: a few thousand numbers of each tensor, evenly spread. together: other processes
    measure the same step.
    """

    def __init__(
        self, model: nn.Module, inputs: Any, fuses: Fuses, script: Script | None = None, together: bool = False
    ):
        self.graph: Graph | None = None
        self.script = script if script is not None and script.fits(inputs) else None
        self.probes = GuardedProbes(fuses, None if self.script is None else MOST_READ)
        self.probes.sums = {} if together else None
        self._model = model
        self._stack = ExitStack()
        self._before: dict[int, Tensor] = {}
        self._graded: set[int] = set()  # weights whose gradients are known
        self._scale = 1.0
        self._again: Recomputation | None = None
        tensors = tensors_in(inputs)
        self._samples = len(tensors[0]) if tensors and tensors[0].ndim else 0
        with unseen():
            for number, tensor in enumerate(tensors):
                self.probes.stage_output(NETWORK_INPUT - number, NETWORK_INPUT, tensor.detach())
        if self.script is not None:
            self._mode = Replay(self.script, self.probes)
            self._stack.enter_context(self._mode)
        else:
            self._mode = GuardedTracer(model, self.probes)
            self._stack.enter_context(self._mode.of(model, inputs))

    def forward_done(self, output: Any) -> bool:
        """The forward pass has ended with `output`: whether it can be read. It cannot where it did not follow its script.
        Raises what the tracing raised on the way."""
        self._stack.close()
        if self._mode.error is not None:
            raise self._mode.error
        if isinstance(self._mode, GuardedTracer):
            with unseen():
                self.graph = self._mode.finish(output)
            self._look_again(self._mode, self.graph)
        elif self.script is not None and self._mode.followed:
            self.graph = self.script.graph
        else:
            self.script = None
        return self.graph is not None

    def _look_again(self, tracer: GuardedTracer, graph: Graph) -> None:
        """Keep the script for the next pass, but for networks in which other things happen than the model's own calls: those
        with reentrant checkpoints, whose gradients come from a pass within the backward pass, and those with sharded weights."""
        if tracer.blind and torch.is_grad_enabled():
            blind = [graph.operations[index] for index in tracer.blind]
            self._again = Recomputation(self._model, blind, self.probes.gradient, self.probes.fuses)
        elif self.probes.weights_last:
            self.script = tracer.script(graph)

    def backward_begun(self) -> None:
        """A backward pass has come to the output."""
        if self._again is not None:
            self._again.begun = True

    def unscale(self, scale: float) -> None:
        """Take the scale of the loss out of the gradients that were read."""
        self._scale = scale

    def before_step(self, optimizer: Optimizer, scaling: Scaling) -> None:
        """An optimiser is about to change weights: the gradients that it takes are complete. What others have taken before
        it in this step is known already."""
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        weights = self._weights()
        graded = {stage: weight.grad for stage, weight in weights.items() if weight.grad is not None}
        mine = {stage: grad for stage, grad in graded.items() if id(weights[stage]) in own}
        theirs = {stage: grad for stage, grad in graded.items() if stage not in mine and stage not in self._graded}
        self._graded |= graded.keys()
        with self.probes.probe("weight gradient"):
            for gradients, scale in ((mine, scaling.left), (theirs, scaling.scale)):
                self.probes.add_powers("weight_gradient", self._parts(gradients), scale)
        if not self._before:
            self.probes.read_weights()
            with self.probes.probe("update"):
                self._before = {stage: part.clone() for stage, part in self._parts(weights).items()}

    def stepped(self) -> None:
        """An optimiser has changed the weights."""
        with self.probes.probe("update"):
            now = self._parts(self._weights())
            changes = {stage: now[stage] - before for stage, before in self._before.items() if stage in now}
            self.probes.add_powers("update", changes)

    def _parts(self, tensors: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """What is read of weights or their gradients; this process's part where they are sharded."""
        return {stage: self.probes.rows(local(tensor)) for stage, tensor in tensors.items()}

    def _weights(self) -> dict[int, nn.Parameter]:
        """The layers' weights as the model has them now: those of the forward pass are gone where they are sharded."""
        if self.probes.weights_last:
            return {stage: w for stage, w in self.probes.weights.items() if isinstance(w, nn.Parameter)}
        parameters = dict(self._model.named_parameters())
        names = {stage.index: stage.layer.weight for stage in self.graph.stages} if self.graph is not None else {}
        return {stage: parameters[name] for stage, name in names.items() if name in parameters}

    @cached_property
    def readings(self) -> dict[Key, float]:
        """The numbers of the step; RuntimeError where its forward pass was not seen."""
        self.abandon()
        if self.graph is None:
            raise RuntimeError("the forward pass of this step was not seen")
        readings = self.probes.read()
        for key in readings:
            if key[0] == "gradient":
                readings[key] /= self._scale**2
        return readings

    def contribution(self) -> Contribution:
        """What the other processes need of this one."""
        sums, channels = self.probes.sums or {}, self.probes.fired
        apart = {(quantity, op) for op in sums for quantity in LEVELS} | {("dead", stage) for stage in channels}
        kept = {key: value for key, value in self.readings.items() if key not in apart}
        device = next(iter(sums.values())).first.device if sums else None
        numbers = torch.tensor(list(kept.values()), dtype=torch.float64, device=device)
        sizes = {key: self._before[key[1]].numel() if key[0] in SHARDED else self._samples for key in kept}
        weights = {key: float(size) for key, size in sizes.items()}
        return Contribution(self._samples, dict(zip(kept, numbers, strict=True)), weights, sums, channels)

    def share(self, together: Together) -> None:
        """Put the figures of all processes in the place of this one's."""
        numbers = torch.stack([value.double() for value in together.values.values()]).tolist()
        self.readings.update(zip(together.values, numbers, strict=True))
        self._samples = together.samples

    def result(self) -> Measured:
        """What was measured."""
        readings, graph = self.readings, self.graph
        assert graph is not None
        return Measured(graph, tuple(readings), array("d", readings.values()), self.probes.units, self._samples)

    def abandon(self) -> None:
        """Take every hook off."""
        self._stack.close()
        self.probes.detach()
        if self._again is not None:
            self._again.abandon()
