"""Probes: what is read off tensors while a pass runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gainstage.signal import attention, statistics
from gainstage.signal import operations as ops
from gainstage.signal.graph import Operation
from gainstage.signal.observer import Observer
from gainstage.signal.statistics import Stack
from gainstage.signal.values import MOST, Key, Stacks, Values

OF_UNITS = ("signal", "offset", "similarity")
OF_HALVES = ("underflow", "overflow")
OF_CHANNELS = ("spread", "still", "zero", "kurtosis", "outliers")


@dataclass
class WeightProbes(Observer):
    """Reads the sizes of weights and constants during one pass; keeps numbers on their device until `read`.

    most: elements of a tensor that are read at most, about, evenly spread: of a weight rows (units), of activations positions,
    and samples where there are none; None: all.
    """

    most: int | None = None
    values: Values = field(default_factory=Values)
    channel_dims: dict[int, int] = field(default_factory=dict)
    channels: dict[int, int] = field(default_factory=dict)
    weights: dict[int, Tensor] = field(default_factory=dict)
    vectors: dict[str, dict[int, Tensor]] = field(default_factory=lambda: {"bias": {}, "scale": {}, "shift": {}})
    _read: set[int] = field(default_factory=set)  # stages whose weights were

    def probe(self, quantity: str) -> AbstractContextManager[Any]:
        """Around the working out of a quantity, for those who want to know of its errors."""
        return nullcontext()

    def layer(self, operation: Operation, weight: Tensor | None, bias: Tensor | None) -> None:
        self.channel_dims[operation.stage] = operation.channel_dim
        if weight is None:
            return
        self.weights[operation.stage] = weight
        if operation.units:
            self.channels[operation.stage] = operation.units
        if bias is not None:
            self.vectors["bias"][operation.stage] = bias
        if not self.weights_last:
            self.read_weights()

    def normalization(self, operation: Operation, scale: Tensor | None, shift: Tensor | None) -> None:
        for quantity, tensor in (("scale", scale), ("shift", shift)):
            if tensor is not None:
                self.vectors[quantity][operation.index] = tensor
        if not self.weights_last:
            self.read_weights()

    def constant(self, operation: Operation, tensor: Tensor) -> None:
        values = tensor.detach().float()
        if "div" in operation.name:
            values = values.reciprocal()
        places = len(operation.given) > 2 and tensor.ndim > 1 and tensor.shape[-2] > 1
        self._add("constant", operation.index, statistics.mean_square(values))
        self._add("constant_mean", operation.index, -values.mean() if "sub" in operation.name else values.mean())
        self._add("constant_by_position", operation.index, values.new_tensor(float(places)))

    def read_weights(self) -> None:
        """Read the sizes of the weights that the pass has used since the last call, as they are now."""
        with self.probe("weight"):
            unread = {stage: self.rows(weight) for stage, weight in self.weights.items() if stage not in self._read}
            self._read |= unread.keys()
            self.add_powers("weight", unread)
        for quantity, vectors in self.vectors.items():
            with self.probe(quantity):
                for places, tensors in _grouped(vectors, lambda tensor: (tensor.shape, tensor.device)):
                    stack = torch.stack(tensors).detach().float().flatten(1)
                    self.values.add(quantity, places, stack.square().mean(1))
                    self.values.add(f"{quantity}_mean", places, stack.mean(1))
            vectors.clear()

    def rows(self, weight: Tensor) -> Tensor:
        """Those rows of a weight, or of its gradient, that are read."""
        weight = weight.detach()
        return weight if self.most is None else weight[:: math.ceil(weight.numel() / self.most)]

    def read(self) -> dict[Key, float]:
        """All values, moved from a device in one transfer; none from a device that has no values."""
        return self.values.read()

    def _add(self, quantity: str, place: int, value: Tensor) -> None:
        self.values.add(quantity, (place,), value.reshape(1))

    def add_powers(self, quantity: str, tensors: Mapping[int, Tensor], scale: float = 1.0) -> None:
        """Mean squares of tensors that were multiplied by `scale`."""
        for places, members in _grouped(tensors, lambda tensor: tensor.device):
            powers = statistics.mean_squares(members)
            self.values.add(quantity, places, powers if scale == 1 else powers / scale**2)


def _grouped(tensors: Mapping[int, Tensor], key: Callable[[Tensor], Any]) -> list[tuple[list[int], list[Tensor]]]:
    groups: dict[Any, tuple[list[int], list[Tensor]]] = {}
    for place, tensor in tensors.items():
        places, members = groups.setdefault(key(tensor), ([], []))
        places.append(place)
        members.append(tensor)
    return list(groups.values())


@dataclass
class Probes(WeightProbes):
    """Watches one pass as the tracer's observer, forward and backward.

    thorough: also what costs more, the effective rank of the outputs and the split of the gradients.
    """

    thorough: bool = True
    units: dict[int, int] = field(default_factory=dict)
    handles: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._outputs = Stacks(self._read_outputs)
        self._summands = Stacks(lambda places, stack: self._add_all(("signal",), places, stack, "summand_"))
        self._split = Stacks(self._read_split_gradients)
        self._gradients: dict[int, Tensor] = {}
        self._elements = 0

    def stage_output(self, operation: int, stage: int, tensor: Tensor) -> None:
        if operation in self.units or not tensor.is_floating_point() or tensor.ndim < 1 or len(tensor) < 2:
            return
        self.units[operation] = math.prod(tensor.shape[1:])
        channel_dim = max(self.channel_dims.get(stage, 0) - 1, -1)  # the units have no dimension of samples
        read = tensor.unsqueeze(1) if tensor.ndim < 2 else tensor  # of one number a sample that is the unit
        read = thinned(read, channel_dim, self.most)
        self._outputs.add(operation, read, (self.channels.get(stage), channel_dim))
        if tensor.requires_grad:
            self.handles.append(tensor.register_hook(self._gradient_probe(operation)))

    def _read_outputs(self, places: Sequence[int], stack: Stack) -> None:
        self._add_all(OF_UNITS, places, stack)
        if stack.channels:
            self._add_all(OF_CHANNELS, places, stack)
        if statistics.is_half(stack.values):
            self._add_all(OF_HALVES, places, stack)
        if self.thorough:
            self._add_all(("effective_rank",), places, stack)
        if stack.has_positions:
            with self.probe("positions"):
                for quantity, gaps in zip(("far", "far_across"), stack.far_gaps, strict=True):
                    self.values.add(quantity, places, gaps)

    def _add_all(self, quantities: Sequence[str], places: Sequence[int], stack: Stack, prefix: str = "") -> None:
        for quantity in quantities:
            with self.probe(f"{prefix}{quantity}"):
                self.values.add(f"{prefix}{quantity}", places, getattr(stack, quantity))

    def _gradient_probe(self, operation: int):
        return lambda gradient: self.gradient(operation, gradient)

    def gradient(self, operation: int, gradient: Tensor) -> None:
        """The gradient with respect to an operation's output has arrived."""
        if self.thorough:
            self._split.add(operation, gradient.unsqueeze(1) if gradient.ndim < 2 else gradient, (None, -1))
            return
        self._gradients[operation] = gradient
        self._elements += gradient.numel()
        if self._elements >= MOST:
            self._read_gradients()

    def _read_gradients(self) -> None:
        gradients, self._gradients, self._elements = self._gradients, {}, 0
        with self.probe("gradient"):
            self.add_powers("gradient", gradients)
        for place, gradient in gradients.items():
            if statistics.is_half(gradient):
                self._add_all(OF_HALVES, (place,), Stack(gradient.unsqueeze(0)), "gradient_")

    def _read_split_gradients(self, places: Sequence[int], stack: Stack) -> None:
        with self.probe("gradient"):
            self.values.add("gradient", places, stack.level)
        self._add_all(OF_UNITS, places, stack, "gradient_")
        if statistics.is_half(stack.values):
            self._add_all(OF_HALVES, places, stack, "gradient_")

    def activation(self, operation: Operation, before: Tensor) -> None:
        if operation.activation is not None and operation.activation.saturates:
            share = statistics.saturated_share(before, operation.activation.responsive)
            self._add("saturated", operation.stage, share)

    def activated(self, operation: Operation, after: Tensor) -> None:
        if operation.name in ops.RECTIFIERS and after.ndim > 1:
            first = self.channel_dims.get(operation.stage, -1) == 1 and after.ndim > 2
            looked_at = thinned(after, 0, self.most) if first else after
            self._add("dead", operation.stage, statistics.dead_share(looked_at, 1 if first else -1))

    def taken(self, operation: Operation, tensors: Sequence[Tensor]) -> None:
        first = tensors[0]
        if not first.is_floating_point() or first.ndim < 2 or len(first) < 2:
            return
        if operation.kind == "add":
            channel_dim = max(self.channel_dims.get(operation.stage, 0) - 1, -1)
            self._summands.add(operation.index, thinned(first, channel_dim, self.most), (None, -1))
        elif operation.name == "scaled_dot_product_attention" and len(tensors) > 1 and first.ndim > 2:
            settings = operation.settings
            mask = tensors[2] if len(tensors) > 2 else None
            causal, scale = bool(settings.get("is_causal")), settings.get("scale")
            self._add_by_head(operation, attention.logits_of(first, tensors[1], mask, causal, scale))
        elif operation.kind == "softmax" and first.ndim > 2 and settings_dim(operation) == first.ndim - 1:
            self._add_by_head(operation, attention.some_logits(first))

    def _add_by_head(self, operation: Operation, logits: Tensor) -> None:
        for quantity, values in attention.by_head(logits).items():
            for head, value in enumerate(values):
                self._add(f"{quantity} {head}", operation.index, value)

    def weight_gradients(self, gradients: Mapping[int, Tensor]) -> None:
        """Take in the gradients of the layers' weights, keyed by the weights' identity."""
        found = {stage: self.rows(gradients[id(w)]) for stage, w in self.weights.items() if id(w) in gradients}
        self.add_powers("weight_gradient", found)

    def read(self) -> dict[Key, float]:
        self._outputs.flush()
        self._summands.flush()
        self._split.flush()
        self._read_gradients()
        return super().read()

    def detach(self) -> None:
        """Take every hook off and let go of the weights."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.weights.clear()
        for vectors in self.vectors.values():
            vectors.clear()


FEWEST = 32  # samples that are always read


def settings_dim(operation: Operation) -> int | None:
    """Along which dimension an operation runs, counted from the first; None where that is not known."""
    dim = operation.settings.get("dim")
    return dim % len(operation.given) if isinstance(dim, int) else None


def thinned(tensor: Tensor, channel_dim: int, most: int | None) -> Tensor:
    """Of a tensor (samples, *units) at most about `most` elements: all samples and channels and evenly spread positions, or,
    without positions, evenly spread samples, at least 32."""
    if most is None or tensor.numel() <= most:
        return tensor
    if tensor.ndim < 3:
        return tensor[:: max(min(tensor.numel() // most, len(tensor) // FEWEST), 1)]
    first = channel_dim == 0
    positions = tensor.flatten(2) if first else tensor.flatten(1, -2)
    count = positions.shape[2 if first else 1]
    step = min(math.ceil(tensor.numel() / most), count)
    step = min(statistics.coprime_step(step, tensor.shape[-1 if first else -2]), count)
    return (positions[:, :, ::step] if first else positions[:, ::step]).contiguous()
