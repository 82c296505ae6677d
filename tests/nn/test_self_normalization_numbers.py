"""The numbers of self-normalisation: inputs, weights and biases against what sampling error explains."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from gainstage.nn import self_normalization
from gainstage.nn.inspection import NORMALIZATION
from gainstage.nn.self_normalization import BIASES, INPUTS, MEAN, POWER, SHOWN, VARIANCE, WEIGHTS
from gainstage.theory import lookup
from gainstage.theory.moments import level_after
from tests.nn.self_normalizing import WithFunctions, X, clause, dense, drawn, faults, scale_second
from tests.tools import generator, normal, quiet


# ---------------------------------------------------------------- inputs
def with_feature(values):
    x = X.clone()
    x[:, 7] = values
    return x


@pytest.mark.parametrize(
    ("values", "phrase"),
    [
        (X[:, 7] * 2, r"feature 7 has mean -?0\.\d+ and standard deviation (2|1\.9|2\.1)"),
        (X[:, 7] + 0.6, r"feature 7 has mean 0\.[56]\d? and standard deviation (1|0\.9\d?)"),
        (1.0, "constant in all samples: feature 7"),
        (0.0, "constant in all samples: feature 7"),
    ],
)
def test_one_feature_that_is_not_standardised_is_named(values, phrase):
    found = clause(self_normalization(dense(), with_feature(values)), INPUTS)
    assert found.holds is False
    assert re.fullmatch(phrase, found.reason)
    assert found.evidence["off"] + found.evidence["constant"] == 1


def test_of_many_features_only_a_few_are_named():
    x = X.clone()
    x[:, 5:] = 0
    reason = clause(self_normalization(dense(), x), INPUTS).reason
    assert reason == "constant in all samples: feature 5, feature 6, feature 7 and 12 more"
    assert reason.count("feature") == SHOWN


@pytest.mark.parametrize(
    "data",
    [
        X,
        X.numpy(),
        (X, torch.zeros(500)),
        TensorDataset(X, torch.zeros(500)),
        DataLoader(TensorDataset(X, torch.zeros(500)), batch_size=50),
    ],
    ids=["tensor", "array", "pair", "data set", "loader"],
)
def test_data_of_any_kind_are_judged_in_all_their_samples(data):
    evidence = clause(self_normalization(dense(), data), INPUTS).evidence
    assert evidence["samples"] == 500
    assert evidence["features"] == 20
    assert evidence["largest_mean"] == pytest.approx(float(X.mean(0).abs().max()), rel=1e-5)


@pytest.mark.parametrize(("shape", "samples"), [((3000, 20), 2048), ((500, 4096), 256), ((100, 30_000), 64)])
def test_many_numbers_are_sampled(shape, samples):
    model = quiet(lambda: nn.Linear(shape[1], 2))
    assert clause(self_normalization(model, torch.zeros(shape)), INPUTS).evidence["samples"] == samples


def test_sorted_data_are_judged_by_samples_from_everywhere():
    x = normal(6000, 20).sort(0).values
    assert clause(self_normalization(dense(), x), INPUTS).holds
    assert not clause(self_normalization(dense(), x[:2048]), INPUTS).holds, "or the test could not fail"


def test_without_data_the_inputs_cannot_be_told():
    found = self_normalization(dense())
    assert faults(found) == {INPUTS: "cannot be told"}
    assert found.holds is None
    assert not found.guaranteed


def test_batch_normalisation_in_front_standardises_the_inputs():
    model = dense(normalize_inputs=True)
    assert not faults(self_normalization(model))
    assert not faults(self_normalization(model, X * 7 + 3))


# ---------------------------------------------------------------- weights
def weights_by(fan):
    """An initialiser of variance 1 / (size of that dimension of the weight)."""
    draw = generator(3)
    return lambda weight: weight.normal_(0, weight.shape[fan] ** -0.5, generator=draw)


@pytest.mark.parametrize("hidden", [[60, 180], [10, 5], [30, 20, 10]])
def test_fan_in_counts_and_not_fan_out(hidden):
    assert not faults(self_normalization(dense(hidden, initializer=weights_by(1)), X))
    assert faults(self_normalization(dense(hidden, initializer=weights_by(0)), X)) == {WEIGHTS: "fails"}


def test_the_larger_the_layers_the_smaller_the_error_that_shows():
    """Variance 0.85 / fan_in: beyond the theorem's domain, but no evidence in a few weights."""
    factor = math.sqrt(0.85)

    def found(width, depth):
        model = dense([width] * depth)
        with torch.no_grad():
            for layer in model[::2]:
                layer.weight.mul_(factor)
        return clause(self_normalization(model, X), WEIGHTS).holds

    assert found(8, 1)
    assert not found(256, 1)
    assert not found(8, 100), "no layer shows it alone, all together do"


def test_all_layers_together_are_named_only_where_no_layer_is():
    reason = clause(self_normalization(dense(initializer="he_normal"), X), WEIGHTS).reason
    assert [name in reason for name in ("hidden1", "hidden2", "hidden3", "together", "more")] == [True] * 3 + [
        False
    ] * 2


def test_an_error_that_any_number_of_layers_can_level_out_is_none():
    model = scale_second(math.sqrt(1.08))
    assert not faults(self_normalization(model, X))


def settled(power, layers=1000):
    """Mean square behind layers whose units' squared weights add up to `power`."""
    level = 1.0
    for _ in range(layers):
        level = level_after(lookup("selu"), level * power)
    return level


def test_the_domain_is_the_one_in_which_errors_of_any_number_of_layers_stay_bounded():
    assert all(VARIANCE[0] <= settled(power) <= VARIANCE[1] for power in POWER)
    assert not VARIANCE[0] <= settled(POWER[0] - 0.05) <= VARIANCE[1], "a wider domain must be rejected"
    assert not VARIANCE[0] <= settled(POWER[1] + 0.05) <= VARIANCE[1], "a wider domain must be rejected"
    assert MEAN == 0.1


def test_the_evidence_adds_the_errors_up_over_the_depth():
    evidence = clause(self_normalization(dense([256] * 20, initializer="he_normal"), X), WEIGHTS).evidence
    assert evidence["layers"] == 20
    assert evidence["variance_times_fan_in"] == pytest.approx(2, rel=0.05)
    assert evidence["standard_errors"] > 100
    assert evidence["mean_square_behind"] == pytest.approx(settled(2.0, 20), rel=0.1)


def test_uniform_weights_have_the_variance_but_not_the_shape():
    found = self_normalization(dense(initializer="lecun_uniform"), X)
    assert faults(found) == {WEIGHTS: "holds in practice, not guaranteed"}
    assert found.holds is True
    assert not found.guaranteed
    assert "hidden1 is uniform, not normal" in clause(found, WEIGHTS).reason
    assert clause(found, WEIGHTS).evidence["kurtosis"] == pytest.approx(1.8, abs=0.1)


def test_sparse_weights_have_the_variance_but_not_the_shape():
    def sparse(weight):
        kept = torch.rand(weight.shape, generator=generator(4)) < 0.1
        weight.copy_(normal(*weight.shape, seed=5) * kept / math.sqrt(0.1 * weight.shape[1]))

    found = clause(self_normalization(dense([256, 256], initializer=sparse), X), WEIGHTS)
    assert found.state == "holds in practice, not guaranteed"
    assert "of kurtosis" in found.reason


def test_torchs_own_initialisation_fails_in_weights_and_biases():
    model = quiet(lambda: nn.Sequential(nn.Linear(20, 64), nn.SELU(), nn.Linear(64, 64), nn.SELU(), nn.Linear(64, 3)))
    found = self_normalization(model, X)
    assert faults(found) == {WEIGHTS: "fails", BIASES: "fails"}
    assert clause(found, WEIGHTS).evidence["variance_times_fan_in"] == pytest.approx(1 / 3, rel=0.1)


def test_after_training_the_biases_are_not_zero_any_more():
    model, y = dense(), (X[:, 0] > 0).long()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model(X), y).backward()
        optimizer.step()
    found = self_normalization(model, X)
    assert faults(found) == {BIASES: "fails"}
    assert "192 of 192 are not zero any more, as expected after training" in clause(found, BIASES).reason


def test_weights_that_cannot_be_read_cannot_be_told():
    class Scaled(WithFunctions):
        def forward(self, x):
            x = F.selu(self.layers[1](x)) if self.plain else x
            return self.head(F.selu(F.linear(x, self.layers[0].weight * 2, self.layers[0].bias)))

    for plain in (False, True):
        model = drawn(quiet(Scaled))
        model.plain = plain
        assert faults(self_normalization(model, X)) == {WEIGHTS: "cannot be told"}


def test_what_has_no_values_cannot_be_told_but_for_its_architecture():
    found = self_normalization(dense(normalization="layer").to("meta"))
    assert faults(found) == {**dict.fromkeys((INPUTS, WEIGHTS, BIASES), "cannot be told"), NORMALIZATION: "fails"}
