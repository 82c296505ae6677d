"""Where numbers first stop being finite, forward and backward."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gainstage as gs
from gainstage.errors import BadInput
from gainstage.signal import measure
from gainstage.signal.locating import locate, sample_of
from tests.networks import Function, deep
from tests.tools import blobs, normal, quiet

LOSS = F.cross_entropy


def network(function):
    """A layer, a function called twice in one module, and a layer; the function is told which call it is."""

    class Twice(nn.Module):
        calls = 0

        def forward(self, z):
            self.calls += 1
            return function(z, self.calls)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.function, self.last = nn.Linear(20, 8), Twice(), nn.Linear(8, 3)

        def forward(self, x):
            return self.last(self.function(self.function(self.first(x))))

    return quiet(Network)


def place(model, loss=LOSS, batch=None):
    batch = batch or blobs(16)
    return locate(model, loss, batch, len(batch[1]))


def test_the_operation_its_call_and_the_sample():
    def function(z, call):
        return torch.log(torch.where(torch.arange(len(z))[:, None] < 5, z.abs() + 1, -1.0)) if call == 2 else z * 1e3

    found = place(network(function))
    assert (found.direction, found.operation, found.module, found.call) == ("forward", "log", "function", 2)
    assert found.sample == 5
    assert found.tensor is None
    assert str(found).startswith("log in function (call 2), sample 5, where the largest number that went in was ")


def test_an_overflow_says_what_went_in():
    model = network(lambda z, call: z * 1e30)
    found = place(model)
    x = model.first(blobs(16)[0]) * 1e30
    assert (found.operation, found.call) == ("mul", 2)
    assert found.largest == pytest.approx(float(x.detach().abs().max()), rel=1e-4)


def test_where_all_is_finite_there_is_no_such_place():
    assert place(network(lambda z, call: z)) is None
    _, ledger = measure(deep(2, "tanh"), LOSS, blobs())
    assert ledger.non_finite is None
    assert ledger.to_dict()["non_finite"] is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_parameter_that_is_not_finite_is_named(value):
    model = deep(3, "relu")
    model.hidden2.weight.data[3, 4] = value
    found = place(model)
    assert (found.operation, found.module, found.tensor, found.sample) == ("linear", "hidden2", "hidden2.weight", None)
    assert str(found).endswith("hidden2.weight itself is not finite")


def test_a_buffer_that_is_no_number_is_named():
    model = quiet(lambda: nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))).eval()
    model[1].running_var[2] = math.nan
    assert place(model).tensor == "1.running_var"


@pytest.mark.parametrize("mask", ["filled", "added", "buffer"])
def test_a_mask_is_not_to_blame_for_what_comes_later(mask):
    """Infinities that are put in on purpose vanish in the softmax; the logarithm behind it is the first fault."""
    upper = torch.ones(8, 8).triu(1).bool()
    additive = torch.zeros(8, 8).masked_fill(upper, -math.inf)

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(20, 8), nn.Linear(8, 3)
            self.register_buffer("mask", additive.clone())

        def forward(self, x):
            scores = self.layer(x)[:, None] * torch.ones(8, 1)
            masked = {
                "filled": lambda: scores.masked_fill(upper, -math.inf),
                "added": lambda: scores + additive,
                "buffer": lambda: scores + self.mask,
            }[mask]()
            return self.head(torch.log(masked.softmax(-1) - 1).sum(1))

    found = place(quiet(Masked))
    assert (found.operation, found.tensor) == ("log", None)


@pytest.mark.parametrize("held", [False, True])
def test_a_softmax_of_nothing_but_a_mask_is_the_first_place(held):
    def function(z, call):
        return (z + model.shut if held else z.masked_fill(model.shut < 0, -math.inf)).softmax(-1)

    model = network(function)
    model.register_buffer("shut", torch.full((8,), -math.inf))
    found = place(model)
    assert (found.operation, found.tensor) == ("softmax", None)


def test_in_the_loss():
    def loss(output, y):
        return torch.log(output - output).mean()

    found = place(network(lambda z, call: z), loss)
    assert (found.operation, found.in_loss, found.sample) == ("log", True, 0)
    assert "log in the loss" in str(found)


def test_backward_the_first_operation_that_makes_it_of_a_finite_gradient():
    """The root of zero has an infinite slope: behind a product with zero it is none at all, behind a rectifier it is shut
    off."""

    def function(z, call):
        return torch.sqrt(F.relu(z - 1e6) if call == 2 else 0 * z) + z

    model = network(function)
    found = place(model)
    assert (found.direction, found.operation, found.module, found.call) == ("backward", "sqrt", "function", 1)
    assert found.sample == 0
    assert str(found).startswith("the gradient of sqrt in function, sample 0")
    _, ledger = measure(model, LOSS, blobs(16))
    assert ledger.non_finite == found
    assert math.isnan(ledger.rows[0].weight_gradient)


def test_backward_inside_an_operation_of_many_nodes():
    """A norm is one call and several nodes of autograd's graph."""
    model = network(lambda z, call: z + torch.linalg.vector_norm(0 * z, dim=1, keepdim=True).sqrt())
    assert place(model).operation == "sqrt"


def test_the_guard_that_does_not_guard_going_back():
    """where() keeps NaN out of what goes forward, and lets it through going back."""
    model = network(lambda z, call: torch.where(z < 1e6, z, torch.sqrt(-z.square() - 1)))
    found = place(model)
    assert (found.direction, found.operation, found.call) == ("backward", "sqrt", 2)


def test_the_search_leaves_no_trace_and_draws_the_same_masks():
    """A fault that only one dropout mask brings out is found in the second pass too."""
    model = quiet(lambda: nn.Sequential(nn.Linear(20, 8), nn.Dropout(0.5), Function(torch.log), nn.Linear(8, 3)))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    _, ledger = measure(model, LOSS, blobs(16))
    assert ledger.non_finite.operation == "log"
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_numbers_whose_squares_are_too_large_are_finite():
    model = quiet(lambda: nn.Sequential(nn.Linear(20, 8), Function(lambda z: z * 1e25), Function(lambda z: z * 1e-25)))
    model.append(quiet(lambda: nn.Linear(8, 3)))
    model[0].weight.requires_grad_(False)
    assert measure(model, LOSS, blobs(16))[1].non_finite is None


def test_the_sample_is_known_only_where_samples_come_first():
    x = normal(4, 3)
    x[2, 1] = math.inf
    assert sample_of([x], 4) == 2
    assert sample_of([x.T], 4) is None
    assert sample_of([torch.tensor(math.nan)], 4) is None


def test_findings_and_errors_say_where():
    checkup = gs.check(network(lambda z, call: torch.sqrt(z - z) + z), LOSS, blobs(64))
    assert checkup.codes == ["G102"]
    assert "first there: the gradient of sqrt in function (call 2), sample 0" in checkup.findings[0].message
    assert "first not finite: the gradient of sqrt in function" in str(checkup)
    with pytest.raises(BadInput, match="see log in the loss, sample 0"):
        gs.check(deep(1, "tanh"), lambda output, y: torch.log(-output.square()).mean(), blobs(64))
