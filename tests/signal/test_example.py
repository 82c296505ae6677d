"""Inputs to run a network on."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gainstage.errors import BadInput
from gainstage.signal.example import example_inputs, trace_example
from tests.networks import Functional
from tests.tools import normal, quiet

GUESSED = [
    (lambda: nn.Sequential(nn.Linear(7, 3)), (2, 7)),
    (lambda: nn.Sequential(nn.Conv1d(2, 3, 5), nn.ReLU()), (2, 2, 32)),
    (lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 5), nn.ReLU()), (2, 2, 32, 32)),
    (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 10)), (2, 1, 28, 28)),
    (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 46 * 46, 10)), (2, 1, 48, 48)),
    (lambda: nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2)), (2, 1, 3)),
    (lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(), nn.Linear(2 * 4**3, 2)), (2, 1, 5, 5, 5)),
    (lambda: nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2)), (2, 8)),
]


@pytest.mark.parametrize(("build", "shape"), GUESSED)
def test_without_data_the_shape_is_read_off_the_first_layer(build, shape):
    model = quiet(build)
    x = example_inputs(model)
    assert tuple(x.shape) == shape
    assert not x.any()
    assert trace_example(model).stages


def test_dtype_is_the_networks():
    assert example_inputs(quiet(lambda: nn.Linear(3, 2)).double()).dtype == torch.float64


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, a, b):
        return self.layer(a + b)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (TwoInputs, "shape of the network's inputs cannot be guessed; give data="),
        (nn.ReLU, "shape of the network's inputs cannot be guessed; give data="),
        (lambda: nn.LazyLinear(3), "lazy layers without a shape yet; run one batch through it first"),
    ],
)
def test_what_cannot_be_guessed_is_asked_for(build, message):
    with pytest.raises(BadInput, match=message):
        example_inputs(quiet(build))
    with pytest.raises(BadInput, match=message):
        trace_example(quiet(build))


X = normal(40, 20)


@pytest.mark.parametrize(
    "data",
    [X, (X, torch.zeros(40)), TensorDataset(X, torch.zeros(40)), DataLoader(TensorDataset(X, torch.zeros(40)), 10)],
    ids=["inputs", "pair", "dataset", "loader"],
)
def test_of_data_there_are_at_most_so_many_samples_and_they_are_copies(data):
    model = quiet(Functional)
    x = example_inputs(model, data, samples=8)
    assert tuple(x.shape) == (8, 20)
    assert len(example_inputs(model, data)) == 40
    kept = X.clone()
    x.zero_()
    assert torch.equal(X, kept)


def test_other_data_is_refused():
    with pytest.raises(BadInput, match="data must be"):
        example_inputs(quiet(Functional), "digits")
