"""S: the signal on its way forward."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gainstage.freshness import is_untrained
from gainstage.rules.base import Context, Finding, Rule, register
from gainstage.rules.chains import ERROR_DB, WARNING_DB, describe_fall, expected_fall, hidden_path, largest_fall
from gainstage.signal import Row
from gainstage.signal.ledger import span_name

REPAIRS = ("initialize-for-activation", "use-selu", "use-elu", "insert-batch-normalization")


@register
class DeadUnits(Rule):
    """Most units of a rectifying stage are zero on every sample.

    ## What it does
    Reports stages behind a ReLU in which more units than chance allows put out exactly zero on every sample of the batch.

    ## Why it matters
    A unit that never fires passes no signal forward and receives no gradient: its weights cannot change, so it stays
    dead. Many zeros are no fault in themselves: a unit that fires for one sample in fifty is alive.

    ## How it is measured
    Per unit (per channel of a convolution): zero on all n samples and positions; such a unit fires on fewer than 3/n of
    the samples at 95 % confidence. With symmetric weights a unit whose inputs barely differ is as likely always on as
    always off, so up to one half is chance; the rule fires beyond one half by three standard errors, and reports an error
    from nine tenths on.

    ## What to do
    Draw the weights anew for a rectifier (He) with biases at zero; lower the learning rate if units died in training;
    use a leaky ReLU, ELU or SELU, which cannot die; or normalise the batch in front of the activation.

    ## References
    Maas 2013 (leaky ReLU); He 2015; the rule of three for 0 of n.
    """

    code, name, depth = "S101", "dead-units", "preflight"
    caused_by = ("I101",)
    remedies = REPAIRS

    def check(self, context: Context) -> list[Finding]:
        assert context.ledger is not None
        dead = [
            row for row in context.ledger.rows if row.dead and (row.dead == 1 or row.dead > self._limit(context, row))
        ]
        if not dead:
            return []
        share = max(row.dead or 0.0 for row in dead)
        bound = 3 / context.ledger.samples
        message = (
            f"{span_name(dead)}: up to {share:.0%} of the units are zero on all {context.ledger.samples} samples "
            f"(each fires on fewer than {bound:.1%} of inputs); chance allows one half"
        )
        evidence = {"dead_share": share, "samples": float(context.ledger.samples), "rate_bound": bound}
        return [self.finding([r.name for r in dead], message, evidence, "error" if share >= 0.9 else "warning")]

    @staticmethod
    def _limit(context: Context, row: Row) -> float:
        return 0.5 + 3 * math.sqrt(0.25 / context.graph.stages[row.index].layer.channels)


@register
class SaturatedUnits(Rule):
    """Hidden activations sit on their flat parts.

    ## What it does
    Reports hidden stages with a logistic, tanh or similar activation in which a fifth or more of all pre-activations lie
    where the derivative is below 5 % of its maximum; from one half on it is an error.

    ## Why it matters
    Where the curve is flat the gradient is multiplied by nearly zero: the weights in front of a saturated unit hardly
    learn, however large the loss.

    ## How it is measured
    Share of pre-activations outside the interval in which |f'| is at least 5 % of its maximum (|z| < 4.36 for the
    logistic function, |z| < 2.18 for tanh). Pre-activations of unit variance give 0.001 % and 3 %; five percent is the
    customary bound of a healthy start, and the rule fires at four times that. The output stage is not judged: a confident
    prediction is meant to saturate; and in a trained network, whose hidden units have learned to decide, the rule asks for
    more than one half.

    ## What to do
    Draw the weights anew with the variance that fits the activation (Glorot); standardise the inputs; use an activation
    that does not saturate in hidden layers; or normalise in front of it.

    ## References
    Glorot & Bengio 2010; LeCun 1998, "Efficient BackProp".
    """

    code, name, depth = "S102", "saturated-units", "preflight"
    caused_by = ("I101",)
    remedies = REPAIRS
    limit, trained_limit = 0.2, 0.5

    def check(self, context: Context) -> list[Finding]:
        flat = [row for row in _hidden(context) if row.saturated is not None and row.saturated >= self.limit]
        if flat and not is_untrained(context.model, context.graph):
            flat = [row for row in flat if (row.saturated or 0.0) > self.trained_limit]
        if not flat:
            return []
        shares = [row.saturated or 0.0 for row in flat]
        worst = max(shares)
        activation = context.graph.stages[flat[0].index].activation
        kind = activation.name if activation else "activation"
        message = (
            f"{span_name(flat)}: {min(shares):.0%} to {worst:.0%} of the {kind} inputs lie where its slope is below "
            "5 % of its maximum"
        )
        evidence = {"saturated_share": worst, "mean_share": sum(shares) / len(shares)}
        return [self.finding([row.name for row in flat], message, evidence, "error" if worst >= 0.5 else "warning")]


@register
class VanishingSignal(Rule):
    """The difference between inputs dies on its way through the network.

    ## What it does
    Reports a chain of hidden stages along which the signal, the part of the activations that differs between samples,
    falls by more than 52 dB (a factor of 400) and does not come back; from 104 dB on it is an error.

    ## Why it matters
    Behind such a chain all inputs look alike, and nothing that follows can tell them apart. The plain level hides it: it
    also counts the offset that all samples share, which may stay large while the signal is gone.

    ## How it is measured
    Standard deviation over the samples of the batch, per unit, averaged as power, at the output of each hidden stage of
    the main path; compared are the maxima before and after each stage. 52 dB is a factor e^12 in power, twice the six
    depth scales through which plain gradient descent trains. A healthy 20-layer ReLU network loses 12 dB. Where the signal
    is below the rounding of single precision, the fall is a lower bound and is said to be one.

    ## What to do
    Draw the weights with the variance that fits the activation; use an activation that keeps its signal (SELU, tanh with
    the right variance); normalise between the layers; or add skip connections.

    ## References
    Poole 2016; Schoenholz 2017; Glorot & Bengio 2010; He 2015.
    """

    code, name, depth = "S103", "vanishing-signal", "preflight"
    caused_by = ("I101",)
    remedies = REPAIRS

    def check(self, context: Context) -> list[Finding]:
        path = [row for row in hidden_path(context) if row.signal_db is not None]
        fall = largest_fall([row.signal_db or 0.0 for row in path])
        if fall is None or fall.size < WARNING_DB:
            return []
        rows = path[fall.start : fall.stop + 1]
        expected = expected_fall([(row.expected_gain, row.gain_error) for row in rows[1:]])
        text = describe_fall(fall, expected, judged=not rows[-1].is_rounding)
        if rows[-1].is_rounding:
            text = f"at least {text}; what is left is rounding noise"
        evidence = {"fall_db": fall.size, "stages": float(len(rows) - 1)}
        severity = "error" if fall.size >= ERROR_DB else "warning"
        return [self.finding([r.name for r in rows], f"{span_name(rows)}: the signal falls {text}", evidence, severity)]


def _hidden(context: Context) -> Sequence[Row]:
    assert context.ledger is not None
    return [row for row in context.ledger.rows if row.index != context.graph.output_stage]
