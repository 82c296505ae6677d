"""A whole network in theory: fields from operation to operation forward, the gradient's power from the loss back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np

from gainstage.errors import BadInput
from gainstage.theory.composition import IDENTITY
from gainstage.theory.field import Field
from gainstage.theory.operators import Edge, Layer, Operator, Pointwise

Reading: TypeAlias = tuple[float, ...]  # level and signal, powers; then, where known, the gaps of any two positions


@dataclass(frozen=True)
class Node:
    """One operation: what it does, and which operations' outputs it takes in (a negative number for a tensor from outside),
    each with the number of the output that it takes of one with several. flat: its output has no positions. parts: how many
    outputs it has, each with units of its own. selects: it hands on some of the numbers, or copies. weights: the first node
    that has a layer's weights, where it is not the only one."""

    operator: Operator
    inputs: tuple[tuple[int, int], ...]
    flat: bool = False
    parts: int = 1
    selects: bool = False
    weights: int | None = None


@dataclass(frozen=True)
class Propagation:
    """Fields behind every node: predicted, and handed on (as measured, where that is known); and the ways back."""

    predicted: tuple[Field, ...]
    fields: tuple[Field, ...]
    edges: tuple[tuple[Edge, ...], ...]


def propagate(
    nodes: Sequence[Node], sources: Mapping[int, Field], readings: Mapping[int, Reading] | None = None
) -> Propagation:
    """Fields from the `sources` (those from outside, by their negative numbers) through all nodes.

    readings: measured behind some nodes. What follows such a node is predicted from what was measured there, with the
    predicted proportions between positions, of which only those far apart are measured.
    Raises BadInput for a node that takes in what neither the sources nor the nodes before it give.
    """
    _check_sources(nodes, sources)
    predicted: list[Field] = []
    fields: list[Field] = []
    edges: list[tuple[Edge, ...]] = []
    taken: dict[tuple[int, int], Field] = {}

    def take(node: int, part: int) -> Field:
        if node < 0:
            return sources[node]
        if nodes[node].parts == 1:
            return fields[node]
        return taken.setdefault((node, part), _part(fields[node], part))

    inner = _inner(nodes, readings or {})
    for index, node in enumerate(nodes):
        inputs = [take(*source) for source in node.inputs]
        after, back = _through(node, inputs, index in inner)
        predicted.append(_settled(node, index, after, inputs))
        fields.append(_corrected(predicted[-1], node, index, (readings or {}).get(index)))
        edges.append(tuple(_shared(edge, nodes) for edge in back))
    return Propagation(tuple(predicted), tuple(fields), tuple(edges))


def _check_sources(nodes: Sequence[Node], sources: Mapping[int, Field]) -> None:
    for index, node in enumerate(nodes):
        for source, _ in node.inputs:
            if source >= index or (source < 0 and source not in sources):
                raise BadInput(f"node {index} takes in {source}, which is neither a source nor a node before it")


def _through(node: Node, inputs: Sequence[Field], inner: bool) -> tuple[Field, Sequence[Edge]]:
    bare = node.operator.composed(inputs) if inner and isinstance(node.operator, Pointwise) else None
    if bare is not None:
        return bare, []
    with np.errstate(all="ignore"):  # infinite levels are no prediction, not an error
        return node.operator.through(inputs)


def _inner(nodes: Sequence[Node], readings: Mapping[int, Reading]) -> set[int]:
    """Nodes that are only read by pointwise functions: steps of a longer function, not worth working out."""
    readers: dict[int, list[Node]] = {}
    for node in nodes:
        for index, _ in node.inputs:
            readers.setdefault(index, []).append(node)
    pointwise = {i for i, found in readers.items() if all(isinstance(r.operator, Pointwise) for r in found)}
    return pointwise - set(readings)


def _part(whole: Field, number: int) -> Field:
    """One of several outputs: as its siblings, and independent of them."""
    origins = frozenset((*origin, number) for origin in whole.origins)
    return replace(whole, origins=origins, pre=None, function=IDENTITY, gaussian=whole.straight)


def _shared(edge: Edge, nodes: Sequence[Node]) -> Edge:
    """The gradient per element of a tensor that is handed on in parts is the mean over them."""
    parts = nodes[edge.node].parts if edge.node >= 0 else 1
    return edge if parts == 1 else edge._replace(factor=edge.factor / parts)


def _settled(node: Node, index: int, after: Field, inputs: Sequence[Field]) -> Field:
    """The field numbered, with its origin, and without positions that are gone."""
    after = after.flat if node.flat and after.known else after
    if node.parts > 1 or node.selects:
        return replace(_part(after, index), node=index)
    if any(after is before for before in inputs):
        return after
    weights = index if node.weights is None else node.weights
    origins = frozenset({(weights,)}) if isinstance(node.operator, Layer) else after.origins
    return replace(after, node=index, origins=origins)


def _corrected(field: Field, node: Node, index: int, reading: Reading | None) -> Field:
    """The field brought to what was measured."""
    if reading is None:
        return field
    level, signal, *far = reading
    field = field.measured(level, signal, index, far)
    return field.flat if node.flat else field


def gradients(nodes: Propagation, powers: Mapping[int, float]) -> dict[int, tuple[float, float]]:
    """Power of the gradient with respect to the output of every node, and the variance of its logarithm.

    powers: known ones, by node: that of the network's output, to start from, and measured ones, from which the prediction
    goes on. What several readers of an output send back adds up. NaN where nothing arrives: behind no output, or a step of a
    function that was worked out as a whole. Raises BadInput for the power at a node that is not there.
    """
    missing = [node for node in powers if not 0 <= node < len(nodes.fields)]
    if missing:
        raise BadInput(f"a power is given for node {missing[0]} of a network with {len(nodes.fields)} nodes")
    arrived: dict[int, _Arrival] = {}
    found: dict[int, tuple[float, float]] = {}
    for node in range(len(nodes.fields) - 1, -1, -1):
        start = _Arrival(powers[node], 0.0) if node in powers else None
        here = arrived.get(node) or start
        found[node] = (here.power, here.relative) if here else (math.nan, 0.0)
        sent = start or here
        if sent is None:
            continue
        for edge in nodes.edges[node]:
            before = arrived.get(edge.node, _Arrival(0.0, 0.0))
            arrived[edge.node] = before.joined(sent, edge)
    found.update({node: (here.power, here.relative) for node, here in arrived.items() if node < 0})
    return found


class _Arrival(NamedTuple):
    """Power of a gradient that has arrived, and its variance."""

    power: float
    variance: float

    @property
    def relative(self) -> float:
        return self.variance / self.power / self.power if self.power > 0 else 0.0

    def joined(self, behind: _Arrival, edge: Edge) -> _Arrival:
        """With what comes along an edge from behind: of the product of the two, with a mean of zero, is left what the edge's
        finite width leaves; what is behind may err as what is here does (both came through the same layers), and then their
        errors add up."""
        share = behind.power * edge.factor
        alone, mixed = (behind.relative + edge.variance) * share * share, 2 * edge.variance * share * self.power
        alike = 2 * math.sqrt(self.variance * behind.relative) * share
        return _Arrival(self.power + share, self.variance + alone + mixed + alike)
