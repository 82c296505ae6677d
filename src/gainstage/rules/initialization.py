"""I: the weights before the first step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gainstage.freshness import is_untrained
from gainstage.initialization import scheme_of, weight_of, whole
from gainstage.rules.base import Context, Finding, Rule, register
from gainstage.rules.chains import ERROR_DB, WARNING_DB
from gainstage.rules.signal import REPAIRS, SaturatedUnits
from gainstage.signal import Stage
from gainstage.theory import Activation, moments, saturated_share, stationary_level


@dataclass(frozen=True)
class Deviation:
    """How far one layer's weights are from the chapter's table: in dB of variance, and in standard errors."""

    stage: Stage
    variance: float
    expected: float
    sigmas: float

    @property
    def decibels(self) -> float:
        """10 log10 of the ratio of variances: the gain error of the stage."""
        return 10 * math.log10(self.variance / self.expected)


@register
class InitializationDoesNotFitActivation(Rule):
    """The weights' variance is not the one that the activation behind them needs.

    ## What it does
    Compares the variance of every hidden layer's weights with the chapter's table (Glorot for none, tanh and logistic; He
    for the ReLU family; LeCun for SELU) and reports it when the errors of all stages together matter.

    ## Why it matters
    Each stage multiplies the signal by its gain, so a small error of each is raised to the power of the depth: the signal
    dies, explodes, or saturates the activations.

    ## How it is measured
    Sample variance of the weights against the table, in dB and in standard errors of the sample variance. Stages with a
    normalisation behind the layer (it undoes any scale), with a skip connection, with zero weights (gates) and the output
    stage are left out, and errors add up only along an unbroken chain of the others. It fires when they add up to 52 dB
    (twelve depth scales) or more, as an error from 104 dB on;
    for activations that saturate, too large a variance counts when theory expects a fifth of the units or more on the
    flat parts. Only for networks that look untrained: rows and columns of equal strength, as independent draws have.

    ## What to do
    Draw the weights anew: `gainstage.initialize(model, data)` does it from the traced network.

    ## References
    Glorot & Bengio 2010; He 2015; LeCun 1998; Klambauer 2017.
    """

    code, name, depth = "I101", "initialization-does-not-fit-activation", "static"
    severity = "error"
    remedies = REPAIRS

    def check(self, context: Context) -> list[Finding]:
        if not is_untrained(context.model, context.graph):
            return []
        chains = _chains(self._deviations(context))
        return [finding for chain in chains for finding in self._judge(chain)]

    def _judge(self, chain: list[Deviation]) -> list[Finding]:
        off = [d for d in chain if d.sigmas > 5 and abs(d.decibels) > 1]
        small = [d for d in off if d.decibels < 0]
        large = [d for d in off if d.decibels > 0 and not _saturates(d.stage)]
        flat = [d for d in off if d.decibels > 0 and _saturates(d.stage) and _flat_share(d) >= SaturatedUnits.limit]
        return [
            self._finding(group)
            for group in (small, large, flat)
            if abs(sum(d.decibels for d in group)) >= WARNING_DB or (group and group is flat)
        ]

    def _deviations(self, context: Context) -> list[Deviation]:
        graph, model = context.graph, context.model
        hidden = [s for s in graph.stages if s.index != graph.output_stage and not s.skips]
        plain = [s for s in hidden if s.first("normalization") is None and s.layer.fans is not None]
        found = []
        for stage in plain:
            weight = weight_of(model, stage)
            if weight is None or stage.activation is None or not 0 < moments(stage.activation).second < math.inf:
                continue
            values = whole(weight).double()
            variance = float(values.var(unbiased=False))
            if variance == 0 or stage.layer.fans is None:
                continue
            expected = scheme_of(stage).variance(stage.layer.fans)
            kurtosis = float(((values - values.mean()) ** 4).mean()) / variance**2
            error = math.sqrt(max(kurtosis - 1, 1e-3) / values.numel()) * variance
            found.append(Deviation(stage, variance, expected, abs(variance - expected) / error))
        return found

    def _finding(self, group: list[Deviation]) -> Finding:
        total = sum(d.decibels for d in group)
        worst = max(group, key=lambda d: abs(d.decibels))
        names = [d.stage.name for d in group]
        activation = worst.stage.activation.name if worst.stage.activation else "none"
        span = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        message = (
            f"stage{'s' * (len(names) > 1)} {span}: weights of variance {worst.variance:.3g} where {activation} needs "
            f"{worst.expected:.3g} ({scheme_of(worst.stage).name}): {worst.decibels:+.1f} dB, {worst.sigmas:.0f} sigma off; "
            f"{total:+.0f} dB over {len(names)} stage{'s' * (len(names) > 1)}"
        )
        evidence = {"deviation_db": worst.decibels, "total_db": total, "sigmas": worst.sigmas}
        return self.finding(names, message, evidence, "error" if abs(total) >= ERROR_DB else "warning")


def _chains(deviations: list[Deviation]) -> list[list[Deviation]]:
    """Runs of stages of which each feeds the next: what stands between two runs (a normalisation, a skip connection)
    sets the level anew."""
    chains: list[list[Deviation]] = []
    for deviation in deviations:
        if chains and chains[-1][-1].stage.index == deviation.stage.source:
            chains[-1].append(deviation)
        else:
            chains.append([deviation])
    return chains


def _saturates(stage: Stage) -> bool:
    return stage.activation is not None and stage.activation.saturates


def _flat_share(deviation: Deviation) -> float:
    """Share of units that theory expects on the flat parts, deep inside a network of such layers."""
    activation, fans = deviation.stage.activation, deviation.stage.layer.fans
    assert isinstance(activation, Activation)
    assert fans is not None
    weight_power = float(f"{fans.fan_in * deviation.variance:.2g}")  # so that equal stages are worked out once
    return saturated_share(activation, stationary_level(activation, weight_power))
