"""The embedded data set: scikit-learn's 1,797 handwritten digits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gainstage.data.sources import InMemory
from gainstage.errors import MissingExtra


class Split(NamedTuple):
    """A training and a validation part."""

    train: InMemory
    valid: InMemory


def load_digits(train_share: float = 0.7, seed: int = 0) -> Split:
    """8x8 grey images as 64 features and class numbers 0..9, shuffled, split, and standardised on the training part.

    Each feature is centred and divided by its own standard deviation; pixels that never change keep their zeros.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError:
        raise MissingExtra("scikit-learn", "demo") from None
    x, y = load(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = x[order], y[order]
    cut = round(train_share * len(x))
    mean, std = x[:cut].mean(0), x[:cut].std(0)
    x = ((x - mean) / np.where(std > 0, std, 1)).astype(np.float32)
    return Split(InMemory.of(x[:cut], y[:cut]), InMemory.of(x[cut:], y[cut:]))
