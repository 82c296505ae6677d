"""Where signals meet: residual branches beside their skips, and attention, from the readings of a pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gainstage.signal import attention
from gainstage.signal.graph import NETWORK_INPUT, Graph, Operation
from gainstage.signal.prediction import Readings
from gainstage.theory import decibels

PRODUCTS = {"matmul", "rmatmul", "bmm", "baddbmm", "einsum"}  # of weights and values
BETWEEN = ("reshape", "dropout")  # what may stand between the two


@dataclass(frozen=True)
class Branch:
    """A residual addition in `stage`: RMS signals of the branch and of the skip beside it, which has fewer layers behind it
    since the two parted."""

    stage: str
    branch: float
    skip: float

    @property
    def db(self) -> float | None:
        """Branch over skip in dB; None without a skip."""
        return decibels(self.branch / self.skip) if self.skip > 0 else None


@dataclass(frozen=True)
class Attention:
    """One softmax over keys in `stage`, one number a head; of at most 64 samples and 16 queries, evenly spread.

    entropy: mean entropy of the weights, in nats. relative_entropy: over the logarithm of the number of keys allowed: 1 is
    even attention, 0 attention to a single key; None where never more than one is allowed. largest_logit, logit: the largest
    logit, and their RMS. None: not observed. One head where softmax runs over heads and samples in one dimension.

    Source: Zhai et al. 2023, "Stabilizing transformer training by preventing attention entropy collapse".
    """

    stage: str
    module: str
    entropy: tuple[float | None, ...]
    relative_entropy: tuple[float | None, ...]
    largest_logit: tuple[float | None, ...]
    logit: tuple[float | None, ...]


def branches_of(graph: Graph, readings: Readings) -> tuple[Branch, ...]:
    """All additions of two signals of which one has more layers behind it since they parted; none where both have as many."""
    if not any(("summand_signal", op.index) in readings for op in graph.operations):
        return ()
    layers: dict[int, int] = {}  # by operation, all layers behind it: one bit each
    found = []
    for op in graph.operations:
        layers[op.index] = 1 << op.stage if op.kind == "layer" else 0
        for index in op.inputs:
            layers[op.index] |= layers.get(index, 0)
        own = readings.get(("summand_signal", op.index))
        if own is None or len(op.inputs) != 2:
            continue
        mine, other = sorted(op.inputs, key=lambda index: _stage(graph, index) != op.stage)
        beside = readings.get(("signal", other))
        here, there = layers.get(mine, 0), layers.get(other, 0)
        more = (here & ~there).bit_count() - (there & ~here).bit_count()
        if beside is None or not more or not (own >= 0 and beside >= 0):
            continue
        branch, skip = (own, beside) if more > 0 else (beside, own)
        found.append(Branch(_name(graph, op), math.sqrt(branch), math.sqrt(skip)))
    return tuple(found)


def attention_of(graph: Graph, readings: Readings) -> tuple[Attention, ...]:
    """All attention: scaled dot-product attention, and softmax whose weights go into a product."""
    found = []
    for op in graph.operations:
        heads = sum(("entropy " + str(head), op.index) in readings for head in range(_most_heads(op)))
        if heads and (op.kind == "attention" or _weighs(graph, op)):
            numbers = [
                tuple(_number(readings.get((f"{quantity} {head}", op.index))) for head in range(heads))
                for quantity in attention.QUANTITIES
            ]
            found.append(Attention(_name(graph, op), op.module, *numbers))
    return tuple(found)


def _most_heads(op: Operation) -> int:
    return 0 if op.kind not in ("attention", "softmax") else op.given[-3] if len(op.given) > 3 else 1


def _weighs(graph: Graph, softmax: Operation) -> bool:
    """True where the weights go into a product, unchanged but for dropout."""
    weights = {softmax.index}
    for op in graph.operations[softmax.index + 1 :]:
        if weights & set(op.inputs):
            if op.name in PRODUCTS:
                return True
            if op.kind in BETWEEN:
                weights.add(op.index)
    return False


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _stage(graph: Graph, operation: int) -> int:
    return NETWORK_INPUT if operation < 0 else graph.operations[operation].stage


def _name(graph: Graph, op: Operation) -> str:
    return graph.stages[op.stage].name if op.stage >= 0 else "(in front)"
