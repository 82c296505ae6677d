"""The gradient rules beyond their two cases."""

import torch
from torch import nn

import gainstage as gs
from gainstage.rules import flatten
from tests.networks import deep, residual
from tests.tools import blobs

LOSS = nn.CrossEntropyLoss()


def only(checkup, code):
    return next(finding for finding in flatten(checkup.findings) if finding.code == code)


def test_the_message_gives_place_ratio_decibels_and_theory():
    message = only(gs.check(deep(8, "logistic"), LOSS, blobs()), "G101").message
    assert message.startswith("stages hidden1 to hidden8: going back, the gradient falls x")
    assert "over 7 stages, -12." in message
    assert "theory for these weights: -12." in message


def test_severity_grows_with_the_fall():
    assert only(gs.check(deep(6, "logistic"), LOSS, blobs()), "G101").severity == "warning"
    assert only(gs.check(deep(12, "logistic"), LOSS, blobs()), "G101").severity == "error"


def test_a_gradient_that_is_not_finite_is_an_error():
    class Root(nn.Module):
        def forward(self, x):
            return torch.sqrt(torch.relu(x) * 0)

    base = deep(2, "relu")
    model = nn.Sequential(base.hidden1, base.activation1, base.hidden2, Root(), base.output)
    finding = only(gs.check(model, LOSS, blobs()), "G102")
    assert finding.severity == "error"
    assert "not finite" in finding.message


def test_branches_that_start_at_zero_do_not_count_as_vanished():
    checkup = gs.check(residual(gated=True), LOSS, blobs())
    inside = [row.gradient for row in checkup.ledger.rows if row.gradient == 0]
    assert inside, "the branches' inner stages have no gradient"
    assert checkup.codes == []
