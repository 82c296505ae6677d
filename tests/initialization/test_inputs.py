"""What gs.initialize is given: each mistake gets one sentence that says what to do, before anything has changed."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import gainstage as gs
from gainstage.errors import BadInput
from gainstage.initialization.inputs import SAMPLES, checked_bias, checked_inputs, traced
from gainstage.initialization.plans import PLANS
from gainstage.signal import trace
from tests.networks import deep
from tests.tools import blobs, generator, normal, quiet

WHOLE = normal(8, 20).mul(9).long()
EMPTY = "hold no samples: give inputs of shape"
ALONE = "are one sample without a batch: give"
TYPES = "the inputs are {}, the weights float32: convert one, as with x.to"
BAD = {
    "another width": (lambda: deep(1, "relu"), normal(8, 19), r"forward failed on inputs of shape \(8, 19\)"),
    "whole numbers": (lambda: deep(1, "relu"), WHOLE, TYPES.format("int64")),
    "whole numbers with targets": (lambda: deep(1, "relu"), (WHOLE, torch.zeros(8)), TYPES.format("int64")),
    "an array of whole numbers": (lambda: deep(1, "relu"), WHOLE.numpy(), TYPES.format("int64")),
    "double precision": (lambda: deep(1, "relu"), normal(8, 20).double(), TYPES.format("float64")),
    "no samples": (lambda: deep(1, "relu"), normal(0, 20), EMPTY),
    "nothing": (lambda: deep(1, "relu"), normal(0), EMPTY),
    "a number": (lambda: deep(1, "relu"), torch.tensor(1.0), EMPTY),
    "an array without samples": (lambda: deep(1, "relu"), np.zeros((0, 20)), "the data set is empty"),
    "no samples with targets": (lambda: deep(1, "relu"), (normal(0, 20), normal(0)), "the data set is empty"),
    "one sample": (lambda: deep(1, "relu"), normal(20), rf"inputs of shape \(20,\) {ALONE}"),
    "text": (lambda: deep(1, "relu"), "data.csv", "data must be"),
    "three parts": (lambda: deep(1, "relu"), (*blobs(), 1), "data must be"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("scheme", PLANS)
def test_data_that_cannot_be_used_get_one_sentence_and_change_nothing(name, scheme):
    build, data, sentence = BAD[name]
    model = build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(BadInput, match=sentence) as caught:
        gs.initialize(model, data, scheme=scheme)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_one_image_alone_is_found_where_it_runs():
    model = quiet(lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3)))
    with pytest.raises(BadInput, match=ALONE):
        traced(model, normal(1, 6, 6))
    assert len(traced(model, normal(2, 1, 6, 6)).stages) == 2


def test_a_network_may_well_do_without_a_batch_inside():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.nodes, self.head = nn.Linear(20, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(torch.relu(self.nodes(x)).mean(0))

    assert [stage.layer.shape for stage in traced(quiet(Pooled), normal(8, 20)).stages] == [(8, 8), (3,)]


@pytest.mark.parametrize(
    ("build", "x"),
    [
        (lambda: nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(9, 3)), torch.zeros(8, 2).long()),
        (lambda: nn.Linear(20, 3), normal(8, 19)),
    ],
    ids=["numbers to look up", "the same type"],
)
def test_types_are_named_only_where_they_may_be_the_reason(build, x):
    with pytest.raises(BadInput, match="forward failed") as caught:
        gs.initialize(quiet(build), x)
    assert "convert" not in str(caught.value)


@pytest.mark.parametrize(
    "alike",
    [
        torch.ones(16, 20),
        torch.zeros(16, 20),
        normal(1, 20).expand(16, 20),
        (torch.ones(16, 20), torch.arange(16)),
        TensorDataset(torch.ones(16, 20), torch.arange(16)),
    ],
    ids=["ones", "zeros", "one sample again", "with targets", "data set"],
)
def test_inputs_that_are_all_alike_have_no_signal_to_scale_to(alike):
    model = deep(2, "tanh")
    before = model.hidden1.weight.detach().clone()
    with pytest.raises(BadInput, match="all 16 inputs are alike; give samples that differ"):
        gs.initialize(model, alike, scheme="data")
    assert torch.equal(model.hidden1.weight, before)
    assert len(gs.initialize(model, alike, scheme="auto", generator=generator()).rows) == 3, "it measures nothing"


def test_one_input_of_several_that_differs_is_enough():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(20, 3)

        def forward(self, a, b):
            return self.layer(a + b)

    ones = torch.ones(16, 20)
    data = ((ones, normal(16, 20)), torch.arange(16))
    assert gs.initialize(quiet(Two), data, scheme="data", generator=generator()).rows
    with pytest.raises(BadInput, match="all 16 inputs are alike"):
        gs.initialize(quiet(Two), ((ones, ones), torch.arange(16)), scheme="data")


def test_an_array_of_inputs_alone_is_data():
    found = checked_inputs(deep(1, "relu"), normal(16, 20).double().numpy(), "data")
    assert torch.equal(found, normal(16, 20))


def test_of_many_samples_some_are_taken():
    assert checked_inputs(deep(1, "relu"), normal(1000, 20), "auto").shape == (SAMPLES, 20)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([1.0, 2.0], "has 2 values, but the network's last layer has 3 biases"),
        (0.5, "has 1 value, but the network's last layer has 3 biases"),
        ("abc", "must be numbers, one for each output, got 'abc'"),
        ([[1.0, 2.0], [3.0]], "must be numbers, one for each output"),
        ({"a": 1.0}, "must be numbers, one for each output"),
        ([1.0, 2.0, 1j], "NaN, infinite or complex"),
        ([1.0, 2.0, float("inf")], "NaN, infinite or complex"),
    ],
)
def test_biases_that_do_not_fit_are_refused(values, sentence):
    model = deep(1, "relu")
    before = model.output.bias.detach().clone()
    with pytest.raises(BadInput, match=sentence):
        gs.initialize(model, output_bias=values)
    assert torch.equal(model.output.bias, before)


@pytest.mark.parametrize("values", [[1, 2, 3], np.array([1.0, 2.0, 3.0]), torch.tensor([[1.0], [2.0], [3.0]])])
def test_biases_may_be_any_numbers(values):
    model = deep(1, "relu")
    gs.initialize(model, output_bias=values, generator=generator())
    assert model.output.bias.tolist() == [1.0, 2.0, 3.0]
    bias, wanted = checked_bias(model, trace(model, normal(4, 20)), values)
    assert bias is model.output.bias
    assert wanted.shape == bias.shape
