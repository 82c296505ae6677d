"""What the tests of watching share: networks with a slow twin by hand, trainings, and their comparison."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW

import gainstage as gs
from gainstage.monitor import Monitor
from gainstage.signal import Ledger, Row
from tests.networks import deep
from tests.tools import blobs

FLAT = 2.178  # 1 - tanh(z)^2 is below 0.05 from here on
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(SGD, lr=0.1),
    "momentum": partial(SGD, lr=0.1, momentum=0.9),
    "adam": partial(Adam, lr=1e-2),
    "adamw": partial(AdamW, lr=1e-2, weight_decay=0.1),
}
PLACES = ("signal", "offset", "similarity", "gradient", "gain", "backward_gain", "dead", "saturated")
SIZES = ("weight", "weight_gradient", "update")
QUANTITIES = (*PLACES, *SIZES)
Rows = dict[str, dict[str, Any]]


class Chain(nn.Module):
    """tanh, then a ReLU that changes its input in place; three units of it are dead."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(20, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.rectify = nn.ReLU(inplace=True)
        with torch.no_grad():
            self.a.weight *= 3  # some units saturate
            self.b.bias[:3] = -100.0

    def forward(self, x):
        return self.c(self.rectify(self.b(torch.tanh(self.a(x)))))

    def by_hand(self, x) -> dict[str, Tensor]:
        """Outputs of the stages, nothing in place."""
        self.before = F.linear(x, self.a.weight, self.a.bias)
        first = torch.tanh(self.before)
        second = torch.relu(F.linear(first, self.b.weight, self.b.bias))
        return {"a": first, "b": second, "c": F.linear(second, self.c.weight, self.c.bias)}


class Skip(nn.Module):
    """A skip connection, added in place: the output of `a` has two consumers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(20, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        first = torch.tanh(self.a(x))
        branch = self.b(first)
        branch += first
        return self.c(branch)

    def by_hand(self, x) -> dict[str, Tensor]:
        self.before = F.linear(x, self.a.weight, self.a.bias)
        first = torch.tanh(self.before)
        second = F.linear(first, self.b.weight, self.b.bias) + first
        return {"a": first, "b": second, "c": F.linear(second, self.c.weight, self.c.bias)}


class Normalised(nn.Module):
    """Batch normalisation, dropout, in-place ReLU: buffers, random numbers, changed tensors."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(20, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(16, 3)
        )

    def forward(self, x):
        return self.body(x)


def loss_of(model: nn.Module, x: Any, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[Any, Tensor], loss=loss_of) -> float:
    """One step of the plainest training loop there is."""
    optimizer.zero_grad()
    value = loss(model, *data)
    value.backward()
    optimizer.step()
    return value.item()


@contextlib.contextmanager
def seeded(seed: int = 1):
    """Random numbers of a seed inside; the process's own state is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, data=None, loss=loss_of) -> dict[str, Any]:
    """All that a training leaves: losses, weights, buffers, gradients, the optimiser's and the random state."""
    with seeded():
        losses = [step(model, optimizer, data or blobs(32, seed=i), loss) for i in range(steps)]
        randomness = torch.random.get_rng_state()
    return {
        "losses": torch.tensor(losses),
        "random state": randomness,
        **model.state_dict(),
        **{f"{name}.grad": p.grad for name, p in model.named_parameters() if p.grad is not None},
        **{f"{i}.{k}": v for i, each in optimizer.state_dict()["state"].items() for k, v in each.items()},
    }


def same_bits(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """True when two trainings left the same, bit by bit."""
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items() if value is not None)


def watched(model: nn.Module, optimizer: str = "sgd", **settings: Any) -> tuple[Monitor, torch.optim.Optimizer]:
    made = OPTIMIZERS[optimizer](model.parameters())
    return gs.watch(model, made, **{"every": 1, **settings}), made


def hooks(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[int]:
    """Numbers of hooks on every module and on the optimiser."""
    on_modules = [
        len(held)
        for module in model.modules()
        for held in (module._forward_pre_hooks, module._forward_hooks, module._backward_hooks)
    ]
    return [*on_modules, len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)]


def steps_of(monitor: Monitor) -> list[int]:
    return [reading.step for reading in monitor.history]


def sick() -> nn.Module:
    return deep(20, "logistic", "glorot_normal", width=32)


# ---------------------------------------------------------------- the ledger against a slow twin
def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def slow_levels(x: Tensor) -> dict[str, float]:
    """Signal, offset and similarity by their definitions, one pair of samples at a time."""
    x = x.detach().double()
    signal = x.var(0).mean().item()
    pairs = [F.cosine_similarity(a, b, dim=0).item() for i, a in enumerate(x) for b in x[:i]]
    offset = max(x.mean(0).square().mean().item() - signal / len(x), 0.0)
    return {"signal": math.sqrt(signal), "offset": math.sqrt(offset), "similarity": sum(pairs) / len(pairs)}


def slow_rows(model: Chain | Skip, x: Tensor, outputs: dict[str, Tensor], take_step: Callable[[], Any]) -> Rows:
    """What the rows of a step should say: `outputs` of the stages on `x`, their gradients there; then `take_step()`."""
    weights = {name: getattr(model, name).weight for name in outputs}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    gradients = {name: None if weight.grad is None else rms(weight.grad) for name, weight in weights.items()}
    take_step()
    rows, source, behind = {}, slow_levels(x)["signal"], None
    for name, output in outputs.items():
        levels, gradient = slow_levels(output), rms(output.grad)
        rows[name] = {
            **levels,
            "gradient": gradient,
            "gain": levels["signal"] / source,
            "backward_gain": None if behind is None else behind / gradient,
            "weight": rms(before[name]),
            "weight_gradient": gradients[name],
            "update": rms(weights[name].detach() - before[name]) / rms(before[name]),
            "dead": None,
            "saturated": None,
        }
        source, behind = levels["signal"], gradient
    rows["a"]["saturated"] = (model.before.detach().abs() > FLAT).double().mean().item()
    if isinstance(model, Chain):
        rows["b"]["dead"] = (outputs["b"] == 0).all(0).double().mean().item()
    return rows


def by_hand(model: Chain | Skip, x: Tensor) -> dict[str, Tensor]:
    """The outputs of the stages, which keep their gradients."""
    outputs = model.by_hand(x)
    for output in outputs.values():
        output.retain_grad()
    return outputs


def slow_ledger(model: Chain | Skip, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Rows:
    """One training step without hooks, and what the rows of its stages should say."""
    outputs = by_hand(model, x)
    optimizer.zero_grad()
    F.cross_entropy(outputs["c"], y).backward()
    return slow_rows(model, x, outputs, optimizer.step)


def wrong_quantities(row: Row, expected: dict[str, Any], rel: float = 1e-4) -> list[str]:
    """Names of the quantities in which a row differs from what was worked out by hand."""
    found = {name: getattr(row, name) for name in expected}
    return [k for k, v in expected.items() if found[k] != (None if v is None else pytest.approx(v, rel=rel, abs=1e-7))]


def figures_differ(found: Rows, expected: Rows, rel: float = 1e-4) -> dict[str, list[str]]:
    """For each stage, the quantities in which two tables differ."""
    assert list(found) == list(expected)

    def wrong(row: dict[str, Any], right: dict[str, Any]) -> list[str]:
        return [k for k, v in right.items() if row[k] != (None if v is None else pytest.approx(v, rel=rel, abs=1e-7))]

    return {name: names for name, row in found.items() if (names := wrong(row, expected[name]))}


def differences(ledger: Ledger | None, expected: Rows, rel: float = 1e-4) -> dict[str, list[str]]:
    """For each stage, the quantities in which a ledger differs from what was worked out by hand."""
    return figures_differ({} if ledger is None else measured(ledger), expected, rel)


def measured(ledger: Ledger) -> Rows:
    """All measured quantities of a ledger, for a comparison with another."""
    return {row.name: {name: getattr(row, name) for name in QUANTITIES} for row in ledger.rows}


@contextlib.contextmanager
def told():
    """Yields the texts of the warnings that come up inside; all must be RuntimeWarnings."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    assert all(each.category is RuntimeWarning for each in caught)
    texts += [str(each.message) for each in caught]


def fails(*_arguments: Any, **_settings: Any) -> None:
    """In place of what is to be broken."""
    raise ArithmeticError("the probe is broken")
