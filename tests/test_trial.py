"""Short trainings of a copy: the same for the same seed, and silent towards everything outside."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gainstage.data.sources import InMemory
from gainstage.errors import BadInput
from gainstage.nn import dense_network
from gainstage.program import Program
from gainstage.trial import DEFAULT_BATCH, Trial, redraw, train_briefly, training_step
from tests.tools import blobs, generator, normal, quiet

X, Y = blobs(samples=100, features=6)
CROSS_ENTROPY = nn.CrossEntropyLoss()


def network():
    return quiet(lambda: dense_network(6, [8], 3, generator=generator()))


def program(model=None, **settings):
    return Program(model or network(), CROSS_ENTROPY, (X, Y), **{"optimizer": "sgd", **settings})


def still(parameters):
    """An optimiser that learns nothing."""
    return torch.optim.SGD(parameters, lr=0.0)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.fixture
def epochs(monkeypatch):
    """The batch size of each epoch that was begun; the fourth one is an error."""
    begun, batches = [], InMemory.batches

    def counted(source, size, generator=None):
        assert len(begun) < 3, "the training goes round and round"
        begun.append(size)
        return batches(source, size, generator)

    monkeypatch.setattr(InMemory, "batches", counted)
    return begun


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ((8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0), 1.5),
        ((3.0, 2.0), 2.0),
        ((3.0,), 3.0),
        ((1.0, 1.0, 1.0, math.nan), math.inf),
        ((1.0, 1.0, 1.0, math.inf), math.inf),
    ],
)
def test_the_final_loss_is_the_mean_of_the_last_quarter(losses, expected):
    assert Trial(losses).final == expected


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_the_final_loss_is_infinite_once_a_loss_was_not_finite(lost):
    assert Trial((1.0, lost, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)).final == math.inf


def test_a_loss_that_fell_through_the_floor_is_not_the_best():
    assert Trial((1.0, -math.inf)).final == math.inf


def test_a_step_is_forward_backward_and_update():
    made = program()
    twin = made.copy()
    loss = CROSS_ENTROPY(twin.model(X), Y)
    loss.backward()
    torch.optim.SGD(twin.model.parameters(), lr=1e-2).step()
    for parameter in made.model.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    assert training_step(made, made.make_optimizer(), (X, Y)) == float(loss.detach()), "the loss before the update"
    assert torch.equal(weights(made.model), weights(twin.model)), "old gradients must not count"


def test_a_trial_has_a_loss_for_each_step_and_goes_downhill():
    trial = train_briefly(program(optimizer="momentum"), 60, seed=0)
    assert len(trial.losses) == 60
    assert trial.final < 0.7 * trial.losses[0]


def test_more_steps_than_an_epoch_go_on_in_a_new_order(epochs):
    losses = train_briefly(program(batch_size=50, optimizer=still), 6, seed=0).losses
    pairs = [losses[i : i + 2] for i in (0, 2, 4)]
    assert [sum(pair) / 2 for pair in pairs] == pytest.approx([sum(pairs[0]) / 2] * 3), "every sample once an epoch"
    assert len(set(pairs)) == 3


def test_the_seed_decides_the_order_of_the_data():
    first, again, other = (train_briefly(program(optimizer=still), 8, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_what_the_network_draws_follows_the_seed_and_not_the_process():
    """The fixture for all tests fails this one when the process's random state moves."""
    model = nn.Sequential(nn.Dropout(0.5), quiet(lambda: nn.Linear(6, 3)))
    first = train_briefly(program(model).copy(), 5, seed=1)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        again = train_briefly(program(model).copy(), 5, seed=1)
    assert first == again


def test_a_copy_in_training_leaves_the_original_alone():
    original = program()
    before = weights(original.model)
    train_briefly(original.copy(), 5, seed=0)
    assert torch.equal(weights(original.model), before)


@pytest.mark.parametrize(("batch_size", "used"), [(None, DEFAULT_BATCH), (7, 7)])
def test_the_batch_size_is_the_programs(epochs, batch_size, used):
    train_briefly(program(batch_size=batch_size), 1, seed=0)
    assert epochs == [used]


def test_a_last_batch_of_one_is_left_out(epochs):
    """Batch normalisation cannot train on it; 100 samples are three batches of 33 and one more."""
    model = nn.Sequential(nn.BatchNorm1d(6), network())
    assert len(train_briefly(program(model, batch_size=33), 4, seed=0).losses) == 4
    assert len(epochs) == 2


def test_a_batch_of_two_is_enough(epochs):
    assert len(train_briefly(program(batch_size=2), 3, seed=0).losses) == 3
    assert len(epochs) == 1


def test_a_batch_size_of_one_trains_and_does_not_hang(epochs):
    assert len(train_briefly(program(batch_size=1), 2, seed=0).losses) == 2
    assert len(epochs) == 1


def test_data_without_a_batch_is_refused_and_does_not_hang():
    loader = DataLoader(TensorDataset(X, Y), batch_size=101, drop_last=True)
    with pytest.raises(BadInput, match="the training data yields no batch"):
        train_briefly(Program(network(), CROSS_ENTROPY, loader), 1, seed=0)


def skewed():
    """A network whose matrices have their own mean and deviation, beside vectors."""
    model = nn.Sequential(quiet(lambda: nn.Conv1d(4, 40, 3)), quiet(lambda: nn.Linear(60, 50)), nn.LayerNorm(50))
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters(), start=1):
            parameter.copy_(number + 0.3 * number * normal(*parameter.shape, seed=number))
    return model


def drawn_alike(new, old, sigmas=5.0):
    """Same mean and standard deviation, within sampling error."""
    error = float(old.std()) / old.numel() ** 0.5
    means, stds = (abs(float(f(new)) - float(f(old))) for f in (torch.mean, torch.std))
    return means < sigmas * error and stds < sigmas * error


def redrawn(seed=5):
    model = skewed()
    redraw(model, generator(seed))
    return model


def test_a_redraw_gives_matrices_other_numbers_of_the_same_mean_and_deviation():
    pairs = zip(redrawn().parameters(), skewed().parameters(), strict=True)
    for new, old in ((new.detach(), old.detach()) for new, old in pairs):
        if old.ndim == 1:
            assert torch.equal(new, old), "vectors stay"
        else:
            assert drawn_alike(new, old)
            assert float((new != old).float().mean()) > 0.99


def test_the_check_of_a_redraw_rejects_another_mean_or_deviation():
    old = skewed()[1].weight.detach()
    noise = normal(*old.shape, seed=9)
    assert drawn_alike(old.mean() + old.std() * noise, old)
    assert not drawn_alike(old.std() * noise, old), "the mean dropped"
    assert not drawn_alike(old.mean() + old.var() * noise, old), "variance for deviation"


def test_the_generator_decides_a_redraw():
    first, again, other = (weights(redrawn(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
