"""The ledger: one row a stage, what was measured beside what theory expects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, TypeVar

from gainstage.display import Displayed
from gainstage.errors import MissingExtra
from gainstage.signal.joints import Attention, Branch
from gainstage.theory import decibels

ROUNDING = 1e-6  # of an offset in single precision


@dataclass(frozen=True)
class Row:
    """One stage. Sizes are RMS values, gains ratios of RMS values, shares lie in 0..1; None means not observed.

    signal, offset: of the stage's output. similarity: mean cosine between samples there. gain: signal out over in.
    gradient: of the loss with respect to the stage's output. gradient_signal, gradient_offset, gradient_similarity: its split
    in the same sense, what differs between samples and what all samples want alike; only by check. backward_gain: gradient
    at the stage's input over that at its output. dead: units (channels) behind a rectifier that are zero on every sample, at
    each position. dead_bound: such a unit fires on less than this share of all inputs, at 95 % confidence: 3 / samples, the
    rule of three (positions of one sample are no independent looks). constant: other channels that are the same on every
    sample, at each position.
    saturated: pre-activations where the activation no longer responds: its derivative is below 5 % of its maximum.
    kurtosis: of the channels' RMS, mean of s^4 over squared mean of s^2 (He et al. 2024): 1 where all are equally strong.
    outliers: channels (of 64 or more) that are stronger than Gaussian ones beside the others ever are (Stack.outliers).
    effective_rank (preview): in how many directions samples differ, tr(C)^2 / tr(C^2), of at most 64 samples and so never
    more than 63; None where rounding may be what differs.
    underflow, overflow, gradient_underflow, gradient_overflow: only of numbers of 16 bits or fewer. Underflow: share of what
    is not zero that is below the least normal number (6.1e-5 for float16): where many are, others have turned into zeros
    already. Overflow: share at the largest number (65504 for float16) or beyond. Gradients as they run, so with the scale of
    a gradient scaler.
    weight, weight_gradient: of the layer's weight.
    update: size of the optimiser's last true step (weight after minus before) relative to the weight; only while training.
    expected_gain, expected_backward_gain: theory, for the level that really came in (the gradient that really came back) and
    the size of the weights as they are. gain_error, backward_gain_error: their standard errors for weights drawn at random,
    from the finite width: the first from the spread over the units, the second an upper bound.
    """

    index: int
    name: str
    description: str
    units: int
    signal: float | None = None
    offset: float | None = None
    similarity: float | None = None
    gain: float | None = None
    expected_gain: float | None = None
    gain_error: float | None = None
    gradient: float | None = None
    gradient_signal: float | None = None
    gradient_offset: float | None = None
    gradient_similarity: float | None = None
    backward_gain: float | None = None
    expected_backward_gain: float | None = None
    backward_gain_error: float | None = None
    dead: float | None = None
    dead_bound: float | None = None
    constant: float | None = None
    saturated: float | None = None
    kurtosis: float | None = None
    outliers: float | None = None
    effective_rank: float | None = None
    underflow: float | None = None
    overflow: float | None = None
    gradient_underflow: float | None = None
    gradient_overflow: float | None = None
    weight: float | None = None
    weight_gradient: float | None = None
    update: float | None = None

    @property
    def gain_sigmas(self) -> float | None:
        """How many standard errors the gain is above what theory expects."""
        return _sigmas(self.gain, self.expected_gain, self.gain_error)

    @property
    def backward_gain_sigmas(self) -> float | None:
        """How many standard errors the backward gain is above what theory expects."""
        return _sigmas(self.backward_gain, self.expected_backward_gain, self.backward_gain_error)

    @property
    def gradient_norm_db(self) -> float | None:
        """Gradient in dB with the stage's width counted in: 20 log10(RMS * sqrt(units)).

        A funnel of widths changes the RMS of a perfectly healthy gradient, but not this norm.
        """
        return None if self.gradient is None else decibels(self.gradient * math.sqrt(self.units))

    @property
    def level(self) -> float | None:
        """RMS of the stage's output: signal and offset together, sqrt(signal^2 + offset^2)."""
        return None if self.signal is None or self.offset is None else math.hypot(self.signal, self.offset)

    @property
    def is_rounding(self) -> bool:
        """True when the signal is so small beside the offset that in single precision it may be rounding noise."""
        return self.signal is not None and self.offset is not None and self.signal < ROUNDING * self.offset

    @property
    def signal_db(self) -> float | None:
        """Signal in dB."""
        return decibels(self.signal)


def _sigmas(measured: float | None, expected: float | None, error: float | None) -> float | None:
    return None if measured is None or expected is None or not error else (measured - expected) / error


@dataclass(frozen=True)
class Place:
    """Where numbers first stop being finite: there what goes in is finite, and what comes out is not.

    direction: "forward" or "backward". operation: name of the torch function; empty where only the stage is known. module:
    path of the module it runs in, or of the stage. call: which of the module's calls, from 1 on. in_loss: in the loss, and
    in no module. sample: the first one concerned, as its place in the batch. tensor: the parameter or buffer that is itself
    not finite. largest: size of the largest number that went in. None: not known.
    """

    direction: Literal["forward", "backward"]
    operation: str
    module: str
    call: int = 1
    in_loss: bool = False
    sample: int | None = None
    tensor: str | None = None
    largest: float | None = None

    def __str__(self) -> str:
        """ "exp in hidden2 (call 2), sample 17, where the largest number that went in was 92.1"."""
        inside = "the loss" if self.in_loss else self.module or "(model)"
        text = f"{self.operation or 'stage'} {'in ' * bool(self.operation)}{inside}"
        text += f" (call {self.call})" if self.call > 1 else ""
        text = text if self.direction == "forward" else f"the gradient of {text}"
        text += "" if self.sample is None else f", sample {self.sample}"
        if self.tensor is not None:
            return f"{text}: {self.tensor} itself is not finite"
        return text if self.largest is None else f"{text}, where the largest number that went in was {self.largest:.3g}"


@dataclass(frozen=True)
class Ledger(Displayed):
    """All stages of one pass. rows are in order of execution; source is the network's input (None if not floating).

    non_finite: where numbers first stop being finite; None where all are. `check` looks for the operation in a second pass,
    `watch` names the stage. branches: residual additions. attention: one entry a softmax over keys.
    noise_scale: of the gradient, in samples (McCandlish 2018); only by a check at level "trial".
    """

    rows: tuple[Row, ...]
    source: Row | None
    samples: int
    loss: float | None
    coverage: str
    unknown: tuple[str, ...] = ()
    non_finite: Place | None = None
    branches: tuple[Branch, ...] = ()
    attention: tuple[Attention, ...] = ()
    noise_scale: float | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, name: str) -> Row:
        """The row of the stage called `name`; KeyError names the stages there are."""
        return row_called(self.rows, name)

    def to_dict(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "loss": self.loss,
            "coverage": self.coverage,
            "not_understood": list(self.unknown),
            "non_finite": None if self.non_finite is None else asdict(self.non_finite),
            "noise_scale": self.noise_scale,
            "branches": [{**asdict(branch), "db": branch.db} for branch in self.branches],
            "attention": [asdict(attention) for attention in self.attention],
            "input": None if self.source is None else asdict(self.source),
            "stages": self.records(),
        }

    def records(self) -> list[dict[str, Any]]:
        """One dictionary a stage."""
        return [asdict(row) for row in self.rows]

    def to_pandas(self):
        """A pandas DataFrame, one line a stage; MissingExtra when pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise MissingExtra("pandas", "frames") from None
        return pandas.DataFrame(self.records())

    def to_polars(self):
        """A polars DataFrame, one line a stage; MissingExtra when polars is not installed."""
        try:
            import polars
        except ImportError:
            raise MissingExtra("polars", "frames") from None
        return polars.DataFrame(self.records(), infer_schema_length=None)


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str: ...


AnyRow = TypeVar("AnyRow", bound=Named)


def row_called(rows: Sequence[AnyRow], name: str) -> AnyRow:
    """The row of that name; KeyError names the stages there are."""
    for row in rows:
        if row.name == name:
            return row
    raise KeyError(f"no stage is called {name!r}; there are {', '.join(row.name for row in rows)}")


def span_name(rows: Sequence[Row]) -> str:
    """ "stage a" or "stages a to b", for messages."""
    return f"stage {rows[0].name}" if len(rows) == 1 else f"stages {rows[0].name} to {rows[-1].name}"
