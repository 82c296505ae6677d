"""Residual branches beside their skips, and attention, read off whole networks."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gainstage.monitor.fuses import Fuses
from gainstage.monitor.recording import Recording
from gainstage.signal import measure
from gainstage.signal.joints import Branch
from tests.networks import Encoder, TwoInputs, deep, residual
from tests.tools import blobs, normal, quiet

LOSS = F.cross_entropy


def signal(x):
    return float(x.detach().double().flatten(1).var(0).mean().sqrt())


def ledger_of(model, x):
    return measure(model, LOSS, (x, torch.arange(64) % 3))[1]


def test_branches_and_skips_of_a_residual_network():
    model, (x, _) = residual(), blobs(64)
    ledger = ledger_of(model, x)
    assert [branch.stage for branch in ledger.branches] == [f"blocks.{i}.2" for i in range(6)]
    for block, found in zip(model.blocks, ledger.branches, strict=True):
        assert found.branch == pytest.approx(signal(block(x)), rel=1e-4)
        assert found.skip == pytest.approx(signal(x), rel=1e-4)
        assert found.db == pytest.approx(20 * math.log10(signal(block(x)) / signal(x)), abs=1e-3)
        x = x + block(x)
    assert ledger.to_dict()["branches"][0]["db"] == ledger.branches[0].db


def test_a_branch_that_starts_at_zero_is_far_below_its_skip():
    branches = ledger_of(residual(gated=True), blobs(64)[0]).branches
    assert all(branch.db < -120 for branch in branches), "nothing but the rounding of a bias"
    assert (Branch("a", 0.0, 1.0).db, Branch("a", 1.0, 0.0).db) == (-math.inf, None)


def test_the_side_with_fewer_layers_is_the_skip_also_when_it_runs_last_or_in_place():
    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.skip = nn.Linear(20, 8), nn.Linear(8, 8), nn.Linear(20, 8)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            branch = self.two(torch.relu(self.one(x)))
            branch += self.skip(x)
            return self.head(branch)

    model, (x, _) = quiet(Projected), blobs(64)
    (found,) = ledger_of(model, x).branches
    assert found.branch == pytest.approx(signal(model.two(torch.relu(model.one(x)))), rel=1e-4)
    assert found.skip == pytest.approx(signal(model.skip(x)), rel=1e-4)


def test_a_sum_of_equals_and_a_sum_within_a_stage_are_no_branches():
    x = normal(64, 20), normal(64, 12, seed=1)
    _, ledger = measure(quiet(TwoInputs), LOSS, (x, torch.arange(64) % 3))
    assert ledger.branches == ()
    assert ledger_of(deep(2, "tanh"), blobs(64)[0]).branches == ()


def test_attention_of_an_encoder():
    model, x = quiet(lambda: Encoder(causal=True, dropout=0.0)), normal(64, 16, 64)
    ledger = ledger_of(model, x)
    assert len(ledger.attention) == 2
    h = model.embed(x) + model.positions
    block = model.blocks[0]
    query, key, _ = (p.unflatten(-1, (4, -1)).transpose(1, 2) for p in block["qkv"](block["norm1"](h)).chunk(3, -1))
    logits = (query @ key.mT / math.sqrt(query.shape[-1])).detach().double()
    weights = logits.masked_fill(torch.ones(16, 16).triu(1) > 0, -math.inf).softmax(-1)
    entropy = -(weights * weights.clamp_min(1e-300).log()).sum(-1).mean((0, 2))
    assert ledger.attention[0].stage == "blocks.0.qkv"
    assert ledger.attention[0].entropy == pytest.approx(entropy.tolist(), rel=1e-4)
    assert len(ledger.attention[0].largest_logit) == 4
    assert [branch.stage for branch in ledger.branches][:2] == ["blocks.0.out", "blocks.0.down"]


class ByHand(nn.Module):
    """Attention written out; `weighs`: whether the softmax's weights go into a product."""

    def __init__(self, weighs=True):
        super().__init__()
        self.query, self.key, self.head, self.weighs = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3), weighs

    def forward(self, x):
        query, key = (part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.query, self.key))
        weights = F.dropout(torch.softmax(query @ key.transpose(-1, -2), -1), 0.0)
        mixed = weights @ query if self.weighs else weights.mean(-1, keepdim=True) * query
        return self.head(mixed.transpose(1, 2).flatten(2).mean(1))


def test_a_softmax_by_hand_is_attention_where_its_weights_go_into_a_product():
    model, x = quiet(ByHand), normal(64, 5, 6)
    (found,) = ledger_of(model, x).attention
    query, key = (part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (model.query, model.key))
    weights = (query @ key.mT).detach().double().softmax(-1)
    assert found.entropy == pytest.approx((-(weights * weights.log()).sum(-1).mean((0, 2))).tolist(), rel=1e-4)
    assert ledger_of(quiet(lambda: ByHand(weighs=False)), x).attention == ()


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (residual, (64, 20)),
        (lambda: quiet(lambda: Encoder(dropout=0.0, blocks=1)), (4, 16, 64)),
        (lambda: quiet(ByHand), (64, 5, 6)),
    ],
)
def test_a_pass_by_script_reads_the_same(build, shape):
    model, x = build(), normal(*shape)
    found = []
    for _ in range(2):
        recording = Recording(model, ((x,), {}), Fuses(), found[0].script if found else None)
        recording.forward_done(model(x))
        recording.measured = recording.result().ledger(theory=False)
        found.append(recording)
    first, second = (recording.measured for recording in found)
    assert first.branches + first.attention
    assert second.branches == first.branches
    assert second.attention == first.attention
    assert found[1].graph is found[0].graph
