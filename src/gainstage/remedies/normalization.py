"""Remedies that insert normalisation."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn
from torch.optim import Optimizer

from gainstage.errors import BadInput
from gainstage.nn import batch_norm_after
from gainstage.remedies.activation import activation_module
from gainstage.remedies.base import CannotApply, Remedy, Transaction, Treatment, Undo, register
from gainstage.remedies.initialization import redraw_stages, to_redraw
from gainstage.signal import Graph, Stage


@register
class InsertBatchNormalization(Remedy):
    """Batch normalisation between each hidden layer and its activation; the layer's bias, which it makes useless, goes.

    No existing parameter is renamed: the activation's place is taken by a pair (normalization, activation). The weights
    are drawn anew for their activations.
    """

    name = "insert-batch-normalization"
    title = "batch normalisation in front of the hidden activations"
    safety = "unsafe"

    def apply(self, treatment: Treatment) -> Undo:
        model = treatment.program.model
        stages = _targets(treatment)
        plan = [(stage, activation_module(treatment, stage), _norm(model, stage)) for stage in stages]
        if len({path for _, path, _ in plan}) < len(plan):
            raise CannotApply("several stages share one activation module; give each stage its own")
        with Transaction() as transaction:
            redraw_stages(treatment, treatment.graph, to_redraw(treatment, treatment.graph, stages), transaction)
            for stage, path, norm in plan:
                pair = nn.Sequential(OrderedDict(normalization=norm, activation=model.get_submodule(path)))
                transaction.replace_module(model, path, pair)
                _drop_bias(model.get_submodule(stage.layer.module), transaction)
                _train(treatment.program.optimizer, norm, transaction)
        return transaction.undo

    def changed(self, before: Graph, after: Graph, treatment: Treatment) -> bool:
        names = {s.name for s in _targets(Treatment(treatment.program, before, ()))}
        return all(s.first("normalization") is not None for s in after.stages if s.name in names)


def _targets(treatment: Treatment) -> list[Stage]:
    stages = [s for s in treatment.hidden if s.first("activation") is not None and s.first("normalization") is None]
    if not stages:
        raise CannotApply("every hidden stage is normalised already, or has no activation")
    return stages


def _norm(model: nn.Module, stage: Stage) -> nn.Module:
    try:
        return batch_norm_after(model.get_submodule(stage.layer.module))
    except BadInput as error:
        raise CannotApply(str(error)) from error


def _drop_bias(layer: nn.Module, transaction: Transaction) -> None:
    bias = layer._parameters.get("bias")
    if bias is not None:
        layer._parameters["bias"] = None
        transaction.on_undo(lambda: layer._parameters.__setitem__("bias", bias))


def _train(optimizer, norm: nn.Module, transaction: Transaction) -> None:
    """Hand the new parameters to an optimiser that exists already."""
    if isinstance(optimizer, Optimizer):
        members = optimizer.param_groups[0]["params"]
        kept = list(members)
        members.extend(norm.parameters())
        transaction.on_undo(lambda: members.__setitem__(slice(None), kept))
