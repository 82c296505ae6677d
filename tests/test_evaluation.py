"""Loss and accuracy on held-out data: exact over unequal batches, and nothing of the model changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gainstage import evaluation
from gainstage.data import as_source
from gainstage.errors import BadInput
from gainstage.evaluation import evaluate, evaluating
from tests.tools import blobs, generator, normal, quiet

CROSS_ENTROPY = nn.CrossEntropyLoss()


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Ten samples make batches of 4, 4 and 2."""
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", 4)


def network() -> nn.Sequential:
    """Dropout and batch normalisation behave differently in the two modes."""
    return quiet(lambda: nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)))


def partly_frozen() -> nn.Sequential:
    model = network().train()
    model[1].eval()
    return model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def expected(model: nn.Module, x, y) -> dict[str, float]:
    """All samples at once, in eval mode."""
    with torch.no_grad():
        output = copy.deepcopy(model).eval()(x)
    return {"loss": CROSS_ENTROPY(output, y).item(), "accuracy": (output.argmax(1) == y).float().mean().item()}


@pytest.mark.parametrize("samples", [10, 8, 3])
def test_loss_and_accuracy_are_means_over_the_samples(samples):
    model, (x, y) = network(), blobs(samples)
    assert evaluate(model, CROSS_ENTROPY, as_source((x, y))) == pytest.approx(expected(model, x, y), rel=1e-6)


def test_a_mean_over_the_batches_would_be_another():
    model, (x, y) = network(), blobs(10)
    batches = [expected(model, a, b) for a, b in zip(x.split(4), y.split(4), strict=True)]
    mean = {key: sum(batch[key] for batch in batches) / 3 for key in batches[0]}
    assert mean != pytest.approx(expected(model, x, y), rel=1e-3)


@pytest.mark.parametrize("batch_size", [3, 10])
def test_a_loader_keeps_its_batches(batch_size):
    model, (x, y) = network(), blobs(10)
    loader = DataLoader(TensorDataset(x, y), batch_size=batch_size, generator=generator())
    assert evaluate(model, CROSS_ENTROPY, as_source(loader)) == pytest.approx(expected(model, x, y), rel=1e-6)


def test_accuracy_of_a_segmentation_counts_positions():
    scores, labels = normal(6, 3, 5), torch.arange(30).reshape(6, 5) % 3
    metrics = evaluate(nn.Identity(), CROSS_ENTROPY, as_source((scores, labels)))
    assert metrics["accuracy"] == pytest.approx((scores.argmax(1) == labels).float().mean().item())


@pytest.mark.parametrize(
    ("y", "loss"),
    [
        (normal(10, 20, seed=1), nn.MSELoss()),
        (torch.softmax(normal(10, 20, seed=1), 1), CROSS_ENTROPY),
        (torch.arange(200).reshape(10, 20) % 7, nn.L1Loss()),
    ],
    ids=["a regression", "class probabilities", "whole numbers of the output's shape"],
)
def test_targets_that_are_no_class_numbers_have_no_accuracy(y, loss):
    x = normal(10, 20)
    assert evaluate(nn.Identity(), loss, as_source((x, y))) == {"loss": pytest.approx(loss(x, y).item())}


@pytest.mark.parametrize("make", [network, partly_frozen, lambda: network().eval()])
def test_every_module_is_afterwards_in_the_mode_it_was_in(make):
    model = make()
    before = modes(model)
    evaluate(model, CROSS_ENTROPY, as_source(blobs(10)))
    assert modes(model) == before


def test_inside_every_module_is_in_eval_mode_and_no_gradient_flows():
    model = partly_frozen()
    with evaluating(model):
        assert not any(modes(model))
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_plain_train_and_eval_would_unfreeze_a_frozen_module():
    model = partly_frozen()
    before = modes(model)
    model.eval()
    model.train()
    assert modes(model) != before


def test_modes_are_put_back_after_an_error():
    model = partly_frozen()
    before = modes(model)
    with pytest.raises(BadInput, match="forward failed"):
        evaluate(model, CROSS_ENTROPY, as_source((normal(10, 7), torch.zeros(10, dtype=torch.long))))
    assert modes(model) == before
    assert torch.is_grad_enabled()


def test_weights_buffers_and_gradients_are_untouched():
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    evaluate(model, CROSS_ENTROPY, as_source(blobs(10)))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_held_out_data_without_a_batch_is_refused():
    loader = DataLoader(TensorDataset(*blobs(3)), batch_size=4, drop_last=True, generator=generator())
    with pytest.raises(BadInput):
        evaluate(network(), CROSS_ENTROPY, as_source(loader))
