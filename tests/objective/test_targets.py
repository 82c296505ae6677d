"""What kind of targets they are, and what is counted of them."""

import pytest
import torch
from torch.nn import functional as F

from gainstage.objective import describe
from tests.tools import normal

CLASSES = torch.arange(60) % 3
KINDS = {
    "class numbers": (CLASSES, "classes", (20, 20, 20)),
    "as floats": (CLASSES.float(), "classes", (20, 20, 20)),
    "in a column": (CLASSES.float()[:, None], "classes", (20, 20, 20)),
    "of positions": (CLASSES.reshape(10, 6), "classes", (20, 20, 20)),
    "one-hot": (F.one_hot(CLASSES, 3), "one-hot", (20, 20, 20)),
    "one-hot floats": (F.one_hot(CLASSES, 3).float(), "one-hot", (20, 20, 20)),
    "several labels": (torch.tensor([[1.0, 1, 0], [0, 0, 0], [1, 0, 0]]), "several-labels", (2, 1, 0)),
    "yes or no": (torch.tensor([0.0, 1, 1, 1]), "yes-or-no", (1, 3)),
    "in whole numbers": (torch.tensor([[0], [1], [1], [1]]), "yes-or-no", (1, 3)),
    "of positions, yes or no": (torch.tensor([[[0.0, 1], [1, 1]]]), "yes-or-no", (1, 3)),
    "probabilities": (normal(30, 4).softmax(1), "probabilities", ()),
    "values": (normal(30, 2), "values", ()),
    "whole numbers that hardly repeat": (torch.randperm(60).float(), "values", ()),
    "negative whole numbers": (CLASSES.float() - 1, "values", ()),
    "scaled class numbers": (CLASSES / 255, "values", ()),
}


@pytest.mark.parametrize("name", KINDS)
def test_the_kind_and_the_counts(name):
    y, kind, counts = KINDS[name]
    found = describe(y)
    assert (found.kind, found.counts) == (kind, counts)
    assert found.samples == len(y)


def test_positions_that_do_not_count_are_left_out():
    found = describe(torch.tensor([[0, 1, -100], [2, 1, -100]]))
    assert (found.kind, found.counts, found.low) == ("classes", (1, 2, 1), 0.0)
    assert found.shares == (0.25, 0.5, 0.25)


def test_numbers_of_the_values():
    found = describe(torch.tensor([1.0, 3.0]))
    assert (found.low, found.high, found.mean, found.std, found.columns) == (1.0, 3.0, 2.0, 1.0, 1)


@pytest.mark.parametrize("y", [(CLASSES, CLASSES), None, torch.tensor(1.0), torch.zeros(0), torch.full((3,), -100)])
def test_what_is_no_batch_of_numbers_is_unknown(y):
    assert describe(y).kind == "unknown"
