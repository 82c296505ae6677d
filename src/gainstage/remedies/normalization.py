"""Remedies that insert normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from gainstage.errors import BadInput
from gainstage.nn.edits import Edits
from gainstage.nn.flow import Flow
from gainstage.nn.insertion import insert, plan_insertions
from gainstage.nn.places import Insertion, hidden_activations
from gainstage.remedies.base import CannotApply, Remedy, Transaction, Treatment, Undo, register
from gainstage.remedies.initialization import redraw_stages, to_redraw
from gainstage.signal import Graph

SAMPLES = 8  # that the network is traced on


@register
class InsertBatchNormalization(Remedy):
    """Batch normalisation between each hidden layer and its activation, as gainstage.nn.insert_batch_norm puts it there; the
    layer's bias, which it makes useless, goes.

    No existing parameter is renamed. The weights are drawn anew for their activations.
    """

    name = "insert-batch-normalization"
    title = "batch normalisation in front of the hidden activations"
    safety = "unsafe"

    def apply(self, treatment: Treatment) -> Undo:
        program = treatment.program
        try:
            insertions = plan_insertions(program.model, program.source.sample(SAMPLES, treatment.seed)[0])
            with Transaction() as transaction:
                _redraw(treatment, insertions, transaction)
                edits = Edits()
                transaction.on_undo(edits.undo)
                insert(program.model, insertions, edits)
                for insertion in insertions:
                    _train(program.optimizer, insertion.norm, transaction)
        except BadInput as error:
            raise CannotApply(str(error)) from error
        return transaction.undo

    def changed(self, before: Graph, after: Graph, treatment: Treatment) -> bool:
        flows = [Flow(graph.operations, outputs=frozenset(graph.outputs)) for graph in (before, after)]
        left = [hidden_activations(flow) for flow in flows]
        return bool(left[0]) and not left[1]


def _redraw(treatment: Treatment, insertions: Sequence[Insertion], transaction: Transaction) -> None:
    layers = {insertion.layer for insertion in insertions}
    treated = [stage for stage in treatment.graph.stages if stage.module in layers]
    redraw_stages(treatment, treatment.graph, to_redraw(treatment, treatment.graph, treated), transaction)


def _train(optimizer: Any, norm: nn.Module, transaction: Transaction) -> None:
    """Hand the new parameters to an optimiser that exists already."""
    if isinstance(optimizer, Optimizer):
        members = optimizer.param_groups[0]["params"]
        kept = list(members)
        members.extend(norm.parameters())
        transaction.on_undo(lambda: members.__setitem__(slice(None), kept))
