"""I101 beyond its two cases: which deviations matter, and which networks it does not judge."""

import pytest
from torch import nn

import gainstage as gs
from gainstage.rules import flatten
from tests.networks import deep, normal_weights
from tests.tools import blobs

LOSS = nn.CrossEntropyLoss()


def codes(model, **options):
    return gs.check(model, LOSS, blobs(), **options).codes


@pytest.mark.parametrize("level", ["static", "preflight"])
def test_it_speaks_without_any_measuring(level):
    assert "I101" in codes(deep(6, "logistic", normal_weights(1.0)), level=level)


@pytest.mark.parametrize(
    ("activation", "std", "depth"),
    [("relu", 0.02, 6), ("relu", 1.0, 4), ("selu", 1.0, 4), ("tanh", 0.01, 4), ("tanh", 1.0, 4)],
)
def test_weights_far_too_small_or_large_are_found(activation, std, depth):
    assert "I101" in codes(deep(depth, activation, normal_weights(std)))


def test_a_gain_of_five_thirds_for_tanh_is_fine():
    """Recommended by torch; 4.4 dB above the table at each stage, yet the tanh keeps it in bounds."""
    assert codes(deep(20, "tanh", normal_weights(5 / 3 * 64**-0.5))) == []


def test_a_small_deviation_matters_only_when_the_depth_multiplies_it():
    glorot = normal_weights((2 / 128) ** 0.5)  # 3 dB below He
    assert codes(deep(4, "relu", glorot)) == []
    assert "I101" in codes(deep(20, "relu", normal_weights((2 / 128) ** 0.5)))


def test_a_trained_network_is_not_judged_by_its_variance():
    model = deep(6, "relu")
    x, y = blobs()
    gs.fit(model, LOSS, (x, y), optimizer="adam", epochs=30, progress=False)
    for parameter in model.parameters():
        parameter.data.mul_(0.2)
    assert "I101" not in codes(model)


def test_the_finding_says_what_theory_wants_and_how_far_off_it_is():
    finding = next(
        f for f in flatten(gs.check(deep(8, "relu", normal_weights(0.5)), LOSS, blobs()).findings) if f.code == "I101"
    )
    assert "where relu needs 0.0312 (He)" in finding.message
    assert "sigma off" in finding.message
    assert finding.evidence["deviation_db"] > 8
