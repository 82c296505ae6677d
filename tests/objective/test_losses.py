"""A loss is recognised by what it does: torch's own, those that somebody wrote himself, and none that is another."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gainstage.objective import Objective, recognise
from tests.tools import normal, random_states, same_states

OUTPUT = normal(64, 5)
CLASSES = torch.arange(64) % 5
ONE_HOT = F.one_hot(CLASSES, 5).float()
LABELS = (normal(64, 5, seed=1) > 0).float()
VALUES = normal(64, 5, seed=2)
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.1, 1.0])


def probabilities(output, y):
    """Keras's categorical cross-entropy: of rows that are divided by their sums."""
    p = output / output.sum(-1, keepdim=True)
    return -(y * p.clamp(1e-7, 1 - 1e-7).log()).sum(-1).mean()


def plain(output, y):
    return -output.clamp_min(1e-7).log()[torch.arange(len(y)), y].mean()


def focal(output, y):
    p = output.softmax(1)[torch.arange(len(y)), y]
    return (-((1 - p) ** 2) * p.log()).mean()


def by_hand(output, y):
    return (torch.logsumexp(output, 1) - output[torch.arange(len(y)), y]).sum() / 7


LOGITS = Objective("cross-entropy", "logits", -1)
CHANCES = Objective("cross-entropy", "probabilities", -1)
LOGARITHMS = Objective("cross-entropy", "log-probabilities", -1)
BINARY = Objective("binary-cross-entropy", "logits")
UNKNOWN = Objective("unknown", "values")
LOSSES = {
    "cross-entropy": (nn.CrossEntropyLoss(), CLASSES, LOGITS),
    "one-hot targets": (nn.CrossEntropyLoss(), ONE_HOT, LOGITS),
    "weighted, smoothed": (nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1), CLASSES, LOGITS),
    "one class ignored": (nn.CrossEntropyLoss(ignore_index=2), CLASSES, LOGITS),
    "by hand": (by_hand, CLASSES, LOGITS),
    "nll": (nn.NLLLoss(), CLASSES, LOGARITHMS),
    "kl": (nn.KLDivLoss(reduction="batchmean"), VALUES.softmax(1), LOGARITHMS),
    "of probabilities": (plain, CLASSES, CHANCES),
    "of probabilities, divided": (probabilities, ONE_HOT, CHANCES),
    "binary": (F.binary_cross_entropy_with_logits, LABELS, BINARY),
    "binary, weighted": (nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), LABELS, BINARY),
    "soft margin": (nn.MultiLabelSoftMarginLoss(), LABELS, BINARY),
    "binary of probabilities": (nn.BCELoss(), LABELS, Objective("binary-cross-entropy", "probabilities")),
    "squared": (nn.MSELoss(), VALUES, Objective("squared-error", "values")),
    "squared, huge targets": (nn.MSELoss(), 1e8 * VALUES, Objective("squared-error", "values")),
    "squared, halved": (lambda o, y: ((o - y) ** 2).sum() / 2, VALUES, Objective("squared-error", "values")),
    "absolute": (nn.L1Loss(), VALUES, Objective("absolute-error", "values")),
    "huber": (nn.HuberLoss(), VALUES, Objective("absolute-error", "values")),
    "poisson": (nn.PoissonNLLLoss(), LABELS, Objective("poisson", "values")),
    "root of squares": (lambda o, y: (o - y).square().mean().sqrt(), VALUES, UNKNOWN),
    "focal": (focal, CLASSES, UNKNOWN),
    "hinge": (nn.HingeEmbeddingLoss(), LABELS * 2 - 1, UNKNOWN),
    "quantile": (lambda o, y: torch.maximum(0.9 * (o - y), 0.1 * (y - o)).mean(), VALUES, UNKNOWN),
    "a mere mean": (lambda o, y: o.mean(), VALUES, UNKNOWN),
    "against the loss": (lambda o, y: -F.mse_loss(o, y), VALUES, UNKNOWN),
    "softmax before cross-entropy": (lambda o, y: F.cross_entropy(o.softmax(1), y), CLASSES, UNKNOWN),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_recognised_by_its_derivative(name):
    loss, targets, expected = LOSSES[name]
    assert recognise(loss, OUTPUT, targets) == expected


@pytest.mark.parametrize("dim", [1, -1])
def test_the_dimension_of_the_classes_is_found(dim):
    y = torch.arange(32).reshape(8, 4) % 5

    def loss(output, targets):
        return F.cross_entropy(output.movedim(dim, 1), targets)

    output = normal(8, 5, 4) if dim == 1 else normal(8, 4, 5)
    assert recognise(loss, output, y) == Objective("cross-entropy", "logits", dim)


def test_targets_that_broadcast_make_no_other_loss():
    assert recognise(nn.MSELoss(), normal(64, 1), normal(64)).kind == "squared-error"


def test_what_cannot_be_called_is_unknown():
    def broken(output, y):
        raise RuntimeError("no")

    assert recognise(broken, OUTPUT, CLASSES) == UNKNOWN
    assert recognise(nn.MSELoss(), (OUTPUT, OUTPUT), VALUES) == UNKNOWN
    assert recognise(nn.MSELoss(), CLASSES, VALUES) == UNKNOWN


def test_random_states_and_the_loss_stay_as_they_were():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, output, y):
            self.calls += 1
            return F.cross_entropy(F.dropout(output, 0.0) + 0 * torch.rand(()), y)

    before, loss = random_states(), Counting()
    assert recognise(loss, OUTPUT, CLASSES) == LOGITS
    assert same_states(before, random_states())
    assert loss.calls == 0
