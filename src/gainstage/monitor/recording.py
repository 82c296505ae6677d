"""One step of a user's training under observation: forward, backward, update."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gainstage.monitor.fuses import Fuses
from gainstage.monitor.reading import Measured
from gainstage.monitor.scaling import Scaling
from gainstage.program import tensors_in
from gainstage.signal import NETWORK_INPUT, Graph, Operation
from gainstage.signal.probes import Probes
from gainstage.signal.replay import Replay, Script
from gainstage.signal.trace import Tracer

# another watch may trace the pass around this one: what is done inside is not its
unseen = torch._C.DisableTorchFunction
MOST_READ = 2**15  # elements of one tensor that are read, about


class GuardedProbes(Probes):
    """Probes whose errors never reach the training they watch: what failed is not observed, and told by the fuses."""

    def __init__(self, fuses: Fuses):
        super().__init__(most=MOST_READ, thorough=False)
        self._fuses = fuses
        self.in_half = False  # of float16, which overflows

    def probe(self, quantity: str) -> AbstractContextManager[Any]:
        return self._fuses.guard(f"the probe of {quantity}")

    def _guarded(self, what: str, action: Callable[..., None], *arguments: Any) -> None:
        try:  # not by `probe`: this runs at every operation
            with unseen():
                action(*arguments)
        except Exception as error:
            self._fuses.blow(f"the probe of {what}", error)

    def stage_output(self, operation: int, stage: int, tensor: Tensor) -> None:
        self.in_half = self.in_half or tensor.dtype == torch.float16
        self._guarded("outputs", super().stage_output, operation, stage, tensor)

    def layer(self, operation: Operation, weight: Tensor | None, bias: Tensor | None) -> None:
        self._guarded("layers", super().layer, operation, weight, bias)

    def normalization(self, operation: Operation, scale: Tensor | None, shift: Tensor | None) -> None:
        self._guarded("normalization", super().normalization, operation, scale, shift)

    def activation(self, operation: Operation, before: Tensor) -> None:
        self._guarded("saturation", super().activation, operation, before)

    def activated(self, operation: Operation, after: Tensor) -> None:
        self._guarded("dead units", super().activated, operation, after)

    def constant(self, operation: Operation, tensor: Tensor) -> None:
        self._guarded("constants", super().constant, operation, tensor)

    def taken(self, operation: Operation, tensors: Sequence[Tensor]) -> None:
        self._guarded("sums and attention", super().taken, operation, tensors)

    def gradient(self, operation: int, gradient: Tensor) -> None:
        self._guarded("gradient", super().gradient, operation, gradient)


class GuardedTracer(Tracer):
    """A tracer whose own errors never reach the forward pass it watches: the first one is kept."""

    error: Exception | None = None
    _outcome: tuple[Any, Exception | None] | None = None

    def _run(self, func, args, kwargs) -> Any:
        try:
            result = super()._run(func, args, kwargs)
        except Exception as error:
            self._outcome = None, error
            raise
        self._outcome = result, None
        return result

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self._outcome = None
        try:
            return super().__torch_function__(func, types, args, kwargs)
        except Exception as error:
            result, raised = self._outcome or (None, None)
            if raised is error:
                raise
            self.error = self.error or error
            return result if self._outcome is not None else func(*args, **(kwargs or {}))
        finally:
            self._outcome = None


class Recording:
    """Measures the model's next forward pass, the backward pass behind it, and the optimiser's step.

    script: of an earlier pass, to follow; the pass is traced anew without one, and where it does not fit the inputs.
    """

    def __init__(self, model: nn.Module, inputs: Any, fuses: Fuses, script: Script | None = None):
        self.graph: Graph | None = None
        self.probes = GuardedProbes(fuses)
        self.script = script if script is not None and script.fits(inputs) else None
        self._stack = ExitStack()
        self._before: dict[int, Tensor] = {}
        self._graded: set[int] = set()  # weights whose gradients are known
        self._scale = 1.0
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
                self.script = self._mode.script(self.graph)
        elif self.script is not None and self._mode.followed:
            self.graph = self.script.graph
        else:
            self.script = None
        return self.graph is not None

    def unscale(self, scale: float) -> None:
        """Take the scale of the loss out of the gradients that were read."""
        self._scale = scale

    def before_step(self, optimizer: Optimizer, scaling: Scaling) -> None:
        """An optimiser is about to change weights: the gradients that it takes are complete. What others have taken before
        it in this step is known already."""
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        weights = {stage: w for stage, w in self.probes.weights.items() if isinstance(w, nn.Parameter)}
        graded = {id(w): w.grad for w in weights.values() if w.grad is not None}
        theirs = {key: grad for key, grad in graded.items() if key not in own and key not in self._graded}
        self._graded |= graded.keys()
        with self.probes.probe("weight gradient"):
            self.probes.weight_gradients({key: grad for key, grad in graded.items() if key in own}, scaling.left)
            self.probes.weight_gradients(theirs, scaling.scale)
        if not self._before:
            self.probes.read_weights()
            with self.probes.probe("update"):
                self._before = {stage: self.probes.rows(w).clone() for stage, w in weights.items()}

    def stepped(self) -> None:
        """An optimiser has changed the weights."""
        with self.probes.probe("update"):
            now = {stage: self.probes.rows(self.probes.weights[stage]) for stage in self._before}
            self.probes.updates({stage: now[stage] - before for stage, before in self._before.items()})

    def result(self) -> Measured:
        """What was measured."""
        self.abandon()
        if self.graph is None:
            raise RuntimeError("the forward pass of this step was not seen")
        readings = self.probes.read()
        for key in readings:
            if key[0] == "gradient":
                readings[key] /= self._scale**2
        return Measured(self.graph, tuple(readings), array("d", readings.values()), self.probes.units, self._samples)

    def abandon(self) -> None:
        """Take every hook off."""
        self._stack.close()
        self.probes.detach()
