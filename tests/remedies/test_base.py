"""Every remedy: applied it changes what it claims, undone the program is bit for bit what it was."""

import copy

import pytest
import torch
from torch import nn

from gainstage.program import Program
from gainstage.remedies import REGISTRY, CannotApply, Treatment
from gainstage.remedies.activation import ReplaceActivation
from gainstage.remedies.base import Remedy, Transaction, register
from gainstage.signal import trace
from tests.networks import Functional, deep, normal_weights
from tests.tools import blobs, quiet

REMEDIES = sorted(REGISTRY)


def sick_program(optimizer=None):
    model = deep(4, "logistic", normal_weights(1.0))
    instance = None if optimizer is None else optimizer(model.parameters())
    return Program(model, nn.CrossEntropyLoss(), blobs(), optimizer=instance)


def treatment(program, where=(), seed=0):
    return Treatment(program, trace(program.model, program.source.sample(8, 0)[0]), where, seed)


def identity(program):
    """All that undo must bring back: module objects, parameter objects, their bits, the optimiser's members."""
    model = program.model
    members = [id(p) for g in program.optimizer.param_groups for p in g["params"]] if program.optimizer else []
    return (
        [(name, id(module), module.training) for name, module in model.named_modules()],
        [(name, id(parameter)) for name, parameter in model.named_parameters()],
        [tuple(parameter.detach().flatten().tolist()) for parameter in model.parameters()],
        members,
    )


@pytest.mark.parametrize("name", REMEDIES)
@pytest.mark.parametrize("optimizer", [None, torch.optim.Adam])
@pytest.mark.draws
def test_apply_and_undo_is_bit_identical(name, optimizer):
    program = sick_program(optimizer)
    before = identity(program)
    undo = REGISTRY[name]().apply(treatment(program))
    assert identity(program) != before
    undo()
    assert identity(program) == before


@pytest.mark.parametrize("name", REMEDIES)
@pytest.mark.draws
def test_it_changes_what_it_claims_and_nothing_else_counts(name):
    program = sick_program()
    wanted, remedy = treatment(program), REGISTRY[name]()
    assert not remedy.changed(wanted.graph, wanted.graph, wanted)
    remedy.apply(wanted)
    after = trace(program.model, program.source.sample(8, 0)[0])
    assert remedy.changed(wanted.graph, after, wanted)


@pytest.mark.parametrize("name", REMEDIES)
@pytest.mark.draws
def test_the_same_seed_draws_the_same_weights_and_another_seed_others(name):
    weights = []
    for seed in (1, 1, 2):
        program = sick_program()
        REGISTRY[name]().apply(treatment(program, seed=seed))
        weights.append(next(program.model.parameters()).detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("name", REMEDIES)
@pytest.mark.draws
def test_a_treated_network_still_runs_copies_and_takes_a_step(name):
    program = sick_program(torch.optim.Adam)
    REGISTRY[name]().apply(treatment(program))
    twin = copy.deepcopy(program.model)
    x, y = blobs()
    program.loss(program.model(x), y).backward()
    assert all(p.grad is not None for p in program.model.parameters())
    members = {id(p) for group in program.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in program.model.parameters()} <= members
    assert twin(x).shape == (256, 3)


@pytest.mark.parametrize("name", [n for n in REMEDIES if issubclass(REGISTRY[n], ReplaceActivation)])
def test_what_cannot_be_changed_from_outside_is_left_alone_and_the_change_is_said(name):
    program = Program(quiet(Functional), nn.CrossEntropyLoss(), blobs())
    before = identity(program)
    with pytest.raises(CannotApply, match=r"called as a function in Functional\.forward") as caught:
        REGISTRY[name]().apply(treatment(program))
    assert "self.activation = nn." in str(caught.value)
    assert identity(program) == before


def test_every_remedy_states_its_title_and_safety():
    for remedy in REGISTRY.values():
        assert remedy.title
        assert remedy.__doc__
        assert remedy.safety in ("safe", "unsafe")


def test_a_remedy_cannot_be_registered_twice():
    with pytest.raises(ValueError, match="registered already"):
        register(type("Copy", (Remedy,), {"name": REMEDIES[0]}))


def test_a_transaction_takes_its_edits_back_in_reverse_order():
    transaction, order = Transaction(), []
    transaction.on_undo(lambda: order.append("first"))
    transaction.on_undo(lambda: order.append("second"))
    transaction.undo()
    transaction.undo()
    assert order == ["second", "first"]


def test_a_replaced_module_takes_over_the_mode_of_the_old_one():
    model = deep(1, "relu")
    model.activation1.eval()
    Transaction().replace_module(model, "activation1", nn.Tanh())
    assert not model.activation1.training
