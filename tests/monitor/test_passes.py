"""Which forward pass a step is read from: the last that a backward pass reached."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import LBFGS, SGD, Adam

import gainstage as gs
from gainstage.monitor.passes import MOST
from tests.monitor.trainings import (
    Chain,
    by_hand,
    differences,
    hooks,
    loss_of,
    measured,
    rms,
    same_bits,
    slow_ledger,
    slow_rows,
    step,
    steps_of,
    told,
    train,
    watched,
)
from tests.networks import deep
from tests.tools import blobs, normal, quiet


class Fragile(Chain):
    """Its forward raises half way when told to."""

    broken = False

    def forward(self, x):
        first = torch.tanh(self.a(x))
        if self.broken:
            raise KeyError("out of paper")
        return self.c(self.rectify(self.b(first)))


def same_weights(model: nn.Module, twin: nn.Module) -> bool:
    return same_bits(model.state_dict(), twin.state_dict())


# ---------------------------------------------------------------- accumulation
def accumulate(model: nn.Module, optimizer: torch.optim.Optimizer, batches) -> None:
    optimizer.zero_grad()
    for x, y in batches:
        (F.cross_entropy(model(x), y) / len(batches)).backward()
    optimizer.step()


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_of_micro_batches_the_last_is_read_and_the_sum_of_their_gradients(parts):
    model, twin = quiet(Chain), quiet(Chain)
    monitor, optimizer = watched(model, "adam")
    slow = Adam(twin.parameters(), lr=1e-2)
    for number in range(2):
        batches = [blobs(32, seed=parts * number + i) for i in range(parts)]
        accumulate(model, optimizer, batches)
        slow.zero_grad()
        for x, y in batches:
            outputs = by_hand(twin, x)
            (F.cross_entropy(outputs["c"], y) / parts).backward()
        assert differences(monitor.ledger, slow_rows(twin, x, outputs, slow.step)) == {}
        assert steps_of(monitor) == list(range(number + 1))


def test_an_accumulating_training_stays_the_same_bit_by_bit():
    model, twin = quiet(Chain), quiet(Chain)
    _, optimizer = watched(model)
    slow = SGD(twin.parameters(), lr=0.1)
    for number in range(3):
        batches = [blobs(8, seed=3 * number + i) for i in range(3)]
        accumulate(model, optimizer, batches)
        accumulate(twin, slow, batches)
    assert same_weights(model, twin)


# ---------------------------------------------------------------- forward passes that lead to no step
def evaluated(model: nn.Module) -> None:
    model.eval()
    model(blobs(8)[0])
    model.train()


def without_gradient(model: nn.Module) -> None:
    with torch.no_grad():
        model(blobs(8)[0])


def still_training(model: nn.Module) -> None:
    loss_of(model, *blobs(8)).item()


def kept(model: nn.Module) -> None:
    model.kept_output = model(blobs(8)[0])


def cleared(model: nn.Module) -> None:
    """As a batch whose loss is thrown away, and its gradients with it."""
    loss_of(model, *blobs(8)).backward()
    model.zero_grad()


@pytest.mark.parametrize("forward", [evaluated, without_gradient, still_training, kept, cleared])
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


@pytest.mark.parametrize("forward", [evaluated, without_gradient, still_training, kept])
def test_a_forward_between_backward_and_step_is_not_measured(forward):
    model, twin = quiet(Chain), quiet(Chain)
    (monitor, optimizer), (plain, plain_optimizer) = watched(model), watched(twin)
    loss_of(model, *blobs(32)).backward()
    forward(model)
    optimizer.step()
    step(twin, plain_optimizer, blobs(32))
    assert measured(monitor.ledger) == measured(plain.ledger)


def test_a_forward_of_a_part_alone_is_not_measured():
    model = quiet(Chain)
    monitor, optimizer = watched(model)
    F.cross_entropy(model.c(normal(8, 16)), torch.arange(8) % 3).backward()
    optimizer.step()
    assert monitor.ledger is None


def test_forward_passes_that_wait_for_a_backward_pass_are_given_up_in_the_end():
    model = quiet(Chain)
    monitor, optimizer = watched(model)
    x, y = blobs(32)
    outputs = [model(x) for _ in range(MOST + 5)]
    F.cross_entropy(outputs[0], y).backward()  # longest given up
    optimizer.step()
    assert {row.gradient for row in monitor.ledger.rows} == {None}
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert None not in {row.gradient for row in monitor.ledger.rows}


def test_forward_passes_that_led_to_nothing_take_no_place_from_one_that_waits():
    model = quiet(Chain)
    monitor, optimizer = watched(model)
    loss = loss_of(model, *blobs(32))
    for _ in range(MOST + 5):
        still_training(model)
    loss.backward()
    optimizer.step()
    assert None not in {row.gradient for row in monitor.ledger.rows}


def test_a_step_after_nothing_but_a_forward_pass_that_led_to_nothing_is_not_read():
    model = quiet(Chain)
    monitor, optimizer = watched(model)
    still_training(model)
    optimizer.step()
    assert (monitor.ledger, monitor.step) == (None, 1)


def test_a_waiting_pass_keeps_no_output_alive():
    model = quiet(Chain)
    monitor, _ = watched(model)
    output = model(blobs(32)[0])
    alive = weakref.ref(output)
    del output
    gc.collect()
    assert alive() is None
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


def test_a_forward_that_raises_between_two_micro_batches_costs_nothing():
    model = quiet(Fragile)
    monitor, optimizer = watched(model)
    loss_of(model, *blobs(32)).backward()
    model.broken = True
    with pytest.raises(KeyError):
        model(blobs(8)[0])
    optimizer.step()
    assert monitor.ledger.samples == 32
    assert monitor.ledger.row("b").gradient is not None


def test_a_model_that_starts_in_evaluation_is_measured_from_its_first_training_step():
    model = quiet(Chain).eval()
    monitor, optimizer = watched(model)
    step(model, optimizer, blobs(32))  # not what is meant by training: silent
    assert monitor.ledger is None
    model.train()
    step(model, optimizer, blobs(32))
    assert steps_of(monitor) == [1]


# ---------------------------------------------------------------- the model twice
def test_of_two_calls_in_one_loss_the_last_is_read():
    model, twin = quiet(Chain), quiet(Chain)
    monitor, optimizer = watched(model)
    (x, _), (other, _) = blobs(32), blobs(32, seed=1)
    F.cosine_embedding_loss(model(x), model(other), torch.ones(32)).backward()
    optimizer.step()
    slow = SGD(twin.parameters(), lr=0.1)
    first, second = by_hand(twin, x), by_hand(twin, other)
    F.cosine_embedding_loss(first["c"], second["c"], torch.ones(32)).backward()
    assert differences(monitor.ledger, slow_rows(twin, other, second, slow.step)) == {}


class Recursive(Chain):
    """Its forward calls the module itself."""

    def forward(self, x, again=True):
        inner = self(x, again=False) if again else 0
        return super().forward(x) + inner


def test_a_model_that_calls_itself_is_one_pass():
    model, twin = quiet(Recursive), quiet(Recursive)
    monitor, optimizer = watched(model)
    results = [train(model, optimizer, 2), train(twin, SGD(twin.parameters(), lr=0.1), 2)]
    assert same_bits(*results)
    assert [row.name for row in monitor.ledger.rows] == ["a", "b", "c", "a #2", "b #2", "c #2"]


# ---------------------------------------------------------------- closures
def closure_of(model: nn.Module, optimizer: torch.optim.Optimizer, x, y):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("make", [lambda p: LBFGS(p, max_iter=5), lambda p: Adam(p, lr=1e-2)], ids=["lbfgs", "adam"])
def test_a_step_with_a_closure_is_read_from_its_first_call(make):
    model, twin = quiet(Chain), quiet(Chain)
    optimizer, slow = make(model.parameters()), make(twin.parameters())
    monitor = gs.watch(model, optimizer, every=1)
    for number in range(3):
        x, y = blobs(32, seed=number)
        optimizer.step(closure_of(model, optimizer, x, y))
        outputs = by_hand(twin, x)
        slow.zero_grad()
        F.cross_entropy(outputs["c"], y).backward()
        expected = slow_rows(twin, x, outputs, lambda: slow.step(closure_of(twin, slow, x, y)))  # noqa: B023
        assert differences(monitor.ledger, expected) == {}
        assert same_weights(model, twin)
    assert steps_of(monitor) == [0, 1, 2]


# ---------------------------------------------------------------- several optimisers, several models
def halves(model: Chain) -> list[torch.optim.Optimizer]:
    return [Adam(model.a.parameters(), lr=1e-2), SGD([*model.b.parameters(), *model.c.parameters()], lr=0.1)]


class Together:
    """Several optimisers as one, for the slow twin."""

    def __init__(self, optimizers):
        self.optimizers = optimizers

    def zero_grad(self):
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()


def test_optimizers_that_step_together_take_one_step():
    model, twin = quiet(Chain), quiet(Chain)
    optimizers, slow = halves(model), Together(halves(twin))
    monitor = gs.watch(model, optimizers, every=1)
    for number in range(3):
        step(model, Together(optimizers), blobs(32, seed=number))
        assert differences(monitor.ledger, slow_ledger(twin, slow, *blobs(32, seed=number))) == {}
    assert (steps_of(monitor), monitor.step) == ([0, 1, 2], 3)
    assert same_weights(model, twin)


def test_optimizers_that_take_turns_take_a_step_each():
    model, twin = quiet(Chain), quiet(Chain)
    optimizers, slow = halves(model), halves(twin)
    with gs.watch(model, optimizers, every=1) as monitor:
        for number in range(3):
            step(model, optimizers[number % 2], blobs(32, seed=number))
    expected = []
    for number in range(3):
        Together(slow).zero_grad()
        data, turn = blobs(32, seed=number), slow[number % 2]
        outputs = by_hand(twin, data[0])
        F.cross_entropy(outputs["c"], data[1]).backward()
        expected.append(slow_rows(twin, data[0], outputs, turn.step))
    for reading, rows in zip(monitor.history, expected, strict=True):
        moved = {name: {k: row[k] for k in row if k != "weight_gradient"} for name, row in rows.items()}
        assert differences(reading.ledger, moved) == {}
    assert [r.ledger.row("a").update > 0 for r in monitor.history] == [True, False, True]
    assert [r.ledger.row("b").update > 0 for r in monitor.history] == [False, True, False]


def test_an_optimizer_that_steps_twice_takes_two_steps():
    model = quiet(Chain)
    optimizers = halves(model)
    monitor = gs.watch(model, optimizers, every=1)
    loss_of(model, *blobs(32)).backward()
    optimizers[0].step()
    optimizers[0].step()
    optimizers[1].step()
    assert (monitor.step, steps_of(monitor)) == (2, [0])


@pytest.mark.parametrize("wrong", [[], [1], "two"])
def test_what_is_no_list_of_optimizers_is_refused(wrong):
    with pytest.raises(gs.errors.BadInput, match=r"needs a torch\.nn\.Module and a torch\.optim\.Optimizer"):
        gs.watch(quiet(Chain), wrong)


def test_an_optimizer_given_twice_is_one():
    model = quiet(Chain)
    optimizer = SGD(model.parameters(), lr=0.1)
    monitor = gs.watch(model, [optimizer, optimizer], every=1)
    train(model, optimizer, 2)
    assert steps_of(monitor) == [0, 1]


def adversaries() -> tuple[nn.Module, nn.Module]:
    return deep(1, "tanh", inputs=8, outputs=20, width=16), deep(1, "tanh", inputs=20, outputs=1, width=16, seed=1)


def real_or_not(critic: nn.Module, x, real: bool):
    return F.binary_cross_entropy_with_logits(critic(x), torch.full((len(x), 1), float(real)))


def play(maker, critic, make_optimizer, critic_optimizer, rounds: int, clear_late: bool) -> None:
    """Alternating steps; clear_late: gradients are cleared between forward and backward, not before both."""
    for number in range(rounds):
        x, fake = blobs(32, seed=number)[0], maker(normal(16, 8, seed=number))
        if not clear_late:
            critic_optimizer.zero_grad()
        loss = real_or_not(critic, x, True) + real_or_not(critic, fake.detach(), False)
        if clear_late:
            critic_optimizer.zero_grad()
        loss.backward()
        critic_optimizer.step()
        make_optimizer.zero_grad()
        real_or_not(critic, fake, True).backward()
        make_optimizer.step()


@pytest.mark.parametrize("clear_late", [False, True])
def test_adversaries_are_read_each_in_its_own_step(clear_late):
    (maker, critic), twins = adversaries(), adversaries()
    (made, maker_optimizer), (judged, critic_optimizer) = watched(maker, "adam"), watched(critic, "adam")
    plain = [Adam(twin.parameters(), lr=1e-2) for twin in twins]
    play(maker, critic, maker_optimizer, critic_optimizer, 3, clear_late)
    play(*twins, *plain, 3, clear_late)
    assert same_weights(maker, twins[0])
    assert same_weights(critic, twins[1])
    assert (steps_of(made), steps_of(judged)) == ([0, 1, 2], [0, 1, 2])
    assert {reading.ledger.samples for reading in judged.history} == {16}  # the fakes, the last of its own step

    again = adversaries()  # the last round's figures, by hand
    others = [Adam(model.parameters(), lr=1e-2) for model in again]
    play(*again, *others, 2, clear_late)
    x, fake = blobs(32, seed=2)[0], again[0](normal(16, 8, seed=2))
    others[1].zero_grad()
    hidden = torch.tanh(again[1].hidden1(fake.detach()))
    hidden.retain_grad()
    critic_loss = real_or_not(again[1], x, True) + F.binary_cross_entropy_with_logits(
        again[1].output(hidden), torch.zeros(16, 1)
    )
    critic_loss.backward()
    row = judged.ledger.row("hidden1")
    assert row.gradient == pytest.approx(rms(hidden.grad), rel=1e-4)
    assert row.weight_gradient == pytest.approx(rms(again[1].hidden1.weight.grad), rel=1e-4)


def test_a_part_of_a_watched_model_can_be_watched_as_well():
    def build():
        return nn.Sequential(Chain(), nn.Tanh(), nn.Linear(3, 3))

    model, twin, alone = quiet(build), quiet(build), quiet(build)
    optimizer = SGD(model.parameters(), lr=0.1)
    whole, part = gs.watch(model, optimizer, every=1), gs.watch(model[0], optimizer, every=1)
    plain, plain_optimizer = watched(twin)
    results = [train(model, optimizer, 3), train(twin, plain_optimizer, 3)]
    assert same_bits(*results)
    assert [measured(r.ledger) for r in whole.history] == [measured(r.ledger) for r in plain.history]
    inner, inner_optimizer = gs.watch(alone[0], o := SGD(alone.parameters(), lr=0.1), every=1), o
    train(alone, inner_optimizer, 3)
    assert [measured(r.ledger) for r in part.history] == [measured(r.ledger) for r in inner.history]
    assert [row.name for row in whole.ledger.rows] == ["0.a", "0.b", "0.c", "2"]
    assert [row.name for row in part.ledger.rows] == ["a", "b", "c"]
    assert whole.ledger.coverage == plain.ledger.coverage


def test_no_scenario_here_warns():
    model = quiet(Chain)
    _, optimizer = watched(model)
    with told() as warned:
        for forward in (evaluated, without_gradient, still_training, kept, cleared):
            forward(model)
            step(model, optimizer, blobs(32))
    assert warned == []
