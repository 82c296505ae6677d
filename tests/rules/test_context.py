"""What a rule may look at: worked out when it is asked for, None where it is not known."""

import torch
from torch import nn

from gainstage.checkup import check
from gainstage.program import Program
from gainstage.rules import Context, NotEnoughEvidence, Rule, run_rules
from gainstage.signal import trace
from tests.networks import deep
from tests.tools import blobs

LOSS = nn.CrossEntropyLoss()


def looked_at(level="preflight", **settings):
    """The context that a check hands to its rules."""
    seen = []

    class Looking(Rule):
        code, name, depth = "S999", "looking", "static"

        def check(self, context):
            seen.append(context)
            return []

    program = Program(deep(2, "relu"), LOSS, blobs(40), **settings)
    import gainstage.checkup as checkup

    def chosen(select=None, ignore=None):
        return [Looking]

    kept, checkup.choose = checkup.choose, chosen
    try:
        check(program, level=level)
    finally:
        checkup.choose = kept
    return seen[0]


def test_objective_targets_and_output_of_a_measured_program():
    context = looked_at()
    assert context.objective.kind == "cross-entropy"
    assert context.targets.counts == (14, 13, 13)
    assert context.output.shape == (40, 3)
    assert not context.output.requires_grad
    assert context.trials is None
    assert context.optimizer is None


def test_the_optimiser_is_made_of_its_name():
    context = looked_at(optimizer="sgd")
    assert isinstance(context.optimizer, torch.optim.SGD)


def test_at_level_static_nothing_was_put_out_but_the_targets_are_known():
    context = looked_at(level="static")
    assert (context.ledger, context.output, context.objective) == (None, None, None)
    assert context.targets.kind == "classes"


def test_trials_are_run_when_they_are_looked_at():
    context = looked_at(level="trial", optimizer="sgd")
    assert len(context.trials.plain.losses) == context.trials.steps


def test_without_a_program_nothing_of_it_is_known():
    model = deep(1, "relu")
    context = Context(model, trace(model, blobs(8)[0]), None)
    assert (context.objective, context.survey, context.targets, context.optimizer) == (None, None, None, None)


def test_a_rule_that_cannot_tell_is_undecided():
    class Unsure(Rule):
        code, name, depth = "S998", "unsure", "static"

        def check(self, context):
            raise NotEnoughEvidence("7 samples; it takes 30")

    model = deep(1, "relu")
    verdict = run_rules([Unsure], Context(model, trace(model, blobs(8)[0]), None), "static")
    assert verdict.findings == ()
    assert verdict.undecided == {"S998": "7 samples; it takes 30"}
