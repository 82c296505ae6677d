"""torch.compile, before watch() and after it: measured steps run the model as written, all others the compiled code."""

from __future__ import annotations

import contextlib
import gc

import pytest
import torch
from torch import nn
from torch.optim import SGD

import gainstage as gs
from gainstage.monitor.watch import UNSEEN
from gainstage.program import unwrapped
from tests.monitor.trainings import (
    Chain,
    Normalised,
    differences,
    measured,
    same_bits,
    slow_ledger,
    step,
    steps_of,
    told,
    train,
)
from tests.tools import blobs, quiet


@pytest.fixture(autouse=True)
def fresh_compiler():
    """No compiled code is shared between tests, and the process's stance is afterwards as it was."""
    gc.collect()  # monitors of other tests
    torch._dynamo.reset()
    yield
    assert torch._dynamo.eval_frame._stance.stance == "default"
    torch._dynamo.reset()


class Counting:
    """A backend that runs the graph as it is and counts its calls."""

    def __init__(self):
        self.calls = self.graphs = 0

    def __call__(self, graph, _inputs):
        self.graphs += 1

        def run(*args):
            self.calls += 1
            return graph.forward(*args)

        return run


def as_wrapper(model: nn.Module, **settings) -> nn.Module:
    return torch.compile(model, **settings)


def in_place(model: nn.Module, **settings) -> nn.Module:
    model.compile(**settings)
    return model


WAYS = {"wrapper": as_wrapper, "in place": in_place}


@contextlib.contextmanager
def watched_and_compiled(model, way, when, backend, **settings):
    """Yields (the compiled model, its optimiser, its monitor); `when` is "before" or "after" watch()."""
    optimizer = SGD(model.parameters(), lr=0.1)
    if when == "before":
        compiled = way(model, backend=backend, fullgraph=True)
        monitor = gs.watch(compiled, optimizer, **settings)
    elif when == "before, inner":
        compiled = way(model, backend=backend, fullgraph=True)
        monitor = gs.watch(unwrapped(compiled), optimizer, **settings)
    else:
        monitor = gs.watch(model, optimizer, **settings)
        compiled = way(model, backend=backend, fullgraph=True)
    with monitor:
        yield compiled, optimizer, monitor


@pytest.mark.parametrize("when", ["before", "before, inner", "after"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_measured_steps_say_what_a_slow_twin_works_out_and_the_others_run_compiled(way, when):
    model, twin, backend = quiet(Chain), quiet(Chain), Counting()
    slow = SGD(twin.parameters(), lr=0.1)
    known = when == "before" or (when == "before, inner" and way is in_place)
    with watched_and_compiled(model, way, when, backend, every=3) as (compiled, optimizer, monitor):
        for number in range(7):
            calls = backend.calls
            data = blobs(32, seed=number)
            step(compiled, optimizer, data)
            expected = slow_ledger(twin, slow, *data)
            measured_now = number % 3 == 0 and (number > 0 or known)  # else the first is lost
            if measured_now:
                assert differences(monitor.ledger, expected) == {}
            assert (backend.calls > calls) is not measured_now
        assert steps_of(monitor) == [0, 3, 6][not known :]
    graphs = backend.graphs
    step(compiled, optimizer, blobs(32))  # closing brings the compiled code back, and needs no new
    assert backend.graphs == graphs


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_training_stays_the_same_bit_by_bit(when, backend):
    results = []
    model, twin = quiet(Normalised), quiet(Normalised)
    with watched_and_compiled(model, as_wrapper, when, backend, every=2) as (compiled, optimizer, monitor):
        results.append(train(compiled, optimizer, 5))
        assert steps_of(monitor) == [0, 2, 4][when == "after" :]
    torch._dynamo.reset()
    results.append(train(torch.compile(twin, backend=backend), SGD(twin.parameters(), lr=0.1), 5))
    assert same_bits(*results)


def test_a_new_model_of_a_class_compiled_before_is_measured():
    """Compiled code is shared between the models of a class."""
    first = torch.compile(quiet(Chain), backend="eager")
    first(blobs(32)[0])
    model = quiet(Chain)
    with watched_and_compiled(model, as_wrapper, "after", "eager", every=1) as (compiled, optimizer, monitor):
        train(compiled, optimizer, 3)
        assert steps_of(monitor) == [1, 2]


def test_two_compiled_models_do_not_take_each_others_turn():
    models = [quiet(Chain), quiet(Chain)]
    optimizers = [SGD(model.parameters(), lr=0.1) for model in models]
    compiled = [torch.compile(model, backend="eager") for model in models]
    monitors = [gs.watch(model, o, every=n) for model, o, n in zip(compiled, optimizers, (2, 3), strict=True)]
    for number in range(6):
        for model, optimizer in zip(compiled, optimizers, strict=True):
            step(model, optimizer, blobs(32, seed=number))
    assert [steps_of(monitor) for monitor in monitors] == [[0, 2, 4], [0, 3]]
    for monitor in monitors:
        monitor.close()


def test_a_monitor_that_is_lost_leaves_no_stance_behind():
    model = quiet(Chain)
    compiled = torch.compile(model, backend="eager")
    gs.watch(compiled, SGD(model.parameters(), lr=0.1), every=1)
    assert torch._dynamo.eval_frame._stance.stance == "force_eager"
    del model, compiled
    gc.collect()
    assert torch._dynamo.eval_frame._stance.stance == "default"


class Around(nn.Module):
    """A part of it is compiled."""

    def __init__(self, backend):
        super().__init__()
        self.body, self.last = Chain(), nn.Linear(3, 3)
        if backend is not None:
            self.body = torch.compile(self.body, backend=backend, fullgraph=True)

    def forward(self, x):
        return self.last(torch.tanh(self.body(x)))


def test_a_compiled_part_of_a_model_is_measured():
    backend, ledgers = Counting(), []
    for each in (backend, None):
        model = quiet(lambda: Around(each))  # noqa: B023
        optimizer = SGD(model.parameters(), lr=0.1)
        with gs.watch(model, optimizer, every=2) as monitor:
            train(model, optimizer, 3)
        ledgers.append([list(measured(reading.ledger).values()) for reading in monitor.history])
    assert ledgers[0] == ledgers[1]
    assert (len(ledgers[0]), backend.calls) == (2, 1)


def test_the_names_of_stages_are_those_of_the_model_itself():
    ledgers = []
    for wrap in (lambda m: m, lambda m: torch.compile(m, backend="eager")):
        model = quiet(Chain)
        optimizer = SGD(model.parameters(), lr=0.1)
        with gs.watch(wrap(model), optimizer, every=1) as monitor:
            step(model, optimizer, blobs(32))
        ledgers.append(measured(monitor.ledger))
    assert ledgers[0] == ledgers[1]


def test_watching_a_compiled_model_again_takes_the_place_of_the_first_watch():
    model = quiet(Chain)
    compiled, optimizer = torch.compile(model, backend="eager"), SGD(model.parameters(), lr=0.1)
    first = gs.watch(model, optimizer, every=1)
    with gs.watch(compiled, optimizer, every=1) as second:  # and knows that it is compiled
        train(compiled, optimizer, 1)
    assert (steps_of(first), steps_of(second)) == ([], [0])


def test_a_compiled_model_gives_no_warning():
    model = quiet(Chain)
    with told() as warned, watched_and_compiled(model, as_wrapper, "before", "eager", every=2) as (compiled, o, _):
        train(compiled, o, 4)
    assert warned == []


class WithFunction(Chain):
    """Its forward calls a compiled function."""

    def __init__(self):
        super().__init__()
        self.function = torch.compile(torch.tanh, backend="eager")

    def forward(self, x):
        return self.c(self.rectify(self.b(self.function(self.a(x)))))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler's own
def test_a_compiled_function_within_the_model_is_measured():
    model, twin = quiet(WithFunction), quiet(Chain)
    optimizer, slow = SGD(model.parameters(), lr=0.1), SGD(twin.parameters(), lr=0.1)
    monitor = gs.watch(model, optimizer, every=2)
    for number in range(3):
        step(model, optimizer, blobs(32, seed=number))
        expected = slow_ledger(twin, slow, *blobs(32, seed=number))
    assert differences(monitor.ledger, expected) == {}
    assert steps_of(monitor) == [0, 2]


def test_a_model_that_is_not_compiled_leaves_the_compiled_code_of_others_alone():
    model, backend = quiet(Chain), Counting()
    other = torch.compile(quiet(Chain), backend=backend)
    optimizer = SGD(model.parameters(), lr=0.1)
    gs.watch(model, optimizer, every=1)
    for number in range(3):
        step(model, optimizer, blobs(32))
        other(blobs(32)[0])
        assert backend.calls == number + 1


def test_single_steps_whose_forward_pass_is_not_seen_are_not_told_of():
    model = quiet(Chain)
    optimizer = SGD(model.parameters(), lr=0.1)
    with told() as warned, gs.watch(model, optimizer, every=1):
        for number in range(3 * UNSEEN):
            around = model if number % (UNSEEN - 1) == 0 else lambda x: Chain.forward(model, x)
            step(around, optimizer, blobs(32))
    assert warned == []


def test_a_forward_pass_that_is_never_seen_is_told_of_once():
    model = quiet(Chain)
    optimizer = SGD(model.parameters(), lr=0.1)
    with told() as warned, gs.watch(model, optimizer, every=1) as monitor:
        for _ in range(UNSEEN + 5):
            step(lambda x: Chain.forward(model, x), optimizer, blobs(32))
    assert len(warned) == 1
    assert "has seen no forward pass of the Chain" in warned[0]
    assert monitor.ledger is None
