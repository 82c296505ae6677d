"""The conditions of self-normalisation, each with its verdict, its numbers and what to do (Klambauer 2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gainstage.data import as_source
from gainstage.display import Displayed
from gainstage.errors import BadInput
from gainstage.nn.inspection import (
    ACTIVATIONS,
    CONVOLUTIONS,
    DENSE,
    DROPOUT,
    NORMALIZATION,
    SEQUENTIAL,
    UNKNOWN,
    HiddenLayer,
    Inspection,
    inspect,
)
from gainstage.nn.sample_moments import SampleMoments
from gainstage.program import check_batch, tensors_in
from gainstage.theory import lookup
from gainstage.theory.moments import level_after

INPUTS, WEIGHTS, BIASES = "standardised inputs", "LeCun normal weights", "zero biases"
ARCHITECTURE = {  # why each is a condition, and what to do where it fails
    ACTIVATIONS: ("only SELU has its fixed point at mean 0 and variance 1", "use torch.nn.SELU and nothing else there"),
    SEQUENTIAL: ("where signals join or come round again, their moments add up", "do without, or use ELU"),
    DENSE: ("the proof is for dense layers", "use torch.nn.Linear, or ELU"),
    DROPOUT: ("plain dropout changes mean and variance", "use torch.nn.AlphaDropout, which keeps both"),
    NORMALIZATION: ("it takes the place of self-normalisation", "leave it out"),
}
NO_LAYER = "give the network hidden layers with torch.nn.SELU behind each"

# Klambauer 2017, theorem 1: mean and variance stay within +-MEAN and VARIANCE, through any number of layers, while the sums
# of a unit's weights and of their squares stay within +-MEAN and POWER
MEAN, VARIANCE, POWER = 0.1, (0.8, 1.5), (0.95, 1.1)
NORMAL = (1.9, 3.9)  # kurtosis: a normal distribution has 3, cut at two standard deviations 2.37, a uniform one 1.8
SAMPLES, LEAST, NUMBERS = 2048, 64, 2**20  # samples looked at: fewer, but LEAST, when they hold more NUMBERS in all
SHOWN = 3
UNTRACED = "no forward pass could be traced, for no input of a plausible shape goes through"
SELU = lookup("selu")


@dataclass(frozen=True)
class Clause:
    """One condition: whether it holds (None: cannot be told), the reason in one sentence, and what to do.

    evidence: what was measured or counted, by name, without unit. guaranteed: False where it holds well enough in practice
    but not as the proof has it.
    """

    name: str
    holds: bool | None
    reason: str
    advice: str = ""
    evidence: Mapping[str, float] = field(default_factory=dict)
    guaranteed: bool = True

    @property
    def state(self) -> str:
        """The verdict in words."""
        if self.holds:
            return "holds" if self.guaranteed else "holds in practice, not guaranteed"
        return "cannot be told" if self.holds is None else "fails"


@dataclass(frozen=True)
class SelfNormalization(Displayed):
    """All conditions of self-normalisation, for one network."""

    clauses: tuple[Clause, ...]

    @property
    def holds(self) -> bool | None:
        """False when a clause fails, else None when one cannot be told."""
        verdicts = {clause.holds for clause in self.clauses}
        return False if False in verdicts else None if None in verdicts else True

    @property
    def guaranteed(self) -> bool:
        """True when every clause holds as the proof has it."""
        return all(clause.holds and clause.guaranteed for clause in self.clauses)

    def to_dict(self) -> dict[str, Any]:
        clauses = [{**asdict(clause), "state": clause.state} for clause in self.clauses]
        return {"holds": self.holds, "guaranteed": self.guaranteed, "clauses": clauses}


def self_normalization(model: nn.Module, data: Any = None) -> SelfNormalization:
    """Whether a network keeps its activations at mean 0 and variance 1 by itself, condition by condition.

    A network without a hidden layer has no activations to keep, and fails for want of SELUs.

    data: training data as for gainstage.check, or inputs alone, of shape (samples, ...), as the network gets them. Without
    data the inputs cannot be judged, and an input of a plausible shape is traced. Inputs are judged where they enter the
    first layer, feature by feature; hidden layers are those that feed another one. A number speaks against its condition
    when it is five standard errors off and also outside of the domain of theorem 1 in Klambauer 2017, inside which errors
    stay bounded however many layers add theirs. Dropout and normalisation are looked for in training mode. Leaves no trace.
    Raises BadInput for a model that is no nn.Module and when it cannot be run on the data.
    """
    if not isinstance(model, nn.Module):
        raise BadInput(f"self-normalisation is judged for an nn.Module, got a {type(model).__name__}")
    seen = inspect(model, None if data is None else _sample(data))
    architecture = [_architecture(name, seen) for name in ARCHITECTURE]
    return SelfNormalization((_inputs(seen), _weights(seen), _biases(seen), *architecture))


def _sample(data: Any) -> Any:
    """Inputs of some samples."""
    if isinstance(data, (Tensor, np.ndarray)):
        data = (data, np.zeros(len(data) if data.ndim else 0))  # inputs alone
    source = as_source(data)
    numbers = sum(tensor.numel() for tensor in tensors_in(source.sample(1, seed=0)[0]))
    x = source.sample(max(LEAST, min(SAMPLES, NUMBERS // max(numbers, 1))), seed=0)[0]
    check_batch(x, ())
    return x


# ---------------------------------------------------------------- inputs
def _inputs(seen: Inspection) -> Clause:
    if seen.standardises:
        return Clause(INPUTS, True, "batch normalisation in front of the first layer standardises them")
    found = seen.features
    if found is None:
        return Clause(INPUTS, None, "there are no inputs to judge by", "give data=")
    constant, std = found.variance == 0, found.variance.sqrt()
    off = (found.shifted(MEAN) | found.rescaled(*VARIANCE)) & ~constant
    evidence = {
        "samples": int(found.samples[0]),
        "features": len(std),
        "off": int(off.sum()),
        "constant": int(constant.sum()),
        "largest_mean": float(found.mean.abs().max()),
        "smallest_std": float(std.min()),
        "largest_std": float(std.max()),
    }
    if not (off | constant).any():
        reason = "every feature has mean 0 and standard deviation 1 within the sampling error"
        return Clause(INPUTS, True, reason, evidence=evidence)
    wrong = _some(
        [f"feature {i} has mean {found.mean[i]:.2g} and standard deviation {std[i]:.2g}" for i in _indices(off)]
    )
    flat = f"constant in all samples: {_some([f'feature {i}' for i in _indices(constant)])}" if constant.any() else ""
    reason = "; ".join(text for text in (wrong, flat) if text)
    advice = "standardise every feature with the training set's mean and standard deviation, drop constant ones"
    return Clause(INPUTS, False, reason, advice, evidence)


# ---------------------------------------------------------------- weights and biases
def _weights(seen: Inspection) -> Clause:
    if not seen.operations:
        return Clause(WEIGHTS, None, UNTRACED, "give data=")
    closed = [layer.name for layer in seen.layers if layer.weights is None]
    unread = Clause(WEIGHTS, None, f"{_some(closed)}: the weights cannot be read")
    parts = {layer.name: part for layer in seen.layers if (part := _scaled_weights(layer)) is not None}
    if not parts:
        return unread if closed else Clause(WEIGHTS, True, "there is no hidden layer")
    found = SampleMoments.joined(list(parts.values()))
    names, found = [*parts, "all hidden layers together"], SampleMoments.joined([found, found.pooled()])
    fans = torch.tensor([float(layer.fan_in) for layer in seen.layers if layer.name in parts])
    sums = (
        MEAN / torch.cat([fans, fans.mean(0, keepdim=True)]).sqrt()
    )  # the mean at which a unit's weights add up to MEAN
    evidence = _weight_evidence(found)
    if off := _single_first(found.rescaled(*POWER) | found.shifted(sums)):
        wrong = [f"{names[i]} has {found.variance[i]:.3g} and {found.mean[i]:.2g}" for i in off]
        reason = f"multiplied by sqrt(fan_in) they should have variance 1 and mean 0: {_some(wrong)}"
        return Clause(WEIGHTS, False, reason, "in a new network draw them anew: gainstage.initialize(model)", evidence)
    if closed:
        return unread
    if unusual := _single_first(found.unlike_normal(*NORMAL)):
        kinds = [f"{names[i]} is {_shape(float(found.kurtosis[i]))}, not normal" for i in unusual]
        reason = f"the variance is 1 / fan_in, but {_some(kinds)}"
        return Clause(WEIGHTS, True, reason, "nothing needs doing: sums of many are normal", evidence, guaranteed=False)
    return Clause(WEIGHTS, True, "normal with variance 1 / fan_in, within the sampling error", evidence=evidence)


def _scaled_weights(layer: HiddenLayer) -> SampleMoments | None:
    """Moments of a layer's weights times sqrt(fan_in); None where there are fewer than two."""
    if layer.weights is None or len(layer.weights) < 2:
        return None
    scaled = layer.weights.cpu().double() * math.sqrt(layer.fan_in)
    return SampleMoments.of(scaled[:, None], len(scaled))


def _weight_evidence(found: SampleMoments) -> dict[str, float]:
    """Of the layer that is most standard errors off; and to what all errors add up behind the last one."""
    worst = int(found.variance_sigmas.abs().argmax())
    level = 1.0
    for ratio in found.variance[:-1].tolist():
        level = level_after(SELU, min(level * ratio, 1e12)) if math.isfinite(level * ratio) else math.nan
    return {
        "layers": len(found.variance) - 1,
        "variance_times_fan_in": float(found.variance[worst]),
        "standard_errors": float(found.variance_sigmas[worst]),
        "kurtosis": float(found.kurtosis[worst]),
        "mean_square_behind": level,
    }


def _biases(seen: Inspection) -> Clause:
    if not seen.operations:
        return Clause(BIASES, None, UNTRACED, "give data=")
    rows = [layer.biases.cpu().double() for layer in seen.layers if layer.biases is not None]
    biases = torch.cat(rows or [torch.zeros(0)])
    nonzero = int((biases != 0).sum())
    evidence = {"biases": len(biases), "nonzero": nonzero, "largest": float(biases.abs().max()) if len(biases) else 0.0}
    if len(rows) < len(seen.layers):
        return Clause(BIASES, None, "they cannot be read")
    if not nonzero:
        reason = "no bias of a hidden layer differs from zero" if seen.layers else "there is no hidden layer"
        return Clause(BIASES, True, reason, evidence=evidence)
    reason = f"{nonzero} of {len(biases)} are not zero any more, as expected after training but not of a new network"
    return Clause(BIASES, False, reason, "in a new network set them to zero: gainstage.initialize(model)", evidence)


# ---------------------------------------------------------------- architecture
def _architecture(name: str, seen: Inspection) -> Clause:
    why, advice = ARCHITECTURE[name]
    against, doubts = seen.against.get(name, []), seen.against.get(UNKNOWN, []) if name == ACTIVATIONS else []
    evidence = {"operations": seen.operations, "against": len(against)}
    if name == ACTIVATIONS and seen.operations and not seen.layers:
        return Clause(name, False, "there is no hidden layer, so no SELU normalises anything", NO_LAYER, evidence)
    if against:
        return Clause(name, False, f"{_some(against)}: {why}", advice, evidence)
    if name == DENSE and seen.against.get(CONVOLUTIONS):
        reason = f"{_some(seen.against[CONVOLUTIONS])}: it works in practice, but {why} alone"
        return Clause(name, True, reason, "watch the levels with gainstage.check", evidence, guaranteed=False)
    if not seen.operations:
        return Clause(name, None, UNTRACED, "give data=", evidence)
    if doubts:
        return Clause(name, None, f"{_some(doubts)}: it is not known what that does", advice, evidence)
    count = f"{seen.operations} operation{'s' * (seen.operations != 1)}"
    return Clause(name, True, f"nothing in a forward pass of {count} breaks it", evidence=evidence)


# ---------------------------------------------------------------- words
def _indices(mask: Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


def _single_first(mask: Tensor) -> list[int]:
    """The layers, or else the last entry, all layers together."""
    return _indices(mask[:-1]) or _indices(mask)


def _shape(kurtosis: float) -> str:
    return "uniform" if abs(kurtosis - 1.8) < 0.2 else f"of kurtosis {kurtosis:.1f}"


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more
