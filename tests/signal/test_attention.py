"""Entropy and logits of attention against the weights themselves, in float64."""

import math

import pytest
import torch
from torch.nn import functional as F

from gainstage.signal.attention import by_head, logits_of, some_logits
from tests.tools import normal


def slow(logits):
    """Mean entropy and largest logit of each head from exact weights; logits (samples, heads, queries, keys)."""
    weights = logits.double().softmax(-1)
    entropy = -(weights * weights.clamp_min(1e-300).log()).sum(-1)
    return entropy.mean((0, 2)).tolist(), logits.amax((0, 2, 3)).tolist()


def read(logits):
    return {quantity: values.tolist() for quantity, values in by_head(logits).items()}


def attention(*shape, scale=3.0):
    return scale * normal(*shape), normal(*shape, seed=1)


@pytest.mark.parametrize("mask", ["none", "causal", "true and false", "added", "by head"])
def test_entropy_and_logits_are_those_of_the_exact_weights(mask):
    query, key = attention(6, 3, 10, 8)
    causal, given = mask == "causal", None
    allowed = torch.ones(10, 10).tril() > 0 if causal else torch.ones(10, 10) > 0
    if mask != "none" and not causal:
        allowed = (normal(3, 10, 10, seed=2) > -1) | (torch.eye(10) > 0)
        allowed = allowed if mask == "by head" else allowed[0]
        given = torch.zeros_like(allowed.float()).masked_fill(~allowed, -math.inf) if mask == "added" else allowed
    found = read(logits_of(query, key, given, causal, None))
    exact = (query @ key.mT / math.sqrt(8)).masked_fill(~allowed, -math.inf)
    entropy, largest = slow(exact)
    assert found["entropy"] == pytest.approx(entropy, rel=1e-4)
    assert found["largest_logit"] == pytest.approx(largest, rel=1e-4)
    some = exact[:, 1][exact[:, 1].isfinite()].double()
    assert found["logit"][1] == pytest.approx(float(some.square().mean().sqrt()), rel=1e-4)


def test_the_weights_are_those_of_torch():
    query, key = attention(4, 2, 9, 8)
    weights = F.scaled_dot_product_attention(query, key, torch.eye(9).expand(4, 2, 9, 9), is_causal=True, scale=0.7)
    assert torch.allclose(logits_of(query, key, None, True, 0.7).softmax(-1), weights, atol=1e-5)


def test_relative_entropy_is_of_the_keys_that_are_allowed():
    even = torch.zeros(2, 1, 8, 8).masked_fill(torch.ones(8, 8).triu(1) > 0, -math.inf)
    found = read(even)
    assert found["relative_entropy"] == pytest.approx([1.0])
    assert found["entropy"][0] == pytest.approx(sum(math.log(n) for n in range(1, 9)) / 8)
    single = torch.full((2, 1, 8, 8), 0.0)
    single[..., 3] = 1e3
    assert read(single)["relative_entropy"] == pytest.approx([0.0], abs=1e-6)
    assert read(single)["largest_logit"] == [1e3]


@pytest.mark.parametrize("shut", [-math.inf, torch.finfo(torch.float32).min, -1e4])
def test_additive_masks_of_all_kinds(shut):
    logits = normal(4, 2, 6, 6)
    masked = logits + torch.zeros(6, 6).masked_fill(torch.ones(6, 6).triu(1) > 0, shut)
    reference = read(logits.masked_fill(torch.ones(6, 6).triu(1) > 0, -math.inf))
    for quantity, values in read(masked).items():
        assert values == pytest.approx(reference[quantity], rel=1e-4)


def test_queries_without_a_key_are_left_out_and_nothing_at_all_is_no_number():
    logits = normal(2, 1, 4, 5)
    with_none = logits.clone()
    with_none[:, :, 2] = -math.inf
    rest = read(logits[:, :, [0, 1, 3]])
    assert read(with_none)["entropy"] == pytest.approx(rest["entropy"])
    assert all(
        math.isnan(read(torch.full((2, 1, 4, 5), -math.inf))[q][0]) for q in ("entropy", "relative_entropy", "logit")
    )


def test_of_many_samples_and_queries_some_are_read():
    query, key = attention(200, 2, 100, 4)
    logits = logits_of(query, key, None, True, None)
    assert logits.shape == (50, 2, 16, 100)
    assert torch.isfinite(logits[0, 0]).sum(1).tolist()[:2] == [1, 8], "the first query, the seventh, ..."
    assert torch.isfinite(logits[0, 0]).sum(1).tolist()[-1] == 100
    exact = (query[::4] @ key[::4].mT / 2)[0, 1, 99]
    assert logits[0, 1, 15].tolist() == pytest.approx(exact.tolist(), rel=1e-4, abs=1e-4)
    assert some_logits(normal(200, 100, 7)).shape == (50, 16, 7)


@pytest.mark.parametrize("shape", [(40, 40), (1, 40)])
def test_a_mask_stays_with_its_queries(shape):
    query, key = attention(4, 2, 40, 8)
    mask = normal(*shape) > 0
    exact = F.scaled_dot_product_attention(query, key, torch.eye(40).expand(4, 2, 40, 40), mask)
    places = torch.linspace(0, 39, 16).round().long()
    assert torch.allclose(logits_of(query, key, mask, False, None).softmax(-1), exact[:, :, places], atol=1e-5)


def test_a_mask_of_each_sample_stays_with_its_sample():
    query, key = attention(128, 1, 4, 8)
    mask = torch.zeros(128, 1, 1, 4) > 0
    mask[..., 0] = True
    mask[2::4, ..., 1] = True  # every other one of the samples that are read
    allowed = torch.isfinite(logits_of(query, key, mask, False, None)).sum(-1)[:, 0, 0]
    assert allowed.tolist() == [1, 2] * 32


def test_grouped_queries_share_their_keys():
    query, key = normal(3, 4, 5, 8), normal(3, 2, 5, 8, seed=1)
    logits = logits_of(query, key, None, False, None)
    assert torch.allclose(logits[:, 1], query[:, 1] @ key[:, 0].mT / math.sqrt(8), atol=1e-5)
    assert torch.allclose(logits[:, 2], query[:, 2] @ key[:, 1].mT / math.sqrt(8), atol=1e-5)


def test_half_precision_is_worked_out_in_float32():
    query, key = attention(4, 2, 6, 8, scale=1e3)
    logits = logits_of(query.half(), 100 * key.half(), None, False, None)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all(), "beyond 65504"
    assert float(logits.max()) > 65504
