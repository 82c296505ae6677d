"""Which activation for the hidden layers: the chapter's decision, with its reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from gainstage.errors import BadInput
from gainstage.nn.inspection import DENSE, DROPOUT, NORMALIZATION, SEQUENTIAL
from gainstage.nn.self_normalization import INPUTS, Clause, self_normalization

ORDER = "SELU > ELU > leaky ReLU and its variants > ReLU > tanh > logistic"
HUGE = 1_000_000  # training samples: PReLU was found better on ImageNet's 1.2 million (He 2015), overfits on small sets
ARCHITECTURE = (SEQUENTIAL, DENSE, DROPOUT, NORMALIZATION)  # what no other activation and no new weights would cure
UNSEEN = (INPUTS, "no l1, l2 or max-norm regularisation")  # a network alone does not show these


@dataclass(frozen=True)
class Recommendation:
    """An activation for the hidden layers, the initialiser that belongs to it, and why; names as in `gainstage.nn`."""

    activation: str
    initializer: str
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(
            [f"{self.activation} with {self.initializer} weights", *(f"- {text}" for text in self.reasons)]
        )


def recommend_activation(
    model: nn.Module | None = None,
    *,
    self_normalizing: bool | None = None,
    latency_matters: bool = False,
    overfits: bool = False,
    samples: int | None = None,
) -> Recommendation:
    """The activation for a network's hidden layers, by the chapter's general order and its exceptions.

    SELU where the network can normalise itself (Klambauer 2017), else ELU. What is known of the training goes before
    that: RReLU when it overfits, PReLU for HUGE training sets or larger, leaky ReLU when latency matters. Whether
    it can normalise itself is told by gainstage.nn.self_normalization, clause by clause; self_normalizing says it instead,
    and of the clauses only those that speak against a yes are listed then. What cannot be told does not stand in SELU's
    way but is listed as a condition; what holds in practice alone does.
    Raises BadInput for a model that is no nn.Module and for a number of samples below 1.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise BadInput(f"an activation is recommended for an nn.Module, got a {type(model).__name__}")
    if samples is not None and (not isinstance(samples, int) or isinstance(samples, bool) or samples < 1):
        raise BadInput(f"the training samples must be a whole number of at least 1, got {samples!r}")
    clauses = _conditions(model)
    broken = [clause for clause in clauses if clause.holds is False or (clause.holds and not clause.guaranteed)]
    possible = not broken if self_normalizing is None else self_normalizing
    activation, reason = _choose(possible, latency_matters, overfits, samples)
    listed = _told(clauses) if self_normalizing is None else _said(self_normalizing, broken)
    initializer = "lecun_normal" if activation == "selu" else "he_normal"
    return Recommendation(activation, initializer, (reason, f"general order: {ORDER}", *listed))


def _told(clauses: Sequence[Clause]) -> list[str]:
    return [f"{clause.name}: {clause.state}, {clause.reason}" for clause in clauses]


def _said(possible: bool, broken: Sequence[Clause]) -> list[str]:
    """What the user says of self-normalisation, and what was seen that speaks against it."""
    against = [f"but seen: {text}" for text in _told(broken)] if possible else []
    return [f"can normalise itself: {'yes' if possible else 'no'}, as you say", *against]


def _choose(possible: bool, latency_matters: bool, overfits: bool, samples: int | None) -> tuple[str, str]:
    """The activation and the reason that decided."""
    if overfits:
        return "rrelu", "it overfits: RReLU's random slopes regularise, and in evaluation it is as fast as a leaky ReLU"
    if samples is not None and samples >= HUGE:
        return (
            "prelu",
            f"{samples:,} training samples: enough to learn the slopes; a small set would overfit with PReLU",
        )
    if latency_matters:
        return "leaky_relu", "latency matters: a leaky ReLU has no exponential, which makes ELU and SELU slow"
    if possible:
        return "selu", "where a network can normalise itself, SELU holds mean 0 and variance 1 in all layers"
    return "elu", "where a network may fail to normalise itself, ELU is smooth where SELU has a kink, its mean near 0"


def _conditions(model: nn.Module | None) -> tuple[Clause, ...]:
    """The conditions of self-normalisation that the choice of an activation takes as given."""
    seen = () if model is None else self_normalization(model).clauses
    told = {clause.name: clause for clause in seen}
    return tuple(told.get(name, Clause(name, None, "make sure of it")) for name in (*ARCHITECTURE, *UNSEEN))
