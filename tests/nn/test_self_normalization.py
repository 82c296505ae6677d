"""Self-normalisation: a healthy network keeps every condition, each fault breaks its own and no other."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gainstage.errors import BadInput
from gainstage.initialization import initialize
from gainstage.nn import VarianceScaling, convolutional_network, dense_network, self_normalization
from gainstage.nn.inspection import ACTIVATIONS, DENSE, DROPOUT, NORMALIZATION, SEQUENTIAL
from gainstage.nn.self_normalization import BIASES, INPUTS, WEIGHTS, Clause, SelfNormalization
from tests.networks import Convolutional, Residual
from tests.nn.self_normalizing import (
    ALL,
    WithFunctions,
    X,
    changed,
    clause,
    dense,
    drawn,
    faults,
    scale_second,
    verdicts,
)
from tests.tools import generator, normal, quiet, random_states, same_states


class Skipping(WithFunctions):
    def forward(self, x):
        return self.head(x + F.selu(self.layers[0](x)))


HEALTHY = {
    "modules": lambda: dense(dropout=0.1),
    "functions": lambda: drawn(quiet(WithFunctions)),
    "in evaluation": lambda: drawn(quiet(WithFunctions)).eval(),
    "a truncated normal distribution": lambda: dense(initializer=VarianceScaling(distribution="truncated_normal")),
    "narrow and deep": lambda: dense([8] * 30),
    "a funnel": lambda: dense([256, 64, 16]),
    "one hidden layer": lambda: dense([8]),
    "double precision": lambda: dense().to(torch.float64),
    "biased output": lambda: _with_output_bias(dense()),
}


def _with_output_bias(model):
    nn.init.constant_(model.output.bias, 2.0)
    return model


@pytest.mark.parametrize("build", HEALTHY.values(), ids=HEALTHY)
def test_a_healthy_network_keeps_every_condition(build):
    model = build()
    found = self_normalization(model, X.to(next(model.parameters()).dtype))
    assert verdicts(found) == dict.fromkeys(ALL, "holds")
    assert found.holds is True
    assert found.guaranteed


@pytest.mark.draws
@pytest.mark.parametrize("scheme", ["auto", "exact", "isometric"])
def test_what_initialize_draws_holds(scheme):
    model = quiet(lambda: dense_network(20, [64] * 10, 3, "selu", nn.init.zeros_))
    assert faults(self_normalization(model, X)) == {WEIGHTS: "fails"}
    initialize(model, X, scheme=scheme)
    assert not faults(self_normalization(model, X))


BROKEN = {
    "unscaled inputs": (dense, X * 2, INPUTS),
    "shifted inputs": (dense, X + 1, INPUTS),
    "he normal weights": (lambda: dense(initializer="he_normal"), X, WEIGHTS),
    "one layer a quarter too wide": (lambda: scale_second(1.25**0.5), X, WEIGHTS),
    "one layer a quarter too narrow": (lambda: scale_second(0.75**0.5), X, WEIGHTS),
    "zero weights": (lambda: changed(lambda layer: layer.weight.zero_()), X, WEIGHTS),
    "a mean in the weights": (
        lambda: changed(lambda layer: layer.weight.add_(0.0115 - layer.weight.mean())),
        X,
        WEIGHTS,
    ),
    "a weight that is not a number": (lambda: changed(lambda layer: layer.weight[0].fill_(math.nan)), X, WEIGHTS),
    "one bias": (lambda: changed(lambda layer: layer.bias[3].fill_(0.01)), X, BIASES),
    "elu": (lambda: dense(activation="elu"), X, ACTIVATIONS),
    "a skip connection": (lambda: drawn(quiet(Skipping)), X, SEQUENTIAL),
    "dropout": (lambda: _with_dropout(dense()), X, DROPOUT),
    "batch normalisation": (lambda: dense(normalization="batch"), X, NORMALIZATION),
    "layer normalisation": (lambda: dense(normalization="layer"), X, NORMALIZATION),
}


def _with_dropout(model):
    return nn.Sequential(*model[:4], nn.Dropout(0.1), *model[4:])


@pytest.mark.parametrize(("build", "x", "name"), BROKEN.values(), ids=BROKEN)
def test_a_fault_breaks_its_own_condition_and_no_other(build, x, name):
    found = self_normalization(build(), x)
    assert faults(found) == {name: "fails"}
    assert found.holds is False
    assert not found.guaranteed
    assert clause(found, name).advice


def test_a_layer_that_nobody_has_proved_anything_about():
    class Product(WithFunctions):
        def forward(self, x):
            return self.head(F.selu(torch.einsum("ni,ij->nj", F.selu(self.layers[0](x)), self.layers[1].weight)))

    assert faults(self_normalization(drawn(quiet(Product)), X)) == {DENSE: "fails"}


@pytest.mark.parametrize(
    "build",
    [
        lambda: dense([]),
        lambda: nn.Sequential(dense([]), nn.Softmax(1)),
        lambda: nn.Sequential(nn.BatchNorm1d(20), nn.SELU(), dense([])),
    ],
    ids=["dense", "softmax", "selu in front"],
)
def test_without_a_hidden_layer_there_is_nothing_that_normalises_itself(build):
    found = self_normalization(quiet(build), X)
    assert faults(found) == {ACTIVATIONS: "fails"}
    assert found.holds is False
    assert "no hidden layer" in clause(found, ACTIVATIONS).reason
    assert "torch.nn.SELU" in clause(found, ACTIVATIONS).advice
    assert clause(found, WEIGHTS).reason == clause(found, BIASES).reason == "there is no hidden layer"


def test_a_layer_with_a_selu_normalises_itself_even_if_no_other_follows():
    assert not faults(self_normalization(nn.Sequential(dense([]), nn.SELU()), X))


def test_operations_are_counted():
    reasons = [clause(self_normalization(dense(hidden)), DENSE).reason for hidden in ([], [8])]
    assert reasons == [f"nothing in a forward pass of {count} breaks it" for count in ("1 operation", "3 operations")]


def test_correct_networks_on_standardised_data_raise_no_alarm():
    alarms = {}
    for seed in range(50):
        width, depth, samples = ((8, 20, 20), (64, 5, 300), (16, 40, 2000))[seed % 3]
        x = normal(samples, 20, seed=100 + seed)
        found = self_normalization(dense([width] * depth, seed=seed), x if seed % 2 else (x - x.mean(0)) / x.std(0))
        alarms |= {seed: faults(found)} if not found.guaranteed else {}
    assert not alarms


def test_convolutions_hold_in_practice_but_are_not_guaranteed():
    model = quiet(lambda: convolutional_network(1, [8, 8, 8], 3, "selu", generator=generator()))
    found = self_normalization(model, normal(64, 1, 8, 8))
    assert faults(found) == {DENSE: "holds in practice, not guaranteed"}
    assert found.holds is True
    assert not found.guaranteed
    assert "conv2d in hidden1" in clause(found, DENSE).reason


def test_an_operation_that_nobody_knows_leaves_it_open():
    class Odd(WithFunctions):
        def forward(self, x):
            return self.head(F.selu(self.layers[0](x)).cumsum(1))

    found = self_normalization(drawn(quiet(Odd)), X)
    assert faults(found) == {ACTIVATIONS: "cannot be told"}
    assert found.holds is None


def test_what_cannot_be_traced_cannot_be_told_but_for_what_the_modules_show():
    found = self_normalization(quiet(lambda: nn.Sequential(nn.LazyLinear(8), nn.BatchNorm1d(8), nn.SELU())))
    assert verdicts(found) == {**dict.fromkeys(ALL, "cannot be told"), NORMALIZATION: "fails"}
    assert "BatchNorm1d in 1" in clause(found, NORMALIZATION).reason


@pytest.mark.draws
@pytest.mark.parametrize("training", [True, False])
def test_it_leaves_no_trace(training):
    model = quiet(
        lambda: nn.Sequential(nn.BatchNorm1d(20), nn.Linear(20, 8), nn.SELU(), nn.Dropout(0.5), nn.Linear(8, 3))
    )
    nn.utils.parametrizations.spectral_norm(model[1])
    model(X).sum().backward()
    model.train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    states = random_states()
    self_normalization(model, X)
    self_normalization(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is g or torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert {module.training for module in model.modules()} == {training}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert same_states(states, random_states())


@pytest.mark.parametrize("build", [dense, Convolutional, Residual])
def test_it_is_written_as_strict_json(build):
    found = self_normalization(quiet(build))
    written = json.loads(found.to_json())
    assert written["holds"] is found.holds
    assert [each["name"] for each in written["clauses"]] == ALL
    assert [each["state"] for each in written["clauses"]] == list(verdicts(found).values())


@pytest.mark.parametrize(
    ("holds", "expected"),
    [((True, True), True), ((True, None), None), ((None, False), False), ((False, True), False)],
)
def test_one_failure_decides_and_one_doubt_leaves_it_open(holds, expected):
    found = SelfNormalization(tuple(Clause(str(i), each, "") for i, each in enumerate(holds)))
    assert found.holds is expected
    assert found.guaranteed is (expected is True)


@pytest.mark.parametrize(
    ("model", "data", "phrase"),
    [
        ("resnet", None, "judged for an nn.Module, got a str"),
        (dense(), X[:, :7], "forward failed on inputs of shape"),
        (dense(), X[:1], "a batch of 1 sample cannot be measured"),
        (dense(), torch.tensor(1.0), "the data set is empty"),
        (dense(), X * math.nan, "NaN"),
        (dense(), "data", "data must be"),
    ],
)
def test_bad_input_is_refused(model, data, phrase):
    with pytest.raises(BadInput, match=phrase):
        self_normalization(model, data)
