"""Probes: what is read off tensors while a pass runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gainstage.signal import operations as ops
from gainstage.signal import statistics
from gainstage.signal.graph import Operation
from gainstage.signal.trace import Observer

Key = tuple[str, int]  # quantity, and stage (of a layer and its activation) or operation (of everything else)


@dataclass
class WeightProbes(Observer):
    """Reads the sizes of weights and constants during one pass; keeps tensors on the device until `read`."""

    values: dict[Key, Tensor] = field(default_factory=dict)
    channel_dims: dict[int, int] = field(default_factory=dict)
    channels: dict[int, int] = field(default_factory=dict)
    weights: dict[int, Tensor] = field(default_factory=dict)

    def layer(self, operation: Operation, weight: Tensor | None, bias: Tensor | None) -> None:
        self.channel_dims[operation.stage] = operation.channel_dim
        if weight is None:
            return
        self.weights[operation.stage] = weight
        if operation.units:
            self.channels[operation.stage] = operation.units
        self.values["weight", operation.stage] = statistics.mean_square(weight)
        if bias is not None:
            self.values["bias", operation.stage] = statistics.mean_square(bias)
            self.values["bias_mean", operation.stage] = bias.detach().float().mean()

    def normalization(self, operation: Operation, scale: Tensor | None, shift: Tensor | None) -> None:
        for quantity, tensor in (("scale", scale), ("shift", shift)):
            if tensor is not None:
                self.values[quantity, operation.index] = statistics.mean_square(tensor)
        if shift is not None:
            self.values["shift_mean", operation.index] = shift.detach().float().mean()

    def constant(self, operation: Operation, tensor: Tensor) -> None:
        values = tensor.detach().float()
        if "div" in operation.name:
            values = values.reciprocal()
        self.values["constant", operation.index] = statistics.mean_square(values)
        self.values["constant_mean", operation.index] = -values.mean() if "sub" in operation.name else values.mean()
        places = len(operation.given) > 2 and tensor.ndim > 1 and tensor.shape[-2] > 1
        self.values["constant_by_position", operation.index] = values.new_tensor(float(places))

    def read(self) -> dict[Key, float]:
        """All values, moved from the device in one transfer; none from a device that has no values."""
        values = {key: value for key, value in self.values.items() if not value.is_meta}
        if not values:
            return {}
        packed = torch.stack([value.detach().reshape(()).float() for value in values.values()])
        return dict(zip(values, packed.tolist(), strict=True))


@dataclass
class Probes(WeightProbes):
    """Watches one pass as the tracer's observer, forward and backward."""

    units: dict[int, int] = field(default_factory=dict)
    handles: list[Any] = field(default_factory=list)

    def stage_output(self, operation: int, stage: int, tensor: Tensor) -> None:
        if not tensor.is_floating_point() or tensor.ndim < 1 or len(tensor) < 2 or ("signal", operation) in self.values:
            return
        with torch.no_grad():
            values = tensor.reshape(len(tensor), -1)  # a tensor of one number a sample has one unit
            signals, offset = statistics.unit_signals(values if tensor.ndim < 2 else tensor)
            self.values["signal", operation], self.values["offset", operation] = signals.mean(), offset
            self.values["similarity", operation] = statistics.similarity(values)
            if stage in self.channels:
                channel_dim = max(self.channel_dims[stage] - 1, -1)  # the units have no dimension of samples
                spread = statistics.relative_variance(signals, channel_dim, self.channels[stage])
                self.values["spread", operation] = spread
                if tensor.ndim > 2 and signals.shape[channel_dim] == self.channels[stage]:
                    gaps = statistics.far_gaps(tensor if channel_dim == 0 else tensor.movedim(-1, 1))
                    self.values["far", operation], self.values["far_across", operation] = gaps
        self.units[operation] = values.shape[1]
        if tensor.requires_grad:
            self.handles.append(tensor.register_hook(self._gradient_probe(operation)))

    def _gradient_probe(self, operation: int):
        return lambda gradient: self.gradient(operation, gradient)

    def gradient(self, operation: int, gradient: Tensor) -> None:
        """The gradient with respect to an operation's output has arrived."""
        self.values["gradient", operation] = statistics.mean_square(gradient)

    def activation(self, operation: Operation, before: Tensor) -> None:
        if operation.activation is not None and operation.activation.saturates:
            share = statistics.saturated_share(before, operation.activation.responsive)
            self.values["saturated", operation.stage] = share

    def activated(self, operation: Operation, after: Tensor) -> None:
        if operation.name in ops.RECTIFIERS and after.ndim > 1:
            channel_dim = self.channel_dims.get(operation.stage, -1)
            self.values["dead", operation.stage] = statistics.dead_share(after, channel_dim)

    def weight_gradients(self, gradients: dict[int, Tensor]) -> None:
        """Take in the gradients of the layers' weights, keyed by the weights' identity."""
        for stage, weight in self.weights.items():
            if id(weight) in gradients:
                self.values["weight_gradient", stage] = statistics.mean_square(gradients[id(weight)])

    def detach(self) -> None:
        """Take every hook off and let go of the weights."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.weights.clear()
