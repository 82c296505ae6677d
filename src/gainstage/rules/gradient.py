"""G: the gradient on its way back."""

from __future__ import annotations

import math

from gainstage.rules.base import Context, Finding, Rule, register
from gainstage.rules.chains import (
    ERROR_DB,
    WARNING_DB,
    Expectation,
    Fall,
    describe_fall,
    expected_fall,
    hidden_path,
    largest_fall,
)
from gainstage.rules.signal import REPAIRS
from gainstage.signal import Row
from gainstage.signal.ledger import span_name
from gainstage.theory import ratio


def _observed(context: Context) -> tuple[list[Row], list[float]]:
    path = [row for row in hidden_path(context) if row.gradient_norm_db is not None]
    norms = [row.gradient_norm_db for row in path]
    return path, [norm for norm in norms if norm is not None]


def _of_norms(expected: Expectation | None, rows: list[Row]) -> Expectation | None:
    """From RMS values to norms, which count the width of the stages."""
    width = 10 * math.log10(rows[0].units / rows[-1].units)
    return None if expected is None else expected._replace(size=expected.size + width)


@register
class VanishingGradient(Rule):
    """The gradient dies on its way back to the first stages.

    ## What it does
    Reports a chain of hidden stages along which the gradient of the loss falls by more than 52 dB (a factor of 400) from
    the top towards the input and does not come back; from 104 dB on it is an error.

    ## Why it matters
    The first stages then hardly learn: with plain SGD their weights move by that factor less than those on top, and an
    adaptive optimiser amplifies noise instead.

    ## How it is measured
    Derivative of the loss with respect to each hidden stage's output, its norm over all units (so that a funnel of widths
    does not count), along the main path; compared are the maxima before and after each stage. Ratios only: the absolute
    size depends on the loss, the batch and the scale. 52 dB is a factor e^12 in power, twice the six depth scales through
    which plain gradient descent trains.

    ## What to do
    Draw the weights with the variance that fits the activation; replace logistic and tanh in deep networks by SELU, ELU
    or a leaky ReLU; normalise between the layers; or add skip connections.

    ## References
    Hochreiter 1991; Glorot & Bengio 2010; He 2015; Schoenholz 2017.
    """

    code, name, depth = "G101", "vanishing-gradient", "preflight"
    caused_by = ("I101", "S101", "S102", "S103")
    remedies = REPAIRS

    def check(self, context: Context) -> list[Finding]:
        path, norms = _observed(context)
        fall = largest_fall(norms[::-1])
        if fall is None or fall.size < WARNING_DB:
            return []
        first, last = len(path) - 1 - fall.stop, len(path) - 1 - fall.start
        rows = path[first : last + 1]
        expected = expected_fall([(row.expected_backward_gain, row.backward_gain_error) for row in rows[1:]])
        text = describe_fall(fall, _of_norms(expected, rows))
        evidence = {"fall_db": fall.size, "stages": float(len(rows) - 1)}
        severity = "error" if fall.size >= ERROR_DB else "warning"
        message = f"{span_name(rows)}: going back, the gradient falls {text}"
        return [self.finding([row.name for row in rows], message, evidence, severity)]


@register
class ExplodingGradient(Rule):
    """The gradient grows without bound on its way back, or is not a number.

    ## What it does
    Reports a chain of hidden stages along which the gradient of the loss grows by more than 52 dB (a factor of 400) from
    the top towards the input, from 104 dB on as an error; and stages whose gradient, or that of their weights, is NaN
    or infinite, always an error.

    ## Why it matters
    No single learning rate fits: what is right for the last stages tears the first ones apart, and the loss jumps or
    turns to NaN.

    ## How it is measured
    As for vanishing gradients: norm over all units of the derivative of the loss with respect to each hidden stage's
    output, along the main path, maxima before against maxima after each stage. What is not finite is followed to the first
    operation whose result is not although what it took in was, by a second pass. Two sound families grow by nature: batch
    normalisation with ReLU by 1.7 dB a stage, SELU by 0.3 dB.

    ## What to do
    Draw the weights with the variance that fits the activation; normalise between the layers; clip the gradient's norm
    where it is rare (recurrent networks).

    ## References
    Bengio 1994; Pascanu 2013; Glorot & Bengio 2010; He 2015; Yang 2019 (batch normalisation).
    """

    code, name, depth = "G102", "exploding-gradient", "preflight"
    caused_by = ("I101",)
    remedies = REPAIRS

    def check(self, context: Context) -> list[Finding]:
        broken = [r for r in hidden_path(context) if _is_broken(r.gradient) or _is_broken(r.weight_gradient)]
        if broken:
            first = context.ledger and context.ledger.non_finite
            message = f"{span_name(broken)}: the gradient is not finite{f'; first there: {first}' if first else ''}"
            return [self.finding([r.name for r in broken], message, {"stages": float(len(broken))}, "error")]
        path, norms = _observed(context)
        fall = largest_fall(norms)
        if fall is None or fall.size < WARNING_DB or math.isinf(fall.size):
            return []
        rows = path[fall.start : fall.stop + 1]
        severity = "error" if fall.size >= ERROR_DB else "warning"
        evidence = {"growth_db": fall.size, "stages": float(len(rows) - 1)}
        return [self.finding([row.name for row in rows], _growth(rows, fall), evidence, severity)]


def _is_broken(size: float | None) -> bool:
    return size is not None and not math.isfinite(size)


def _growth(rows: list[Row], fall: Fall) -> str:
    steps = len(rows) - 1
    return (
        f"{span_name(rows)}: going back, the gradient grows x{ratio(fall.size):.2g} (+{fall.size:.0f} dB) over {steps} "
        f"stage{'s' * (steps > 1)}, {fall.size / steps:+.1f} dB each"
    )
