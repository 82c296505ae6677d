"""Remedies that draw weights anew."""

from __future__ import annotations

from collections.abc import Sequence

from gainstage.freshness import is_untrained
from gainstage.initialization import initialize_stages, is_gate, plan_for, weight_of
from gainstage.remedies.base import CannotApply, Remedy, Transaction, Treatment, Undo, register
from gainstage.signal import Graph, Stage


def redraw_stages(treatment: Treatment, graph: Graph, stages: Sequence[Stage], transaction: Transaction) -> None:
    """Draw the weights of `stages` by the chapter's table, their values remembered in the transaction."""
    model = treatment.program.model
    parameters = dict(model.named_parameters())
    transaction.keep_values([parameters[name] for stage in stages for name in stage.layer.parameters])
    initialize_stages(model, graph, stages, generator=treatment.generator())


def to_redraw(treatment: Treatment, graph: Graph, treated: list[Stage]) -> list[Stage]:
    """The treated stages; all there are in a network that has learned nothing yet."""
    if is_untrained(treatment.program.model, graph):
        return list(graph.stages)
    names = {stage.name for stage in treated}
    return [stage for stage in graph.stages if stage.name in names]


@register
class InitializeForActivation(Remedy):
    """Draw every layer's weights with the variance that fits what follows it; safe, for it refuses trained networks."""

    name = "initialize-for-activation"
    title = "draw the weights anew for their activations (Glorot, He, LeCun)"
    safety = "safe"

    def apply(self, treatment: Treatment) -> Undo:
        model, graph = treatment.program.model, treatment.graph
        if not is_untrained(model, graph):
            raise CannotApply("the network has been trained: new weights would lose what it learned")
        stages = [s for s in graph.stages if weight_of(model, s) is not None and s.layer.fans is not None]
        if not stages:
            raise CannotApply("none of the layers has a weight that can be drawn anew")
        with Transaction() as transaction:
            redraw_stages(treatment, graph, stages, transaction)
        return transaction.undo

    def changed(self, before: Graph, after: Graph, treatment: Treatment) -> bool:
        return all(_drawn_right(treatment, after, stage) for stage in after.stages)


def _drawn_right(treatment: Treatment, graph: Graph, stage: Stage) -> bool:
    weight = weight_of(treatment.program.model, stage)
    if weight is None or stage.layer.fans is None:
        return True
    if is_gate(graph, stage, weight):
        return True
    expected = plan_for(graph, stage).variance
    error = expected * (2 / weight.numel()) ** 0.5  # standard error of a normal sample's variance
    return abs(float(weight.detach().square().mean()) - expected) < 6 * error
