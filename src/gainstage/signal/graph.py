"""The graph of stages: what one forward pass of a network really did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gainstage.signal.functions import activation_in
from gainstage.signal.operations import Kind
from gainstage.theory import Activation, Fans
from gainstage.theory.composition import Step

NETWORK_INPUT = -1  # the stage in front of the first layer; the producer of the network's first input, -2 of the second


@dataclass(frozen=True)
class Operation:
    """One torch function call that carries signal.

    index: order of execution. module: path of the module it ran in. sources: for each tensor that carries signal among
    its arguments, the operation that produced it (negative: from outside) and which of its outputs that is. sizes: elements
    of each of them. constants: tensors among its arguments that carry no signal and are no weights of a layer or a
    normalisation. parameters: names of the model's parameters among its arguments. weight: which of them is the
    layer's weight itself; empty where that is computed. settings: its arguments that are numbers or text. given: shape of
    its first input. shape: of its output; outputs: how many it has. call: what it computes, number by number. channel_dim:
    where a layer's output has its units (its channels), of which there are `units`; 0 where the weight does not tell.
    """

    index: int
    name: str
    kind: Kind
    module: str
    stage: int
    sources: tuple[tuple[int, int], ...]
    parameters: tuple[str, ...]
    settings: Mapping[str, Any]
    given: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    outputs: int = 1
    constants: int = 0
    call: Step | None = None
    activation: Activation | None = None
    fans: Fans | None = None
    weight: str = ""
    channel_dim: int = -1
    units: int = 0

    @property
    def inputs(self) -> tuple[int, ...]:
        """The operations that produced its data, each once."""
        return tuple(dict.fromkeys(index for index, _ in self.sources))

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

    @cached_property
    def activation(self) -> Activation | None:
        """The theory of the function behind the layer: a known one, or the user's own; None where there is none, and where
        it cannot be put together."""
        return activation_in(self.operations)

    @property
    def description(self) -> str:
        """What the stage does, in order: "linear + batch_norm + relu"."""
        shown = [op.name for op in self.operations if op.kind != "reshape"]
        return " + ".join(dict.fromkeys(shown))


@dataclass(frozen=True)
class Graph:
    """All operations of one forward pass, grouped into stages. outputs: the operations that made what the network puts out."""

    operations: tuple[Operation, ...]
    stages: tuple[Stage, ...]
    output_stage: int
    outputs: tuple[int, ...] = ()
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
        """Stage indices from the first to the one that puts out, along the skip connections that are added where there are
        some: the way that signal and gradient take when the branches beside it are silent. A concatenation is no such way:
        what it joins stands side by side."""
        path, stage = [], self.output_stage
        while stage >= 0:
            path.append(stage)
            stage = min(self.stages[stage].source, *self._added(stage))
        return tuple(reversed(path))

    def _added(self, stage: int) -> list[int]:
        """Stages whose outputs are added within a stage; its source where there is none."""
        here = self.stages[stage]
        made = [index for op in here.operations if op.kind == "add" for index in op.inputs]
        return [self._stage_of(index) for index in made if self._stage_of(index) != stage] or [here.source]

    def leaving(self, stage: int) -> int | None:
        """The operation that made the last tensor which leaves a stage; None where none does. A single number, such as a loss,
        is no signal."""
        return self._leaving.get(stage)

    def output_of(self, stage: Stage) -> int:
        """The operation whose output stands for a stage: the last that leaves it, or its last where none does."""
        last = self.leaving(stage.index)
        return stage.operations[-1].index if last is None else last

    @cached_property
    def _leaving(self) -> dict[int, int]:
        signals = {op.index for op in self.operations if op.shape}
        last = {self._stage_of(index): index for index in sorted(self.outputs) if index < 0 or index in signals}
        for op in self.operations:
            for index in signals.intersection(op.inputs):
                if self._stage_of(index) != op.stage:
                    last[self._stage_of(index)] = max(index, last.get(self._stage_of(index), index))
        return last

    def _stage_of(self, operation: int) -> int:
        return NETWORK_INPUT if operation < 0 else self.operations[operation].stage

    def consumers(self, stage: int) -> tuple[int, ...]:
        """Stages that take in the output of `stage`, as their layer's input or as a skip connection."""
        return tuple(s.index for s in self.stages if stage == s.source or stage in s.skips)
