"""fix(): keeps what cures, undoes the rest exactly, stops at a fixed point, refuses the healthy."""

import copy

import pytest
import torch
from torch import nn

import gainstage as gs
from gainstage.remedies import REGISTRY
from gainstage.remedies.base import Remedy
from gainstage.repair import TrialResult, describe
from tests.networks import FunctionalDeep, deep, normal_weights
from tests.tools import blobs, quiet

LOSS = nn.CrossEntropyLoss()


def too_small():
    return deep(8, "relu", normal_weights(0.02))


def villain():
    return deep(8, "logistic", normal_weights(1.0))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_safe_remedy_is_enough_where_only_the_weights_are_wrong():
    model = too_small()
    result = gs.fix(model, LOSS, blobs())
    assert [attempt.remedy for attempt in result.applied] == ["initialize-for-activation"]
    assert result.model is model
    assert result.before.codes
    assert result.after.codes == []


def test_unsafe_remedies_are_counted_but_not_tried_unless_allowed():
    model = villain()
    before = state(model)
    result = gs.fix(model, LOSS, blobs())
    assert result.applied == ()
    assert result.hidden_unsafe == 3
    assert same(before, model.state_dict())
    assert all(attempt.safety == "safe" for attempt in result.rejected)


def test_a_remedy_that_brings_new_faults_is_undone_and_the_next_one_tried():
    result = gs.fix(villain(), LOSS, blobs(), unsafe=True)
    assert [(a.remedy, a.kept) for a in (*result.rejected, *result.applied)] == [
        ("initialize-for-activation", False),
        ("use-selu", True),
    ]
    assert "it brings S103 vanishing-signal" in result.rejected[0].reason
    assert result.after.healthy


def test_a_second_fix_changes_nothing():
    model = villain()
    gs.fix(model, LOSS, blobs(), unsafe=True)
    before = state(model)
    again = gs.fix(model, LOSS, blobs(), unsafe=True)
    assert again.applied == again.rejected == ()
    assert again.diff() == ""
    assert same(before, model.state_dict())


def test_a_healthy_program_is_refused_politely():
    model = deep(3, "relu")
    before = state(model)
    result = gs.fix(model, LOSS, blobs(), unsafe=True)
    assert result.applied == ()
    assert same(before, model.state_dict())
    assert "nothing to fix" in str(result)


def test_what_was_learned_is_never_drawn_anew_by_a_safe_remedy():
    model = deep(6, "relu")
    gs.fit(model, LOSS, blobs(), optimizer="adam", epochs=30, progress=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.1)
    before = state(model)
    result = gs.fix(model, LOSS, blobs())
    assert result.before.codes
    assert "has been trained" in result.rejected[0].reason
    assert same(before, model.state_dict())


def test_a_functional_activation_is_reported_as_the_change_to_make_and_normalised_all_the_same():
    result = gs.fix(quiet(FunctionalDeep), LOSS, blobs(), unsafe=True)
    reasons = {attempt.remedy: attempt.reason for attempt in result.rejected}
    assert "called as a function in FunctionalDeep.forward" in reasons["use-selu"]
    assert "self.activation = nn.Sigmoid()" in reasons["use-elu"]
    assert "G101" in result.before.codes
    assert [attempt.remedy for attempt in result.applied] == ["insert-batch-normalization"]
    assert result.after.healthy


def test_each_attempt_is_told_as_it_happens():
    told = []
    result = gs.fix(villain(), LOSS, blobs(), unsafe=True, on_attempt=told.append)
    assert [attempt.remedy for attempt in told] == ["initialize-for-activation", "use-selu"]
    assert told[-1] == result.applied[-1]


def test_the_diff_shows_what_changed_and_by_how_much():
    result = gs.fix(villain(), LOSS, blobs(), unsafe=True)
    assert "-activation1: Sigmoid()" in result.diff()
    assert "+activation1: SELU()" in result.diff()
    assert "weight rms" in result.diff()


@pytest.mark.draws
def test_an_existing_optimizer_goes_on_with_the_repaired_network():
    model = villain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    result = gs.fix(model, LOSS, blobs(), optimizer=optimizer, unsafe=True)
    assert result.optimizer is optimizer
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in result.model.parameters()} <= trained


def trial_fix(model, **options):
    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.02)

    return gs.fix(model, LOSS, blobs(), optimizer=sgd, level="trial", unsafe=True, **options)


@pytest.mark.draws
def test_at_trial_depth_a_remedy_must_train_better_than_nothing_and_than_new_weights():
    result = trial_fix(villain())
    trial = result.applied[0].trial
    assert len(trial.treated) == len(trial.unchanged) == len(trial.redrawn) == 3
    assert max(trial.treated) < min(*trial.unchanged, *trial.redrawn)


class Placebo(Remedy):
    """Silences the finding without helping: multiplies the weights of the output layer only, so nothing trains better."""

    name, title, safety = "placebo", "a remedy without effect", "safe"
    gone = False

    def apply(self, treatment):
        model, before = treatment.program.model, treatment.program.model.output.bias.detach().clone()
        with torch.no_grad():
            model.output.bias.add_(1e-6)

        def undo():
            with torch.no_grad():
                model.output.bias.copy_(before)

        return undo

    def changed(self, before, after, treatment):
        return True


def only_remedy(monkeypatch, remedy):
    from gainstage.rules import REGISTRY as RULES

    monkeypatch.setitem(REGISTRY, remedy.name, remedy)
    for rule in RULES.values():
        monkeypatch.setattr(rule, "remedies", (remedy.name,))


def test_a_placebo_is_undone_because_the_finding_stays(monkeypatch):
    only_remedy(monkeypatch, Placebo)
    model = villain()
    before = state(model)
    result = gs.fix(model, LOSS, blobs())
    assert "still there" in result.rejected[0].reason
    assert same(before, model.state_dict())


@pytest.mark.draws
def test_a_placebo_that_silences_the_rule_is_unmasked_by_the_trial(monkeypatch):
    from gainstage.rules.initialization import InitializationDoesNotFitActivation as Rule

    only_remedy(monkeypatch, Placebo)
    honest = Rule.check

    def fooled(self, context):
        untouched = float(context.model.output.bias.detach().abs().max()) == 0
        return honest(self, context) if untouched else []

    monkeypatch.setattr(Rule, "check", fooled)
    model = villain()
    before = state(model)
    assert gs.fix(copy.deepcopy(model), LOSS, blobs(), select=["I101"]).applied, "without a trial it would be believed"
    result = trial_fix(model, select=["I101"])
    assert result.applied == ()
    assert "does not go better" in result.rejected[0].reason
    assert same(before, model.state_dict())


def test_a_remedy_that_does_not_do_what_it_claims_is_undone(monkeypatch):
    class Liar(Placebo):
        name = "liar"

        def changed(self, before, after, treatment):
            return False

    only_remedy(monkeypatch, Liar)
    model = villain()
    before = state(model)
    assert "did not change what it claims" in gs.fix(model, LOSS, blobs()).rejected[0].reason
    assert same(before, model.state_dict())


def test_an_interrupt_in_the_middle_of_an_attempt_is_undone(monkeypatch):
    class Interrupted(Placebo):
        name = "interrupted"

        def changed(self, before, after, treatment):
            raise KeyboardInterrupt

    only_remedy(monkeypatch, Interrupted)
    model = villain()
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        gs.fix(model, LOSS, blobs())
    assert same(before, model.state_dict())


@pytest.mark.parametrize(
    ("treated", "better"),
    [
        ((0.1, 0.1, 0.1), True),
        ((1.0, 1.0, 1.0), False),
        ((0.9, 0.2, 1.5), False),
        ((float("inf"), 0.1, 0.1), False),
        ((float("nan"), 0.1, 0.1), False),
    ],
)
def test_better_means_beyond_the_spread_of_the_seeds(treated, better):
    control = (1.0, 1.1, 0.9)
    assert TrialResult(control, control, treated).better is better
    assert TrialResult(control, (0.05, 0.05, 0.05), treated).better is False, "mere new weights do as well"
    assert TrialResult((float("inf"),) * 3, control, treated).better is better


def test_a_description_has_one_line_a_module():
    lines = describe(deep(2, "tanh"))
    assert [line.split(":")[0] for line in lines] == ["hidden1", "activation1", "hidden2", "activation2", "output"]


def test_a_layer_that_holds_others_is_described_too():
    model = deep(1, "tanh")
    model.output.add_module("norm", nn.LayerNorm(3))
    lines = describe(model)
    assert [line.split(":")[0] for line in lines] == ["hidden1", "activation1", "output", "output.norm"]
    assert lines[2].startswith("output: Linear(in_features=64, out_features=3, bias=True)  weight rms")


def test_a_remedy_that_multiplies_the_loss_is_undone():
    model, (x, y) = deep(3, "tanh"), blobs()
    before = state(model)
    result = gs.fix(model, LOSS, (1000 * x, y), unsafe=True)
    kept_losses = [result.after.ledger.loss / result.before.ledger.loss]
    assert all(ratio < 3 for ratio in kept_losses)
    assert result.applied or same(before, model.state_dict())
