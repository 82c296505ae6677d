"""The graph of stages: what one forward pass of a network really did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gainstage.signal.operations import Kind
from gainstage.theory import Activation, Fans

NETWORK_INPUT = -1  # the producer of tensors that come from outside; the stage in front of the first layer


@dataclass(frozen=True)
class Operation:
    """One torch function call that carries signal.

    index: order of execution. module: path of the module it ran in. inputs: indices of the operations that produced its
    data (NETWORK_INPUT for tensors from outside). parameters: names of the model's parameters among its arguments.
    weight: which of them is the layer's weight itself; empty where that is computed. settings: its arguments that are
    numbers or text. shape: of its output.
    """

    index: int
    name: str
    kind: Kind
    module: str
    stage: int
    inputs: tuple[int, ...]
    parameters: tuple[str, ...]
    settings: Mapping[str, Any]
    shape: tuple[int, ...]
    activation: Activation | None = None
    fans: Fans | None = None
    weight: str = ""

    @property
    def channel_dim(self) -> int:
        """Where a layer's output has its units: dimension 1 behind a convolution, the last one otherwise."""
        return 1 if self.name.startswith("conv") else -1

    @property
    def channels(self) -> int:
        """Number of a layer's units (of channels, for a convolution)."""
        return self.shape[self.channel_dim]


@dataclass(frozen=True)
class Stage:
    """A layer with all that follows it up to the next layer.

    module and call: path of the layer's module and how many layers had run there before; together they are its key.
    source: the stage whose output the layer takes in (NETWORK_INPUT for the network's input).
    skips: other stages whose outputs join within this stage.
    """

    index: int
    module: str
    call: int
    operations: tuple[Operation, ...]
    source: int
    skips: tuple[int, ...]

    @property
    def name(self) -> str:
        """Module path, with the call number from the second call on: "encoder.0", "encoder.0 #2"."""
        path = self.module or "(model)"
        return path if self.call == 0 else f"{path} #{self.call + 1}"

    @property
    def layer(self) -> Operation:
        """The operation with weights that opens the stage."""
        return self.operations[0]

    def first(self, kind: Kind) -> Operation | None:
        """The first operation of a kind in the stage."""
        return next((op for op in self.operations if op.kind == kind), None)

    @property
    def activation(self) -> Activation | None:
        """The theory of the stage's activation, where it has a known one."""
        op = self.first("activation")
        return None if op is None else op.activation

    @property
    def description(self) -> str:
        """What the stage does, in order: "linear + batch_norm + relu"."""
        shown = [op.name for op in self.operations if op.kind != "reshape"]
        return " + ".join(dict.fromkeys(shown))


@dataclass(frozen=True)
class Graph:
    """All operations of one forward pass, grouped into stages."""

    operations: tuple[Operation, ...]
    stages: tuple[Stage, ...]
    output_stage: int
    loss: tuple[str, ...] = field(default=())

    @property
    def unknown(self) -> tuple[Operation, ...]:
        """Operations that Gainstage did not understand."""
        return tuple(op for op in self.operations if op.kind == "unknown")

    @property
    def coverage(self) -> str:
        """For example "41 of 43 operations understood"."""
        total = len(self.operations)
        return f"{total - len(self.unknown)} of {total} operations understood"

    def main_path(self) -> tuple[int, ...]:
        """Stage indices from the first to the one that puts out, along the skip connections where there are some: the
        way that signal and gradient take when the branches beside it are silent."""
        path, stage = [], self.output_stage
        while stage >= 0:
            path.append(stage)
            here = self.stages[stage]
            stage = min(here.source, *here.skips, here.source)
        return tuple(reversed(path))

    def consumers(self, stage: int) -> tuple[int, ...]:
        """Stages that take in the output of `stage`, as their layer's input or as a skip connection."""
        return tuple(s.index for s in self.stages if stage == s.source or stage in s.skips)
