"""The embedded digits: complete, standardised on the training part alone, and reproducible."""

import sys
from collections import Counter

import pytest
import torch
from sklearn.datasets import load_digits as load_raw

from gainstage.data import load_digits
from gainstage.errors import MissingExtra


def pairs(x, y):
    return Counter((tuple(image), label) for image, label in zip(x.tolist(), y.tolist(), strict=True))


def grey_levels(x, raw):
    """Undo any scale and shift of each pixel: the smallest and largest values are known."""
    low, span = x.min(0).values, x.max(0).values - x.min(0).values
    share = (x - low) / torch.where(span > 0, span, 1)
    return (raw.min(0).values + share * (raw.max(0).values - raw.min(0).values)).round().long()


def is_standardised(x):
    mean, std = x.double().mean(0), x.double().std(0, unbiased=False)
    return bool(mean.abs().max() < 1e-5 and (std[std > 0] - 1).abs().max() < 1e-4)


def test_types_and_sizes():
    train, valid = load_digits()
    assert (train.samples, valid.samples) == (1258, 539)
    assert train.x.shape == (1258, 64)
    assert (train.x.dtype, train.y.dtype) == (torch.float32, torch.int64)


def test_every_image_is_there_once_with_its_class():
    (train_x, train_y), (valid_x, valid_y) = ((part.x, part.y) for part in load_digits(seed=3))
    raw, classes = (torch.from_numpy(array) for array in load_raw(return_X_y=True))
    images, labels = grey_levels(torch.cat([train_x, valid_x]), raw), torch.cat([train_y, valid_y])
    assert pairs(images, labels) == pairs(raw.long(), classes)
    assert pairs(images, labels.flip(0)) != pairs(raw.long(), classes), "the check must reject other classes"


def test_the_training_part_alone_sets_the_scale():
    train, valid = load_digits()
    assert is_standardised(train.x)
    assert not is_standardised(torch.cat([train.x, valid.x])), "the validation part must not leak into it"


def test_pixels_that_never_change_stay_zero():
    train, _ = load_digits()
    constant = train.x.std(0) == 0
    assert constant.any()
    assert not train.x[:, constant].any()


def test_the_split_is_shuffled_by_its_seed():
    first, again, other = (load_digits(seed=seed).train.y for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, torch.from_numpy(load_raw().target)[: len(first)])


@pytest.mark.parametrize(("share", "size"), [(0.5, 898), (0.9, 1617)])
def test_the_share_of_the_training_part(share, size):
    train, valid = load_digits(train_share=share)
    assert (train.samples, valid.samples) == (size, 1797 - size)


def test_without_scikit_learn_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtra, match=r"needs scikit-learn, .*pip install 'gainstage\[demo\]'"):
        load_digits()
