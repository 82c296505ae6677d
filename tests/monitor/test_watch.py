"""watch(): the training stays bit for bit the same, and the ledger says what a slow twin without hooks works out."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import sqlite3
import sys
import warnings
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW
from torch.utils.checkpoint import checkpoint

import gainstage as gs
from gainstage.errors import BadInput
from gainstage.monitor import Monitor, sampling
from gainstage.signal import Row, statistics
from tests.networks import Convolutional, Functional, deep, residual
from tests.tools import blobs, normal, quiet

FLAT = 2.178  # 1 - tanh(z)^2 is below 0.05 from here on
WATCH = sys.modules["gainstage.monitor.watch"]  # the package gives its name to the function
RECORDING = sys.modules["gainstage.monitor.recording"]
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(SGD, lr=0.1),
    "momentum": partial(SGD, lr=0.1, momentum=0.9),
    "adam": partial(Adam, lr=1e-2),
    "adamw": partial(AdamW, lr=1e-2, weight_decay=0.1),
}
PLACES = ("signal", "offset", "similarity", "gradient", "gain", "backward_gain", "dead", "saturated")
SIZES = ("weight", "weight_gradient", "update")


# ---------------------------------------------------------------- networks and training
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
        first = torch.tanh(F.linear(x, self.a.weight, self.a.bias))
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
        first = torch.tanh(F.linear(x, self.a.weight, self.a.bias))
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


class Checkpointed(Normalised):
    """The forward of its body runs a second time during the backward pass."""

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=False)


class Fragile(Chain):
    """Its forward raises half way when told to."""

    broken = False

    def forward(self, x):
        first = torch.tanh(self.a(x))
        if self.broken:
            raise KeyError("out of paper")
        return self.c(self.rectify(self.b(first)))


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


# ---------------------------------------------------------------- the training stays the same
KINDS = {
    "chain": (Chain, None),
    "normalised": (Normalised, None),
    "checkpointed": (Checkpointed, None),
    "convolutional": (Convolutional, (normal(8, 1, 8, 8), torch.arange(8) % 3)),
    "functional": (Functional, None),
    "residual": (residual, None),
}


@pytest.mark.parametrize(("make", "data"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("every", [1, 3, None])
def test_a_watched_training_equals_an_unwatched_one_bit_by_bit(make, data, every):
    model, twin = quiet(make), quiet(make)
    monitor, optimizer = watched(model, "adam", every=every)
    results = [train(model, optimizer, 5, data), train(twin, OPTIMIZERS["adam"](twin.parameters()), 5, data)]
    assert same_bits(*results)
    assert len(monitor.history) == {1: 5, 3: 2, None: 4}[every]


def under_autocast(model: nn.Module, x: Any, y: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.cross_entropy(model(x), y)


def called_twice(model: nn.Module, x: Any, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y) + F.mse_loss(model(-x), model(x).detach())


@pytest.mark.parametrize("loss", [under_autocast, called_twice])
def test_a_watched_training_stays_the_same_however_the_loss_is_made(loss):
    model, twin = quiet(Normalised), quiet(Normalised)
    monitor, optimizer = watched(model)
    results = [train(model, optimizer, 4, loss=loss), train(twin, OPTIMIZERS["sgd"](twin.parameters()), 4, loss=loss)]
    assert same_bits(*results)
    assert len(monitor.history) == 4


def test_one_different_bit_is_noticed():
    results = [train(model := quiet(Chain), SGD(model.parameters(), lr=0.1), 2) for _ in range(2)]
    assert same_bits(*results)
    weight = results[1]["a.weight"]
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert not same_bits(*results)


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


def slow_ledger(
    model: Chain | Skip, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor
) -> dict[str, dict[str, Any]]:
    """One training step without hooks, and what the rows of its stages should say."""
    outputs = model.by_hand(x)
    for output in outputs.values():
        output.retain_grad()
    optimizer.zero_grad()
    F.cross_entropy(outputs["c"], y).backward()
    weights = {name: getattr(model, name).weight for name in outputs}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    optimizer.step()
    rows, source, behind = {}, slow_levels(x)["signal"], None
    for name, output in outputs.items():
        levels, gradient = slow_levels(output), rms(output.grad)
        rows[name] = {
            **levels,
            "gradient": gradient,
            "gain": levels["signal"] / source,
            "backward_gain": None if behind is None else behind / gradient,
            "weight": rms(before[name]),
            "weight_gradient": rms(weights[name].grad),
            "update": rms(weights[name].detach() - before[name]) / rms(before[name]),
            "dead": None,
            "saturated": None,
        }
        source, behind = levels["signal"], gradient
    rows["a"]["saturated"] = (outputs["a"].detach().abs() > math.tanh(FLAT)).double().mean().item()
    if isinstance(model, Chain):
        rows["b"]["dead"] = (outputs["b"] == 0).all(0).double().mean().item()
    return rows


def wrong_quantities(row: Row, expected: dict[str, Any]) -> list[str]:
    """Names of the quantities in which a row differs from what was worked out by hand."""
    found = {name: getattr(row, name) for name in expected}
    return [k for k, v in expected.items() if found[k] != (None if v is None else pytest.approx(v, rel=1e-4, abs=1e-7))]


@pytest.mark.parametrize("make", [Chain, Skip])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_ledger_says_what_a_slow_twin_works_out(make, name):
    model, twin = quiet(make), quiet(make)
    monitor, optimizer = watched(model, name)
    slow = OPTIMIZERS[name](twin.parameters())
    for number in range(3):
        data = blobs(32, seed=number)
        step(model, optimizer, data)
        expected = slow_ledger(twin, slow, *data)
        assert [row.name for row in monitor.ledger.rows] == list(expected)
        assert [wrong_quantities(row, expected[row.name]) for row in monitor.ledger.rows] == [[], [], []]
        assert monitor.ledger.samples == 32


@pytest.mark.parametrize("quantity", [*PLACES, *SIZES])
def test_a_difference_in_any_quantity_is_noticed(quantity):
    model = quiet(Chain)
    monitor, optimizer = watched(model)
    step(model, optimizer, blobs(32))
    row = next(row for row in monitor.ledger.rows if getattr(row, quantity))
    right = {name: getattr(row, name) for name in (*PLACES, *SIZES)}
    assert wrong_quantities(row, right) == []
    for wrong in (right[quantity] * 1.01, None):
        assert wrong_quantities(row, {**right, quantity: wrong}) == [quantity]


def test_the_input_of_the_network_has_its_row():
    model, (x, y) = quiet(Chain), blobs(32)
    monitor, optimizer = watched(model)
    step(model, optimizer, (x, y))
    assert wrong_quantities(monitor.ledger.source, slow_levels(x)) == []


@pytest.mark.parametrize(("name", "fits"), [("sgd", True), ("adam", False), ("adamw", False)])
def test_the_update_is_not_learning_rate_times_gradient(name, fits):
    model = quiet(Chain)
    monitor, optimizer = watched(model, name)
    step(model, optimizer, blobs(32))
    rate = optimizer.param_groups[0]["lr"]
    for row in monitor.ledger.rows:
        shortcut = rate * row.weight_gradient / row.weight
        assert (row.update == pytest.approx(shortcut, rel=1e-3)) is fits


def test_accumulated_gradients_are_read_when_the_step_is_taken():
    model, (x, y) = quiet(Chain), blobs(32)
    monitor, optimizer = watched(model)
    for half in (slice(0, 16), slice(16, 32)):
        F.cross_entropy(model(x[half]), y[half]).backward()
    gradient = rms(model.b.weight.grad)
    optimizer.step()
    assert len(monitor.history) == 1
    assert monitor.ledger.row("b").weight_gradient == pytest.approx(gradient, rel=1e-5)


@pytest.mark.xfail(strict=True, reason="the scale of a GradScaler is not known while the backward pass runs")
def test_the_scale_of_a_gradient_scaler_is_taken_out():
    model, twin = quiet(Chain), quiet(Chain)
    (monitor, optimizer), (plain, plain_optimizer) = watched(model), watched(twin)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(loss_of(model, *blobs(32))).backward()
    scaler.step(optimizer)
    step(twin, plain_optimizer, blobs(32))
    assert monitor.ledger.row("b").weight_gradient == pytest.approx(plain.ledger.row("b").weight_gradient, rel=1e-3)
    assert monitor.ledger.row("b").gradient == pytest.approx(plain.ledger.row("b").gradient, rel=1e-3)


def test_a_shared_module_has_a_row_a_call():
    layer = quiet(lambda: nn.Linear(20, 20))
    model = nn.Sequential(layer, nn.Tanh(), layer)
    monitor, optimizer = watched(model)
    step(model, optimizer, (normal(32, 20), torch.arange(32) % 20))
    assert [row.name for row in monitor.ledger.rows] == ["0", "0 #2"]
    assert monitor.ledger.rows[0].update == monitor.ledger.rows[1].update > 0


def test_frozen_weights_have_no_gradient_and_do_not_move():
    model = quiet(Chain)
    model.a.requires_grad_(False)
    monitor, optimizer = watched(model)
    step(model, optimizer, blobs(32))
    row = monitor.ledger.row("a")
    assert (row.gradient, row.weight_gradient, row.update) == (None, None, 0.0)
    assert row.signal is not None


def test_inputs_by_keyword_are_measured():
    model = quiet(Chain)
    monitor, optimizer = watched(model)
    step(model, optimizer, blobs(32), loss=lambda model, x, y: F.cross_entropy(model(x=x), y))
    assert monitor.ledger.row("a").signal is not None


def test_inputs_by_keyword_are_counted():
    model = quiet(Chain)
    monitor, optimizer = watched(model)
    step(model, optimizer, blobs(32), loss=lambda model, x, y: F.cross_entropy(model(x=x), y))
    assert monitor.ledger.samples == 32


# ---------------------------------------------------------------- which steps, which forwards
def steps_of(monitor: Monitor) -> list[int]:
    return [reading.step for reading in monitor.history]


@pytest.mark.parametrize(("every", "steps"), [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6]), (10, [0])])
def test_every_so_many_steps_are_measured(every, steps):
    model = quiet(Chain)
    monitor, optimizer = watched(model, every=every)
    train(model, optimizer, 7)
    assert steps_of(monitor) == steps
    assert monitor.step == 7


def test_without_an_interval_the_budget_decides(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(sampling, "perf_counter", lambda: clock.now)
    model = quiet(lambda: nn.Linear(20, 3))
    monitor, optimizer = watched(model, every=None, budget=0.125)

    def slow(model, x, y):
        clock.now += 1.5 if monitor.sampler.due(monitor.step) else 1.0
        return loss_of(model, x, y)

    train(model, optimizer, 90, blobs(8), slow)
    assert steps_of(monitor) == [0, 1, 2, 4, 8, 16, 32, 64, *range(68, 90, 4)]
    assert 0 < monitor.overhead < 0.1


def test_between_measured_steps_no_module_carries_a_hook_but_the_watched_one():
    model = quiet(Chain)
    _monitor, optimizer = watched(model, every=2)
    counts = hooks(model, optimizer)
    for number in range(4):
        step(model, optimizer, blobs(32, seed=number))
        assert hooks(model, optimizer) == counts == [1, 1, 0, *[0] * (len(counts) - 5), 1, 1]


def evaluated(model: nn.Module) -> None:
    model.eval()
    model(blobs(8)[0])
    model.train()


def without_gradient(model: nn.Module) -> None:
    with torch.no_grad():
        model(blobs(8)[0])


@pytest.mark.parametrize("forward", [evaluated, without_gradient])
def test_forwards_between_the_steps_are_not_measured(forward):
    model, twin = quiet(Chain), quiet(Chain)
    (monitor, optimizer), (plain, plain_optimizer) = watched(model), watched(twin)
    for number in range(3):
        forward(model)
        step(model, optimizer, blobs(32, seed=number))
        forward(model)
        step(twin, plain_optimizer, blobs(32, seed=number))
    assert [reading.ledger for reading in monitor.history] == [reading.ledger for reading in plain.history]
    assert {reading.ledger.samples for reading in monitor.history} == {32}


def test_a_forward_of_a_part_alone_is_not_measured():
    model = quiet(Chain)
    monitor, optimizer = watched(model)
    F.cross_entropy(model.c(normal(8, 16)), torch.arange(8) % 3).backward()
    optimizer.step()
    assert monitor.ledger is None


@pytest.mark.parametrize("when", [0, 2])
def test_a_forward_that_raises_keeps_its_error_and_watching_goes_on(when):
    model = quiet(Fragile)
    monitor, optimizer = watched(model)
    counts = hooks(model, optimizer)
    train(model, optimizer, when)
    model.broken = True
    with pytest.raises(KeyError, match="out of paper"):
        step(model, optimizer, blobs(32))
    assert hooks(model, optimizer) == counts
    assert not torch.overrides._get_current_function_mode_stack()
    model.broken = False
    train(model, optimizer, 2)
    assert steps_of(monitor) == list(range(when + 2))


# ---------------------------------------------------------------- on and off
def test_close_takes_every_hook_off_and_keeps_what_was_measured():
    model = quiet(Normalised)
    optimizer = SGD(model.parameters(), lr=0.1)
    before = hooks(model, optimizer)
    monitor = gs.watch(model, optimizer, every=1)
    assert hooks(model, optimizer) != before
    train(model, optimizer, 2)
    monitor.close()
    monitor.close()  # may be called twice
    assert hooks(model, optimizer) == before
    train(model, optimizer, 2)
    assert steps_of(monitor) == [0, 1]


def test_a_monitor_is_closed_by_its_with_block_also_after_an_error():
    model = quiet(Chain)
    optimizer = SGD(model.parameters(), lr=0.1)
    before = hooks(model, optimizer)
    with pytest.raises(KeyError), gs.watch(model, optimizer):
        raise KeyError("the user's")
    assert hooks(model, optimizer) == before


def test_close_between_forward_and_step_drops_the_half_measured_step():
    model = quiet(Chain)
    monitor, optimizer = watched(model)
    loss = loss_of(model, *blobs(32))
    monitor.close()
    loss.backward()
    optimizer.step()
    assert monitor.history == []
    assert sum(hooks(model, optimizer)) == 0


def test_watching_twice_leaves_one_set_of_hooks():
    model = quiet(Chain)
    first, optimizer = watched(model)
    once = hooks(model, optimizer)
    train(model, optimizer, 1)
    second = gs.watch(model, optimizer, every=1)
    assert hooks(model, optimizer) == once
    train(model, optimizer, 2)
    assert (steps_of(first), steps_of(second)) == ([0], [0, 1])


def test_hooks_of_the_user_stay_in_their_order():
    model, told = quiet(Chain), []
    model.register_forward_hook(lambda *_: told.append("model before"))
    monitor, optimizer = watched(model)
    model.register_forward_hook(lambda *_: told.append("model after"))
    optimizer.register_step_post_hook(lambda *_: told.append("optimizer"))
    train(model, optimizer, 1)
    monitor.close()
    train(model, optimizer, 1)
    assert told == ["model before", "model after", "optimizer"] * 2


def copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("twin_of", [copied, saved])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_copy_of_a_watched_model_trains_unwatched(twin_of, steps):
    model = quiet(Normalised)
    monitor, optimizer = watched(model)
    train(model, optimizer, steps)
    twin = twin_of(model)
    assert all(torch.equal(value, twin.state_dict()[key]) for key, value in model.state_dict().items())
    train(twin, SGD(twin.parameters(), lr=0.1), 2)
    assert steps_of(monitor) == list(range(steps))
    train(model, optimizer, 1)
    assert steps_of(monitor) == list(range(steps + 1))


@pytest.mark.parametrize("twin_of", [copied, saved])
def test_a_copy_of_a_watched_model_can_be_watched(twin_of):
    model = quiet(Chain)
    monitor, _ = watched(model)
    twin = twin_of(model)
    other, optimizer = watched(twin)
    train(twin, optimizer, 2)
    assert (steps_of(monitor), steps_of(other)) == ([], [0, 1])


def test_model_and_optimizer_can_be_copied_together():
    model = quiet(Chain)
    monitor, optimizer = watched(model, "adam")
    train(model, optimizer, 1)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    train(twin, twin_optimizer, 1)
    assert (steps_of(monitor), monitor.step) == ([0], 1)


# ---------------------------------------------------------------- a probe that fails
def fails(*_arguments: Any, **_settings: Any) -> None:
    raise ArithmeticError("the probe is broken")


def fails_when(condition: Callable[[Tensor], bool], right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, *rest: fails() if condition(x) else right(x, *rest)


@contextlib.contextmanager
def told():
    """Yields the texts of the warnings that come up inside; all must be RuntimeWarnings."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    assert all(each.category is RuntimeWarning for each in caught)
    texts += [str(each.message) for each in caught]


def on_inputs(patch: pytest.MonkeyPatch, _model: nn.Module) -> None:
    patch.setattr(statistics, "similarity", fails)


def in_the_forward_pass(patch: pytest.MonkeyPatch, _model: nn.Module) -> None:
    patch.setattr(statistics, "similarity", fails_when(lambda x: x.requires_grad, statistics.similarity))


def in_the_backward_pass(patch: pytest.MonkeyPatch, _model: nn.Module) -> None:
    running = torch._C._current_graph_task_id
    patch.setattr(statistics, "mean_square", fails_when(lambda _: running() != -1, statistics.mean_square))


def before_the_update(patch: pytest.MonkeyPatch, model: nn.Module) -> None:
    def is_gradient(x: Tensor) -> bool:
        return any(x is parameter.grad for parameter in model.parameters())

    patch.setattr(statistics, "mean_square", fails_when(is_gradient, statistics.mean_square))


def after_the_update(patch: pytest.MonkeyPatch, _model: nn.Module) -> None:
    patch.setattr(RECORDING, "make_ledger", fails)


def in_the_rules(patch: pytest.MonkeyPatch, _model: nn.Module) -> None:
    patch.setattr(WATCH, "run_rules", fails)


@pytest.mark.parametrize(
    "break_probe",
    [
        on_inputs, in_the_forward_pass, in_the_backward_pass,
        before_the_update, after_the_update, in_the_rules,
    ],
)  # fmt: skip
def test_a_probe_that_fails_switches_itself_off_with_one_warning_and_training_goes_on(monkeypatch, break_probe):
    model, twin = quiet(Chain), quiet(Chain)
    optimizer, slow = (SGD(m.parameters(), lr=0.1) for m in (model, twin))
    before = hooks(model, optimizer)
    expected = train(twin, slow, 3)
    gs.watch(model, optimizer, every=1)
    break_probe(monkeypatch, model)
    with told() as warned:
        result = train(model, optimizer, 3)
    assert warned == ["gainstage stopped watching: ArithmeticError: the probe is broken"]
    assert same_bits(result, expected)
    assert hooks(model, optimizer) == before


@pytest.mark.parametrize("callback", ["log", "on_finding"])
def test_a_callback_that_fails_does_not_stop_the_training(callback):
    model = sick()
    _, optimizer = watched(model, **{callback: fails})
    with told() as warned:
        train(model, optimizer, 3)
    assert warned == ["gainstage stopped watching: ArithmeticError: the probe is broken"]


def test_a_failure_beside_another_hook_of_the_optimizer_does_not_stop_the_training():
    model, called = quiet(Chain), []
    _, optimizer = watched(model, log=fails)
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    with told() as warned:
        train(model, optimizer, 3)
    assert (len(warned), len(called)) == (1, 3)


def test_a_healthy_monitor_does_not_warn():
    model = quiet(Chain)
    monitor, optimizer = watched(model)
    with told() as warned:
        train(model, optimizer, 2)
    assert warned == []
    assert steps_of(monitor) == [0, 1]


# ---------------------------------------------------------------- what is told, and what is kept
def sick() -> nn.Module:
    return deep(20, "logistic", "glorot_normal", width=32)


def test_log_receives_the_numbers_of_each_measured_step():
    model, logged = quiet(Chain), []
    monitor, optimizer = watched(model, every=2, log=logged.append)
    train(model, optimizer, 4)
    assert [numbers["step"] for numbers in logged] == [0.0, 2.0]
    assert all(isinstance(value, float) for numbers in logged for value in numbers.values())
    row = monitor.ledger.row("b")
    assert {k: v for k, v in logged[-1].items() if k.startswith("b/")} == {
        f"b/{q}": getattr(row, q) for q in (*PLACES, "update") if getattr(row, q) is not None
    }


def test_a_finding_is_told_once_a_code():
    model, told = sick(), []
    monitor, optimizer = watched(model, on_finding=told.append)
    train(model, optimizer, 5)
    codes = [finding.code for finding in told]
    assert "S103" in codes
    assert len(codes) == len(set(codes))
    assert told == monitor.findings
    assert len(monitor.history) == 5


def test_a_healthy_network_has_no_findings():
    model = deep(2, "selu")
    monitor, optimizer = watched(model)
    train(model, optimizer, 5)
    assert monitor.findings == []


def test_there_is_no_ledger_before_the_first_step():
    monitor, _ = watched(quiet(Chain))
    assert (monitor.ledger, monitor.history, monitor.overhead) == (None, [], 0.0)


def rows_of(folder, query: str) -> list[tuple]:
    """What a second connection sees now."""
    with contextlib.closing(sqlite3.connect(folder / "run.sqlite", timeout=0)) as database:
        return database.execute(query).fetchall()


def test_readings_can_be_read_while_the_training_goes_on(tmp_path):
    model = quiet(Chain)
    monitor, optimizer = watched(model, folder=tmp_path)
    for number in range(3):
        step(model, optimizer, blobs(32, seed=number))
        assert rows_of(tmp_path, "SELECT DISTINCT step FROM readings") == [(i,) for i in range(number + 1)]
    found = dict(rows_of(tmp_path, "SELECT quantity, value FROM readings WHERE step = 2 AND stage = 'b'"))
    row = monitor.ledger.row("b")
    assert found == {name: getattr(row, name) for name in found}
    assert set(found) >= {"signal", "gradient", "update", "dead"}
    monitor.close()


def test_findings_are_kept_with_the_step_at_which_they_came_up(tmp_path):
    model = sick()
    monitor, optimizer = watched(model, folder=tmp_path)
    train(model, optimizer, 3)
    monitor.close()
    assert (0, "S103") in rows_of(tmp_path, "SELECT step, code FROM findings")


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "settings",
    [
        {"every": 0}, {"every": -3}, {"budget": 0.0}, {"budget": 1.0}, {"budget": -0.1}, {"budget": math.nan},
        {"every": 2.5}, {"every": "often"},
        {"budget": "low"}, {"log": 3},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be_used_are_refused_and_leave_no_hook(settings):
    model = quiet(Chain)
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(BadInput) as caught:
        gs.watch(model, optimizer, **settings)
    assert "\n" not in str(caught.value)
    assert sum(hooks(model, optimizer)) == 0


@pytest.mark.parametrize(
    "swap", [lambda m, o: (o, m), lambda m, o: (m, "adam"), lambda m, o: (m, None), lambda m, o: (Chain, o)]
)
def test_what_is_no_model_and_optimizer_is_refused(swap):
    model = quiet(Chain)
    with pytest.raises(BadInput, match=r"needs a torch\.nn\.Module and a torch\.optim\.Optimizer"):
        gs.watch(*swap(model, SGD(model.parameters(), lr=0.1)))


def test_a_folder_that_cannot_be_written_is_refused_and_leaves_no_hook(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    model = quiet(Chain)
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(BadInput, match="choose another folder"):
        gs.watch(model, optimizer, folder=tmp_path / "file")
    assert sum(hooks(model, optimizer)) == 0
