"""The chapter's choice of an activation: each condition seen in the network, each exception, each reason."""

import re

import pytest
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from gainstage.errors import BadInput
from gainstage.nn import activation, initializer, recommend_activation
from gainstage.nn.inspection import DENSE, DROPOUT, NORMALIZATION, SEQUENTIAL
from gainstage.nn.recommendation import HUGE, ORDER, UNSEEN, Recommendation
from tests.networks import Convolutional, Functional, FunctionalDeep, Residual, deep
from tests.tools import quiet

CLAUSES = (SEQUENTIAL, DENSE, DROPOUT, NORMALIZATION)
OPEN, FAILS, IN_PRACTICE = "cannot be told", "fails", "holds in practice, not guaranteed"


class Overridden(nn.Sequential):
    """Looks like a plain stack, and is none."""

    def forward(self, x):
        return x + super().forward(x)


def stack(*inserted, kind=nn.Sequential):
    return kind(nn.Linear(8, 8), nn.SELU(), *inserted, nn.Sequential(nn.Linear(8, 8), nn.PReLU()), nn.Linear(8, 8))


def verdicts(found: Recommendation) -> dict[str, str]:
    """Condition to its state."""
    states = f"holds|{IN_PRACTICE}|{FAILS}|{OPEN}"
    pairs = (re.match(rf"(.*?): ({states}), ", reason) for reason in found.reasons)
    return {match[1]: match[2] for match in pairs if match}


PLAIN = {
    "a plain stack": lambda: stack(),
    "gainstage's own": lambda: deep(3, "selu"),
    "activations called as functions": FunctionalDeep,
    "alpha dropout": lambda: stack(nn.AlphaDropout(0.1)),
    "dropout of nothing": lambda: stack(nn.Dropout(0.0)),
    "a module without weights": lambda: stack(nn.Flatten()),
    "one dense layer": lambda: nn.Linear(8, 3),
    "parametrised dense layers": lambda: stack(weight_norm(nn.Linear(8, 8))),
}
BROKEN = {
    "an embedding": (lambda: nn.Sequential(nn.Embedding(8, 8), stack()), DENSE, "embedding in 0"),
    "batch normalisation": (lambda: stack(nn.BatchNorm1d(8)), NORMALIZATION, "batch_norm in 2"),
    "batch normalisation without weights": (
        lambda: stack(nn.BatchNorm1d(8, affine=False)), NORMALIZATION, "batch_norm in 2",
    ),
    "layer normalisation": (
        lambda: stack(nn.LayerNorm(8), nn.LayerNorm(8)), NORMALIZATION, "layer_norm in 2, layer_norm in 3",
    ),
    "dropout": (lambda: stack(nn.Dropout(0.2)), DROPOUT, "dropout in 2"),
    "a residual stack": (lambda: stack(kind=Overridden), SEQUENTIAL, "add in the model"),
    "a module of the user's": (Functional, SEQUENTIAL, "add in the model, cat in the model"),
    "an inner module": (lambda: stack(Overridden(nn.Linear(8, 8))), SEQUENTIAL, "add in 2"),
}  # fmt: skip
UNTRACED = {  # no input of a plausible shape goes through
    "a lazy dense layer": (lambda: nn.Sequential(nn.LazyLinear(8), nn.SELU(), nn.Linear(8, 3)), {}),
    "a recurrent layer": (lambda: stack(nn.GRU(8, 8)), {SEQUENTIAL: FAILS}),
    "a lazy convolution": (lambda: stack(nn.LazyConv1d(8, 1)), {DENSE: IN_PRACTICE}),
    "no layer at all": (lambda: nn.Sequential(nn.Tanh()), {DENSE: FAILS}),
}


@pytest.mark.parametrize("build", PLAIN.values(), ids=PLAIN)
def test_a_plain_dense_stack_gets_selu(build):
    found = recommend_activation(quiet(build))
    assert (found.activation, found.initializer) == ("selu", "lecun_normal")
    assert verdicts(found) == {**dict.fromkeys(CLAUSES, "holds"), **dict.fromkeys(UNSEEN, OPEN)}


@pytest.mark.parametrize(("build", "clause", "place"), BROKEN.values(), ids=BROKEN)
def test_one_broken_condition_gives_elu_and_is_named(build, clause, place):
    found = recommend_activation(quiet(build))
    assert (found.activation, found.initializer) == ("elu", "he_normal")
    assert verdicts(found) == {**dict.fromkeys(CLAUSES, "holds"), clause: FAILS, **dict.fromkeys(UNSEEN, OPEN)}
    assert any(reason.startswith(f"{clause}: fails, {place}: ") for reason in found.reasons)


@pytest.mark.parametrize(("build", "told"), UNTRACED.values(), ids=UNTRACED)
def test_what_cannot_be_traced_stands_in_selus_way_only_by_what_is_seen(build, told):
    found = recommend_activation(quiet(build))
    assert found.activation == ("elu" if told else "selu")
    assert verdicts(found) == {**dict.fromkeys((*CLAUSES, *UNSEEN), OPEN), **told}


def test_a_convolution_holds_in_practice_which_is_not_enough():
    found = recommend_activation(quiet(lambda: nn.Sequential(nn.Conv1d(8, 8, 1), nn.SELU(), nn.Conv1d(8, 8, 1))))
    assert found.activation == "elu"
    assert verdicts(found)[DENSE] == IN_PRACTICE


def test_inputs_that_the_network_normalises_itself_are_told():
    found = recommend_activation(quiet(lambda: nn.Sequential(nn.BatchNorm1d(8), stack())))
    assert found.activation == "selu"
    assert verdicts(found) == {**dict.fromkeys((*CLAUSES, UNSEEN[0]), "holds"), UNSEEN[1]: OPEN}


def test_every_broken_condition_is_listed():
    seen = verdicts(recommend_activation(quiet(lambda: nn.TransformerEncoderLayer(8, 2))))
    assert {clause for clause in CLAUSES if seen[clause] == FAILS} == set(CLAUSES)
    assert verdicts(recommend_activation(quiet(Residual)))[SEQUENTIAL] == FAILS
    assert verdicts(recommend_activation(quiet(Convolutional)))[NORMALIZATION] == FAILS


def test_without_a_model_selu_comes_with_all_its_conditions():
    found = recommend_activation()
    assert found.activation == "selu"
    assert verdicts(found) == dict.fromkeys((*CLAUSES, *UNSEEN), OPEN)
    assert f"general order: {ORDER}" in found.reasons


@pytest.mark.parametrize(("said", "name"), [(True, "selu"), (False, "elu")])
@pytest.mark.parametrize("build", [None, Residual, stack])
def test_what_the_user_says_goes_before_what_is_seen(build, said, name):
    found = recommend_activation(build and quiet(build), self_normalizing=said)
    assert found.activation == name
    assert f"can normalise itself: {'yes' if said else 'no'}, as you say" in found.reasons
    assert all(name.startswith("but seen: ") for name in verdicts(found)), "no clause stands there as if it had decided"


@pytest.mark.parametrize(
    ("build", "broken"), [(Residual, [SEQUENTIAL]), (stack, []), (lambda: stack(nn.Dropout(0.2)), [DROPOUT])]
)
def test_only_what_speaks_against_a_yes_is_told_beside_it(build, broken):
    yes, no = (recommend_activation(quiet(build), self_normalizing=said) for said in (True, False))
    assert verdicts(yes) == {f"but seen: {name}": FAILS for name in broken}
    assert not verdicts(no)


@pytest.mark.parametrize("possible", [True, False])
@pytest.mark.parametrize(
    ("known", "name"),
    [
        ({"latency_matters": True}, "leaky_relu"),
        ({"overfits": True}, "rrelu"),
        ({"samples": HUGE}, "prelu"),
        ({"overfits": True, "latency_matters": True}, "rrelu"),
        ({"overfits": True, "samples": HUGE}, "rrelu"),
        ({"latency_matters": True, "samples": HUGE}, "prelu"),
        ({"latency_matters": True, "samples": HUGE - 1}, "leaky_relu"),
    ],
)
def test_what_is_known_of_the_training_decides_first(possible, known, name):
    found = recommend_activation(self_normalizing=possible, **known)
    assert (found.activation, found.initializer) == (name, "he_normal")


def test_a_training_set_below_the_bound_changes_nothing():
    assert recommend_activation(samples=HUGE - 1) == recommend_activation()


@pytest.mark.parametrize(
    "known", [{}, {"self_normalizing": False}, {"latency_matters": True}, {"overfits": True}, {"samples": HUGE}]
)
def test_the_recommended_names_can_be_built(known):
    found = recommend_activation(**known)
    assert activation(found.activation) is not None
    assert initializer(found.initializer) is not None


def test_it_reads_as_one_line_and_its_reasons():
    found = recommend_activation(quiet(Residual))
    lines = str(found).splitlines()
    assert lines[0] == "elu with he_normal weights"
    assert lines[1:] == [f"- {reason}" for reason in found.reasons]


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        ({"model": "resnet"}, "recommended for an nn.Module, got a str"),
        ({"samples": 0}, "training samples must be a whole number of at least 1, got 0"),
        ({"samples": 1e6}, "must be a whole number"),
        ({"samples": True}, "must be a whole number"),
    ],
)
def test_bad_input_is_refused(arguments, phrase):
    with pytest.raises(BadInput, match=phrase):
        recommend_activation(**arguments)
