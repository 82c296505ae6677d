"""Who is told of tensors while a pass runs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gainstage.signal.graph import Operation


class Observer:
    """Told of tensors while they are intact: in-place operations may change them at once afterwards. Does nothing itself.

    weights_last: the weights of layers stay where they are during the pass; FSDP2 frees its own behind each layer.
    """

    weights_last: bool = True

    def stage_output(self, operation: int, stage: int, tensor: Tensor) -> None:
        """`tensor`, made by the operation of that number, leaves that `stage`."""

    def layer(self, operation: Operation, weight: Tensor | None, bias: Tensor | None) -> None:
        """A layer is about to run with these weights."""

    def layer_output(self, operation: Operation, output: Tensor) -> None:
        """A layer has put out `output`."""

    def normalization(self, operation: Operation, scale: Tensor | None, shift: Tensor | None) -> None:
        """A normalisation is about to run with this scale and shift."""

    def constant(self, operation: Operation, tensor: Tensor) -> None:
        """A sum or a product is about to run with a tensor that carries no signal."""

    def activation(self, operation: Operation, before: Tensor) -> None:
        """An activation is about to run on `before`."""

    def activated(self, operation: Operation, after: Tensor) -> None:
        """An activation has put out `after`."""

    def taken(self, operation: Operation, tensors: Sequence[Tensor]) -> None:
        """An operation is about to run on these: a sum of two stages' outputs on the one of its own stage, an attention on
        queries, keys and a mask, where there is one, and a softmax on what it takes in."""
