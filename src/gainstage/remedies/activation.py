"""Remedies that put another activation in the hidden stages."""

from __future__ import annotations

from typing import ClassVar

from gainstage.nn import activation as make_activation
from gainstage.remedies.base import CannotApply, Remedy, Transaction, Treatment, Undo, register
from gainstage.remedies.initialization import redraw_stages, to_redraw
from gainstage.signal import Graph, Operation, Stage, trace


class ReplaceActivation(Remedy):
    """Another activation in all hidden stages that share the one at fault, and the weights that fit it."""

    safety = "unsafe"
    activation: ClassVar[str]

    def apply(self, treatment: Treatment) -> Undo:
        stages = self._stages(treatment)
        modules = [activation_module(treatment, stage) for stage in stages]
        with Transaction() as transaction:
            for path in dict.fromkeys(modules):
                transaction.replace_module(treatment.program.model, path, make_activation(self.activation))
            graph = trace(treatment.program.model, treatment.program.source.sample(8, treatment.seed)[0])
            redraw_stages(treatment, graph, to_redraw(treatment, graph, stages), transaction)
        return transaction.undo

    def _stages(self, treatment: Treatment) -> list[Stage]:
        concerned = [s for s in treatment.stages if s in treatment.hidden and s.activation is not None]
        names = {s.activation.name for s in concerned if s.activation is not None}
        stages = [s for s in treatment.hidden if s.activation is not None and s.activation.name in names]
        if not stages or names == {self.activation}:
            raise CannotApply(f"no hidden stage has another activation than {self.activation}")
        return stages

    def changed(self, before: Graph, after: Graph, treatment: Treatment) -> bool:
        names = {s.name for s in self._stages(Treatment(treatment.program, before, treatment.where))}
        now = [s.activation for s in after.stages if s.name in names]
        return all(a is not None and a.name == self.activation for a in now)


@register
class UseSelu(ReplaceActivation):
    """SELU with LeCun weights: keeps mean 0 and variance 1 in a plain network of any depth."""

    name, activation = "use-selu", "selu"
    title = "SELU with LeCun weights in the hidden stages"


@register
class UseElu(ReplaceActivation):
    """ELU with He weights."""

    name, activation = "use-elu", "elu"
    title = "ELU with He weights in the hidden stages"


def activation_module(treatment: Treatment, stage: Stage) -> str:
    """Path of the module that is nothing but the stage's activation; CannotApply, with the change to make by hand, where
    the activation is called as a function."""
    op = stage.first("activation")
    assert op is not None
    module = treatment.program.model.get_submodule(op.module)
    alone = not list(module.children()) and not list(module.parameters(recurse=False))
    if alone and op.module and _runs_only(treatment.graph, op):
        return op.module
    where = f"{type(module).__name__}.forward" + (f" (module {op.module})" if op.module else "")
    raise CannotApply(
        f"the {op.name} behind {stage.name} is called as a function in {where}: it cannot be replaced from outside; "
        f"make it a module (self.activation = nn.{_module_name(op.name)}()) or change that call by hand"
    )


def _runs_only(graph: Graph, op: Operation) -> bool:
    return all(other.name == op.name for other in graph.operations if other.module == op.module)


def _module_name(name: str) -> str:
    return type(make_activation(name)).__name__
