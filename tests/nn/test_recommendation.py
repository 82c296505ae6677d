"""The chapter's choice of an activation: each condition seen in the modules, each exception, each reason."""

import re

import pytest
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from gainstage.errors import BadInput
from gainstage.nn import activation, initializer, recommend_activation
from gainstage.nn.recommendation import HUGE, ORDER, UNSEEN, Recommendation
from tests.networks import Convolutional, Functional, Residual, deep
from tests.tools import quiet

DENSE, NORM = "dense layers only", "no normalisation layers"
DROPOUT, SKIPS = "no dropout but alpha dropout", "no skip connections"
CLAUSES = (DENSE, NORM, DROPOUT, SKIPS)


class Overridden(nn.Sequential):
    """Looks like a plain stack, and is none."""

    def forward(self, x):
        return x + super().forward(x)


def stack(*inserted, kind=nn.Sequential):
    return kind(nn.Linear(8, 8), nn.SELU(), *inserted, nn.Sequential(nn.Linear(8, 8), nn.PReLU()), nn.Linear(8, 8))


def verdicts(found: Recommendation) -> dict[str, str]:
    """Clause to "yes", "no" or "cannot" (be seen)."""
    pairs = (re.match(r"(.*?): (yes|no|cannot)\b", reason) for reason in found.reasons)
    return {match[1]: match[2] for match in pairs if match}


PLAIN = {
    "a plain stack": lambda: stack(),
    "gainstage's own": lambda: deep(3, "selu"),
    "alpha dropout": lambda: stack(nn.AlphaDropout(0.1)),
    "dropout of nothing": lambda: stack(nn.Dropout(0.0)),
    "a module without weights": lambda: stack(nn.Flatten()),
    "one dense layer": lambda: nn.Linear(8, 3),
    "parametrised dense layers": lambda: stack(weight_norm(nn.Linear(8, 8))),
    "a lazy dense layer": lambda: nn.Sequential(nn.LazyLinear(8), nn.SELU(), nn.Linear(8, 3)),
}
BROKEN = {
    "a convolution": (lambda: stack(nn.Conv1d(8, 8, 1)), DENSE, "2 (Conv1d)"),
    "a parametrised convolution": (lambda: stack(weight_norm(nn.Conv1d(8, 8, 1, bias=False))), DENSE, "2 (Param"),
    "a lazy convolution": (lambda: stack(nn.LazyConv1d(8, 1)), DENSE, "2 (LazyConv1d)"),
    "a recurrent layer": (lambda: stack(nn.GRU(8, 8)), DENSE, "2 (GRU)"),
    "an embedding": (lambda: stack(nn.Embedding(8, 8)), DENSE, "2 (Embedding)"),
    "no layer at all": (lambda: nn.Sequential(nn.Tanh()), DENSE, "there is none"),
    "batch normalisation": (lambda: stack(nn.BatchNorm1d(8)), NORM, "2 (BatchNorm1d)"),
    "batch normalisation without weights": (lambda: stack(nn.BatchNorm1d(8, affine=False)), NORM, "2 (BatchNorm1d)"),
    "layer normalisation": (lambda: stack(nn.LayerNorm(8), nn.LayerNorm(8)), NORM, "2 (LayerNorm) and 1 more"),
    "dropout": (lambda: stack(nn.Dropout(0.2)), DROPOUT, "2 (Dropout)"),
    "dropout of channels": (lambda: stack(nn.Dropout1d(0.2)), DROPOUT, "2 (Dropout1d)"),
    "a residual stack": (lambda: stack(kind=Overridden), SKIPS, "possible in the forward of the model (Overridden)"),
    "a module of the user's": (Functional, SKIPS, "possible in the forward of the model (Functional)"),
    "an inner module": (lambda: stack(Overridden(nn.Linear(8, 8))), SKIPS, "possible in the forward of 2 (Overridden)"),
}


@pytest.mark.parametrize("build", PLAIN.values(), ids=PLAIN)
def test_a_plain_dense_stack_gets_selu(build):
    found = recommend_activation(quiet(build))
    assert (found.activation, found.initializer) == ("selu", "lecun_normal")
    assert verdicts(found) == {**dict.fromkeys(CLAUSES, "yes"), **dict.fromkeys(UNSEEN, "cannot")}


@pytest.mark.parametrize(("build", "clause", "place"), BROKEN.values(), ids=BROKEN)
def test_one_broken_condition_gives_elu_and_is_named(build, clause, place):
    found = recommend_activation(quiet(build))
    assert (found.activation, found.initializer) == ("elu", "he_normal")
    assert verdicts(found) == {**dict.fromkeys(CLAUSES, "yes"), clause: "no", **dict.fromkeys(UNSEEN, "cannot")}
    assert any(reason.startswith(f"{clause}: no, {place}") for reason in found.reasons)


@pytest.mark.parametrize(
    ("build", "broken"),
    [
        (Convolutional, {DENSE, NORM, DROPOUT, SKIPS}),
        (Residual, {SKIPS}),
        (lambda: nn.TransformerEncoderLayer(8, 2), {DENSE, NORM, DROPOUT, SKIPS}),
    ],
)
def test_every_broken_condition_is_listed(build, broken):
    seen = verdicts(recommend_activation(quiet(build)))
    assert {clause for clause, verdict in seen.items() if verdict == "no"} == broken


def test_without_a_model_selu_comes_with_all_its_conditions():
    found = recommend_activation()
    assert found.activation == "selu"
    assert verdicts(found) == dict.fromkeys((*CLAUSES, *UNSEEN), "cannot")
    assert f"general order: {ORDER}" in found.reasons


@pytest.mark.parametrize(("said", "name"), [(True, "selu"), (False, "elu")])
def test_what_the_user_says_goes_before_what_is_seen(said, name):
    opposite = quiet(Residual if said else stack)
    for found in (recommend_activation(self_normalizing=said), recommend_activation(opposite, self_normalizing=said)):
        assert found.activation == name
        assert f"can normalise itself: {'yes' if said else 'no'}, as you say" in found.reasons
    assert verdicts(found)[SKIPS] == ("no" if said else "yes"), "what is seen is still told"


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
