"""Biases that start the output at what is known of the targets."""

import pytest
import torch
from torch.nn import functional as F

from gainstage.errors import BadInput
from gainstage.nn.constants import Constant, mean_bias, prior_bias, prior_bias_binary


def test_softmax_of_the_prior_bias_is_the_prior():
    shares = torch.tensor([0.7, 0.2, 0.1])
    assert torch.allclose(F.softmax(prior_bias(shares), dim=0), shares)
    assert torch.allclose(prior_bias([70, 20, 10]), prior_bias(shares))
    assert not torch.allclose(F.softmax(shares, dim=0), shares), "the shares themselves are no logits"


def test_the_loss_then_starts_at_the_entropy_of_the_classes():
    shares = torch.tensor([0.7, 0.2, 0.1])
    y = torch.tensor([0] * 7 + [1] * 2 + [2])
    loss = F.cross_entropy(prior_bias(shares).expand(10, 3), y)
    assert float(loss) == pytest.approx(float(-(shares * shares.log()).sum()), rel=1e-5)


def test_one_logit_starts_at_the_share_of_positives():
    assert torch.sigmoid(torch.tensor(prior_bias_binary(0.05))).item() == pytest.approx(0.05)


def test_a_regression_starts_at_the_mean():
    targets = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    assert mean_bias(targets).tolist() == [2.0, 20.0]
    assert mean_bias(targets[:, 0]).tolist() == [2.0]


def test_a_constant_fills_in_place():
    weight = torch.empty(2, 3)
    assert Constant(0.5)(weight) is weight
    assert weight.unique().tolist() == [0.5]


@pytest.mark.parametrize(
    "action",
    [
        lambda: prior_bias([1.0]),
        lambda: prior_bias([0.5, 0.0]),
        lambda: prior_bias([0.5, float("nan")]),
        lambda: prior_bias_binary(1.0),
        lambda: mean_bias(torch.tensor([1, 2])),
        lambda: mean_bias(torch.empty(0)),
        lambda: mean_bias(torch.tensor(1.0)),
        lambda: mean_bias(torch.tensor([1.0, float("nan")])),
        lambda: Constant(float("nan")),
    ],
)
def test_impossible_priors_get_one_sentence(action):
    with pytest.raises(BadInput):
        action()
