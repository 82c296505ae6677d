"""From readings to the ledger: what was measured at every stage beside what theory expects there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gainstage.signal.graph import NETWORK_INPUT, Graph, Stage
from gainstage.signal.joints import attention_of, branches_of
from gainstage.signal.ledger import ROUNDING, Ledger, Place, Row
from gainstage.signal.prediction import Readings, Theory, theory_stage_by_stage
from gainstage.theory.field import Field
from gainstage.theory.propagation import SILENCE

FEW = 4  # as many units' worth of theory's own upper bound goes into the spread over the units
PRECISION = 0.0025  # of theory's gains: samples and positions that are not all alike, moments that were drawn


def make_ledger(
    graph: Graph,
    readings: Readings,
    sources: Mapping[int, Field] | None,
    units: Mapping[int, int],
    samples: int,
    loss: float | None,
) -> Ledger:
    """The ledger of a graph from the readings (mean squares and shares) of its stages; `sources`: the network's inputs,
    without which nothing is asked of theory."""
    theory = None if sources is None else theory_stage_by_stage(graph, readings, sources)
    rows = tuple(_row(graph, stage, readings, theory, units, samples) for stage in graph.stages)
    unknown = tuple(dict.fromkeys(f"{op.name} in {op.module or '(model)'}" for op in graph.unknown))
    source = _source_row(graph, readings, units)
    return Ledger(
        rows, source, samples, loss, graph.coverage, unknown,
        _not_finite(graph, readings), branches_of(graph, readings), attention_of(graph, readings),
    )  # fmt: skip


def _not_finite(graph: Graph, readings: Readings) -> Place | None:
    """The first stage whose output is not finite, or else the last whose gradient, or its weight's, is not. A signal of finite
    numbers whose squares are too large is infinite, not NaN."""
    stages = {graph.output_of(stage): stage for stage in graph.stages}
    for place, stage in sorted(stages.items()):
        if math.isnan(readings.get(("signal", place), 0.0)):
            broken = not math.isfinite(readings.get(("weight", stage.index), 0.0))
            tensor = (stage.layer.weight or None) if broken else None
            return Place("forward", "", stage.module, stage.call + 1, tensor=tensor)
    for place, stage in sorted(stages.items(), reverse=True):
        gradients = readings.get(("gradient", place), 0.0), readings.get(("weight_gradient", stage.index), 0.0)
        if not all(map(math.isfinite, gradients)):
            return Place("backward", "", stage.module, stage.call + 1)
    return None


def _source_row(graph: Graph, readings: Readings, units: Mapping[int, int]) -> Row | None:
    """What the first layer takes in: the network's input, or what operations in front of all layers made of it."""
    last = graph.leaving(NETWORK_INPUT)
    place = NETWORK_INPUT if last is None or ("signal", last) not in readings else last
    if ("signal", place) not in readings:
        return None
    name = "(in front)" if any(op.stage == NETWORK_INPUT for op in graph.operations) else "(input)"
    return Row(NETWORK_INPUT, name, "", units[place], **_levels(readings, place))


def _row(
    graph: Graph, stage: Stage, readings: Readings, theory: Theory | None, units: Mapping[int, int], samples: int
) -> Row:
    index, before = stage.index, stage.layer.inputs[0]
    after = graph.output_of(stage)
    dead = readings.get(("dead", index))
    return Row(
        index=index,
        name=stage.name,
        description=stage.description,
        units=units.get(after, math.prod(graph.operations[after].shape[1:])),
        gain=_ratio(readings, "signal", after, before),
        backward_gain=_ratio(readings, "gradient", before, after),
        gradient=_root(readings, "gradient", after),
        gradient_signal=_root(readings, "gradient_signal", after),
        gradient_offset=_root(readings, "gradient_offset", after),
        gradient_similarity=_number(readings, "gradient_similarity", after),
        dead=dead,
        dead_bound=None if dead is None else 3 / samples,
        constant=_constant(readings, after, dead is not None),
        saturated=readings.get(("saturated", index)) if stage.activation and stage.activation.saturates else None,
        weight=_root(readings, "weight", index),
        weight_gradient=_root(readings, "weight_gradient", index),
        update=_size_ratio(readings, index),
        **_levels(readings, after),
        **_shape(readings, after),
        **({} if theory is None else _expected(theory, stage, readings, before, after)),
    )


def _expected(theory: Theory, stage: Stage, readings: Readings, before: int, after: int) -> dict[str, float | None]:
    gain = _expected_gain(theory, stage, readings, before, after)
    return {**gain, **_expected_backward_gain(theory, readings, before, after)}


def _levels(readings: Readings, operation: int) -> dict[str, Any]:
    return {
        "signal": _root(readings, "signal", operation),
        "offset": _root(readings, "offset", operation),
        "similarity": _number(readings, "similarity", operation),
    }


def _shape(readings: Readings, operation: int) -> dict[str, float | None]:
    """How channels and samples are spread out, and whether their numbers fit their type."""
    signal, offset = (readings.get((quantity, operation), math.nan) for quantity in ("signal", "offset"))
    ranked = signal > ROUNDING**2 * offset
    plain = ("kurtosis", "outliers", "underflow", "overflow", "gradient_underflow", "gradient_overflow")
    return {
        **{quantity: _number(readings, quantity, operation) for quantity in plain},
        "effective_rank": _number(readings, "effective_rank", operation) if ranked else None,
    }


def _constant(readings: Readings, operation: int, rectified: bool) -> float | None:
    """Share of channels that do not differ between samples; zeros of a rectifier are dead instead."""
    still, zero = (readings.get((quantity, operation)) for quantity in ("still", "zero"))
    if still is None or math.isnan(readings.get(("signal", operation), 0.0)):
        return None
    if not rectified:
        return still
    return None if zero is None else still - zero


def _number(readings: Readings, quantity: str, place: int) -> float | None:
    """A reading; None where there is none, and where it could not be worked out."""
    value = readings.get((quantity, place))
    return None if value is None or math.isnan(value) else value


def _expected_gain(
    theory: Theory, stage: Stage, readings: Readings, before: int, after: int
) -> dict[str, float | None]:
    """Theory's gain of the signal for the level that really came in, and its standard error."""
    given, expected = readings.get(("signal", before)), theory.level(after)
    if given is None or not SILENCE < given < math.inf or not expected.known or ("signal", after) not in readings:
        return {}
    gain = math.sqrt(max(expected.signal, 0.0) / given)
    # units are independent draws: their spread says how far their mean may be from what theory expects of it, less surely
    # the fewer they are; what is assumed of the positions in front of a window is no better known than theory knows its levels
    spread, units = readings.get(("spread", after), math.nan), stage.layer.channels
    spread = expected.variance if math.isnan(spread) else spread + FEW / (units + FEW) * (expected.variance - spread)
    windows = any(op.kind in ("pool", "attention") for op in stage.operations)
    return {"expected_gain": gain, "gain_error": _error(gain, spread + windows * expected.variance)}


def _expected_backward_gain(theory: Theory, readings: Readings, before: int, after: int) -> dict[str, float | None]:
    """Theory's gain of the gradient for what really came back, and its standard error."""
    power, variance = theory.gradient(before) if before >= 0 else (math.nan, 0.0)
    given = readings.get(("gradient", after))
    if not given or not math.isfinite(power):
        return {}
    gain = math.sqrt(power / given)
    return {"expected_backward_gain": gain, "backward_gain_error": _error(gain, variance)}


def _error(gain: float, variance: float) -> float | None:
    """Standard error of a gain from the variance of the power's logarithm."""
    return gain * math.sqrt(variance / 4 + PRECISION**2) if math.isfinite(variance) else None


def _root(readings: Readings, quantity: str, index: int) -> float | None:
    value = readings.get((quantity, index))
    return None if value is None else math.sqrt(value) if value >= 0 else math.nan


def _ratio(readings: Readings, quantity: str, top: int, bottom: int) -> float | None:
    above, below = _root(readings, quantity, top), _root(readings, quantity, bottom)
    return None if above is None or not below else above / below


def _size_ratio(readings: Readings, index: int) -> float | None:
    update, weight = _root(readings, "update", index), _root(readings, "weight", index)
    return None if update is None or not weight else update / weight
