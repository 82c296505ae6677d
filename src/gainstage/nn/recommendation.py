"""Which activation for the hidden layers: the chapter's decision, with its reasons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.nn.utils import parametrize

from gainstage.errors import BadInput

Verdict = Literal["yes", "no", "unseen"]

ORDER = "SELU > ELU > leaky ReLU and its variants > ReLU > tanh > logistic"
HUGE = 1_000_000  # training samples: PReLU was found better on ImageNet's 1.2 million (He 2015), overfits on small sets
PLAIN_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
NORMALIZATIONS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d,
    nn.InstanceNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm,
)  # fmt: skip
UNSEEN = ("its inputs are standardised", "no l1, l2 or max-norm regularisation")  # modules do not show these


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


@dataclass(frozen=True)
class Clause:
    """One condition of self-normalisation, whether it holds, and what was found."""

    text: str
    verdict: Verdict
    found: str = ""

    def __str__(self) -> str:
        if self.verdict == "unseen":
            return f"{self.text}: cannot be seen in the modules, make sure of it"
        return f"{self.text}: {self.verdict}{', ' * bool(self.found)}{self.found}"


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
    it can normalise itself is read from the model's modules, clause by clause; self_normalizing says it instead. What
    cannot be seen does not stand in SELU's way but is listed as a condition.
    Raises BadInput for a model that is no nn.Module and for a number of samples below 1.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise BadInput(f"an activation is recommended for an nn.Module, got a {type(model).__name__}")
    if samples is not None and (not isinstance(samples, int) or isinstance(samples, bool) or samples < 1):
        raise BadInput(f"the training samples must be a whole number of at least 1, got {samples!r}")
    clauses = _clauses(model)
    possible = all(clause.verdict != "no" for clause in clauses)
    said: tuple[str, ...] = ()
    if self_normalizing is not None:
        possible, clauses = self_normalizing, clauses if model is not None else ()
        said = (f"can normalise itself: {'yes' if possible else 'no'}, as you say",)
    activation, reason = _choose(possible, latency_matters, overfits, samples)
    reasons = (reason, f"general order: {ORDER}", *said, *map(str, clauses))
    return Recommendation(activation, "lecun_normal" if activation == "selu" else "he_normal", reasons)


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
        return "selu", "nothing seen keeps it from normalising itself: SELU holds mean 0 and variance 1 in all layers"
    return "elu", "it may fail to normalise itself: ELU is smooth where SELU has a kink, and its mean stays near 0"


def _clauses(model: nn.Module | None) -> tuple[Clause, ...]:
    """The conditions of self-normalisation (Klambauer 2017), as far as modules tell."""
    checks = {
        "dense layers only": _other_layers,
        "no normalisation layers": _normalizations,
        "no dropout but alpha dropout": _dropouts,
        "no skip connections": _possible_skips,
    }
    if model is None:
        return tuple(Clause(text, "unseen") for text in (*checks, *UNSEEN))
    seen = [_clause(text, list(check(model))) for text, check in checks.items()]
    return (*seen, *(Clause(text, "unseen") for text in UNSEEN))


def _clause(text: str, offenders: list[str]) -> Clause:
    more = f" and {len(offenders) - 1} more" if len(offenders) > 1 else ""
    return Clause(text, "no", offenders[0] + more) if offenders else Clause(text, "yes")


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules but those that compute a parametrised weight: "where (what)" and the module."""
    for path, module in model.named_modules():
        if "parametrizations" not in path.split("."):
            yield f"{path or 'the model'} ({type(module).__name__})", module


def _other_layers(model: nn.Module) -> Iterator[str]:
    """Modules with weights of their own that are neither dense layers, activations nor normalisation."""
    dense = False
    for place, module in _modules(model):
        if isinstance(module, nn.Linear):
            dense = True
        elif _has_weights(module) and not isinstance(module, (nn.PReLU, *NORMALIZATIONS)):
            yield place
    if not dense:
        yield "there is none"


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None or parametrize.is_parametrized(module)


def _normalizations(model: nn.Module) -> Iterator[str]:
    return (place for place, module in _modules(model) if isinstance(module, NORMALIZATIONS))


def _dropouts(model: nn.Module) -> Iterator[str]:
    return (place for place, module in _modules(model) if isinstance(module, PLAIN_DROPOUTS) and module.p > 0)


def _possible_skips(model: nn.Module) -> Iterator[str]:
    """Modules around others whose forward may be anything; a plain nn.Sequential's is known."""
    for place, module in _modules(model):
        around = any(name != "parametrizations" for name, _ in module.named_children())
        if around and type(module).forward is not nn.Sequential.forward:
            yield f"possible in the forward of {place}"
