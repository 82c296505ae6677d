"""How attention is spread: logits of some queries, in float32, and what follows of them, head by head."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

SAMPLES, QUERIES = 64, 16  # that are looked at, at most
MASKED = -5000.0  # below are logits that an additive mask has shut off: -inf, the least number of the type, or -10,000
QUANTITIES = ("entropy", "relative_entropy", "largest_logit", "logit")


def logits_of(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    """Logits (samples, ..., heads, queries, keys) of scaled dot-product attention in float32, -inf where masked.

    query: (samples, ..., heads, queries, size), key with as many heads or fewer. Of at most 64 samples and 16 queries, evenly
    spread; all heads, all keys.
    """
    places = spread_out(query.shape[-2], query.device)
    logits = some_samples(query)[..., places, :].detach().float()
    keys = some_samples(key).detach().float()
    if keys.ndim > 2 and keys.shape[-3] != logits.shape[-3]:  # grouped queries
        keys = keys.repeat_interleave(logits.shape[-3] // keys.shape[-3], -3)
    logits = logits @ keys.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        later = torch.arange(key.shape[-2], device=query.device) > places[:, None]
        logits = logits.masked_fill(later, -math.inf)
    if mask is None:
        return logits
    mask = mask.detach() if mask.shape[-2] == 1 else mask.detach()[..., places, :]
    mask = some_samples(mask) if mask.ndim == query.ndim and len(mask) == len(query) else mask
    return logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask.float()


def some_logits(logits: Tensor) -> Tensor:
    """Of logits (samples, ..., queries, keys) that a softmax takes in: those of as many samples and queries."""
    return some_samples(logits)[..., spread_out(logits.shape[-2], logits.device), :].detach().float()


def some_samples(tensor: Tensor) -> Tensor:
    """At most 64 samples, evenly spread; all of a tensor without a dimension of samples."""
    return tensor[:: math.ceil(len(tensor) / SAMPLES)] if tensor.ndim > 2 else tensor


def spread_out(count: int, device: torch.device) -> Tensor:
    """Numbers of at most 16 evenly spread queries, the first and the last among them."""
    return torch.linspace(0, count - 1, min(count, QUERIES), device=device).round().long()


def by_head(logits: Tensor) -> Mapping[str, Tensor]:
    """Quantities of logits (samples, ..., heads, queries, keys), each (heads,); of three dimensions there is one head.

    entropy: of the weights, in nats, the mean over samples and queries (natural logarithms). relative_entropy: over the
    logarithm of the number of keys that are allowed, of queries with more than one: 1 is even attention, 0 is attention to a
    single key. largest_logit: the largest one; logit: their RMS. NaN where no key is allowed.
    """
    x = logits.unsqueeze(-3) if logits.ndim == 3 else logits
    x = x.movedim(-3, 0).flatten(1, -2)  # (heads, queries of all samples, keys)
    allowed = x > MASKED
    keys = allowed.sum(2)
    x = x.masked_fill(~allowed, -math.inf)
    logs = x.log_softmax(2).masked_fill(~allowed, 0)
    entropy = torch.where(keys > 0, -(logs.exp() * logs).sum(2), torch.nan)
    relative = torch.where(keys > 1, entropy / keys.log(), torch.nan)
    power = x.masked_fill(~allowed, 0).square().sum((1, 2)) / keys.sum(1)
    values = (entropy.nanmean(1), relative.nanmean(1), x.amax((1, 2)), power.sqrt())
    return dict(zip(QUANTITIES, values, strict=True))
