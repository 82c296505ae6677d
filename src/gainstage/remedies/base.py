"""What a remedy is: an executable change of a program that hands back its exact undo."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from gainstage.errors import GainstageError
from gainstage.program import Program
from gainstage.signal import Graph, Stage

Undo = Callable[[], None]
Safety = Literal["safe", "unsafe"]


class CannotApply(GainstageError):
    """A remedy does not fit this program; the message says why, and where it can, which code to change by hand."""


@dataclass(frozen=True)
class Treatment:
    """What a remedy is asked to do: on this program and its graph, for these stages (by name), with this seed."""

    program: Program
    graph: Graph
    where: tuple[str, ...]
    seed: int = 0

    @property
    def stages(self) -> list[Stage]:
        """The stages concerned; all of them when `where` is empty."""
        return [s for s in self.graph.stages if not self.where or s.name in self.where]

    @property
    def hidden(self) -> list[Stage]:
        """All stages but the one that puts out."""
        return [s for s in self.graph.stages if s.index != self.graph.output_stage]

    def generator(self) -> torch.Generator:
        """A generator of this treatment's seed."""
        return torch.Generator().manual_seed(self.seed)


class Remedy(ABC):
    """One kind of change. safe: nothing learned is lost and the function family stays; unsafe: anything else."""

    name: ClassVar[str]
    title: ClassVar[str]
    safety: ClassVar[Safety]

    @abstractmethod
    def apply(self, treatment: Treatment) -> Undo:
        """Change the program in place and return what undoes it exactly; raises CannotApply before changing anything."""

    @abstractmethod
    def changed(self, before: Graph, after: Graph, treatment: Treatment) -> bool:
        """True when the graph and weights after the change show what the remedy claims to have changed."""


REGISTRY: dict[str, type[Remedy]] = {}


def register(remedy: type[Remedy]) -> type[Remedy]:
    """Class decorator: enters a remedy under its name."""
    if remedy.name in REGISTRY:
        raise ValueError(f"remedy {remedy.name} is registered already")
    REGISTRY[remedy.name] = remedy
    return remedy


class Transaction:
    """Collects the undo of each single edit, so that all of them can be taken back, the last one first. As a context
    manager it takes them back when something is raised inside."""

    def __init__(self) -> None:
        self._undos: list[Undo] = []

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is not None:
            self.undo()

    def keep_values(self, parameters: Iterable[nn.Parameter]) -> None:
        """Remember the values of parameters that are about to be drawn anew."""
        for parameter in parameters:
            copy = parameter.detach().clone()
            self._undos.append(lambda p=parameter, c=copy: _write(p, c))

    def replace_module(self, model: nn.Module, path: str, new: nn.Module) -> None:
        """Put `new` in the place of the submodule at `path`, wherever in the model that module is used."""
        old = model.get_submodule(path)
        new.train(old.training)
        places = [(p, name) for p in model.modules() for name, child in p._modules.items() if child is old]
        for parent, name in places:
            parent._modules[name] = new
            self._undos.append(lambda p=parent, n=name: p._modules.__setitem__(n, old))

    def on_undo(self, undo: Undo) -> None:
        """Remember any other way back."""
        self._undos.append(undo)

    def undo(self) -> None:
        """Take every edit back, in reverse order."""
        while self._undos:
            self._undos.pop()()


def _write(parameter: nn.Parameter, values: torch.Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(values)
