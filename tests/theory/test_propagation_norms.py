"""Fields through normalisations, against torch's own on many independent units."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gainstage.theory import field
from gainstage.theory.propagation import batch_norm_factor, through_batch_norm, through_group_norm, through_layer
from tests.theory.fields import PIXELS, agree, drawn, exact, images
from tests.tools import normal

MEANT = replace(field(1.5, 2.5), mean=0.7, gaussian=True)
IMAGE = replace(PIXELS, mean=0.7, gaussian=True)
SCALE, SHIFT, MEAN, EPS = 1.25, 0.58, 0.3, 0.4


def weights(units):
    """Scales 1 +- 0.5 and shifts 0.3 +- 0.7: mean squares SCALE and SHIFT."""
    return 1 + 0.5 * normal(units, seed=5).double(), MEAN + 0.7 * normal(units, seed=6).double()


def batch_normalised():
    return F.batch_norm(drawn(MEANT, 512, units=3000), None, None, *weights(3000), training=True, eps=EPS)


def test_batch_normalisation_forgets_the_level_and_applies_its_own():
    found = through_batch_norm(MEANT, SCALE, SHIFT, MEAN, EPS)
    assert agree(batch_normalised(), found)
    assert found.gaussian


@pytest.mark.parametrize(
    "wrong",
    [
        through_batch_norm(MEANT, SCALE**0.5, SHIFT, MEAN, EPS),
        through_batch_norm(MEANT, SCALE, SHIFT**0.5, MEAN, EPS),
        through_batch_norm(MEANT, SCALE, SHIFT, 0.0, EPS),
        through_batch_norm(MEANT, SCALE, SHIFT, MEAN),
        through_batch_norm(MEANT, eps=EPS),
        through_batch_norm(field(MEANT.level, 0.0), SCALE, SHIFT, MEAN, EPS),
        through_group_norm(MEANT, math.inf, False, SCALE, SHIFT, MEAN, EPS),
    ],
    ids=["scale", "shift", "no mean", "no eps", "no weights", "divided by the level", "another normalisation"],
)
def test_real_batch_normalisation_rejects_a_wrong_prediction(wrong):
    assert not agree(batch_normalised(), wrong)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_batch_normalisation_cannot_revive_a_dead_signal(eps):
    found = through_batch_norm(field(0.0, 3.0), SCALE, SHIFT, MEAN, eps)
    assert (found.signal, found.level, found.mean) == (0.0, SHIFT, MEAN)


def test_batch_normalisation_lifts_a_whisper_to_full_strength_unless_it_is_below_eps():
    assert through_batch_norm(field(1e-6, 3.0)).signal == pytest.approx(1)
    assert through_batch_norm(field(1e-6, 3.0), eps=1e-5).signal == pytest.approx(1 / 11)


def test_batch_normalisation_of_images_keeps_their_proportions():
    own = images(2.0, [0, 0.5, 0.8, 1.0, 2.0], [2.0, 2.0, 2.0, 2.0, 2.0])
    values = F.batch_norm(drawn(own, 200, (5,), units=1000), None, None, training=True)
    assert agree(values, through_batch_norm(own), far=False, slack=0.01), "a batch has but 1000 values"
    assert not agree(values, own, far=False, slack=0.01)
    assert not agree(values, replace(through_batch_norm(own), gaps=own.gaps), far=False, slack=0.01)


def bordered(offset=40.0, side=9, channels=360, units=3000):
    """Images behind a convolution padded in front, whose first position sees one tap less; and their field."""
    before = images(1 + offset, [0, 1, 1, 1, 1], [1, 1, 1, 1, 1])
    weight = 0.05 * normal(units, channels, 3, seed=5).double()
    values = F.conv1d(F.pad(exact(before, channels, 40, (side,)), (1, 0)), weight)
    taps = torch.ones(side - 1, 3, dtype=torch.float64)
    taps[0, 0] = 0
    shared = [float((taps[d:] * taps[: side - 1 - d]).mean()) for d in (0, 1, 2, 4)]
    return values, through_layer(before, 3 * channels, 0.05**2, coverage=(*shared, float(taps.mean(0).square().mean())))


def plainly(found):
    """Level, mean and signal alone."""
    return replace(found, gaps=found.gaps[:, [0, -1]])


def test_batch_normalisation_divides_by_the_pattern_of_the_border_too():
    values, before = bordered()
    values = F.batch_norm(values, None, None, training=True, eps=0.3)
    found = through_batch_norm(before, eps=0.3)
    assert agree(values, plainly(found), far=False, slack=0.01), "a batch has but 320 values"
    without = replace(before, gaps=np.minimum(before.gaps, before.signal))
    always = replace(found, gaps=before.gaps / (before.gaps[1, -1] + 0.3))
    assert not agree(values, plainly(through_batch_norm(without, eps=0.3)), far=False, slack=0.01), "no pattern"
    assert not agree(values, plainly(always), far=False, slack=0.01), "the same pattern in every unit"


def test_the_factor_of_batch_normalisation_is_that_of_the_signal():
    _, before = bordered(units=1)
    for given in (MEANT, before):
        assert batch_norm_factor(given, 0.3) == pytest.approx(through_batch_norm(given, eps=0.3).signal / given.signal)


def layer_norm(x):
    return F.layer_norm(x, x.shape[1:], *weights(x.shape[1]), eps=EPS)


def token_norm(x):
    return layer_norm(x.movedim(1, -1).flatten(0, 1)).unflatten(0, (len(x), -1)).movedim(-1, 1)


def rms_norm(x):
    return F.rms_norm(x, x.shape[1:], torch.full(x.shape[1:], SCALE**0.5, dtype=x.dtype), eps=EPS)


def group_norm(x, groups=8):
    return F.group_norm(x, groups, *weights(x.shape[1]), eps=EPS)


def predicted(given, group=math.inf, over_positions=False, **changes):
    settings = {"scale": SCALE, "shift": SHIFT, "mean": MEAN, "eps": EPS} | changes
    return through_group_norm(given, group, over_positions, **settings)


def rms(given, **changes):
    return predicted(given, **({"shift": 0.0, "mean": 0.0, "centred": False} | changes))


CASES = [
    (layer_norm, MEANT, (), predicted(MEANT)),
    (token_norm, IMAGE, (6,), predicted(IMAGE)),
    (group_norm, MEANT, (), predicted(MEANT, 1000)),
    (group_norm, IMAGE, (8,), predicted(IMAGE, 1000, True)),
    (rms_norm, MEANT, (), rms(MEANT)),
]
NAMES = ["layer", "tokens", "groups", "groups of images", "root mean square"]


@pytest.mark.parametrize(("normalise", "given", "sides", "found"), CASES, ids=NAMES)
def test_normalisation_of_samples_keeps_the_proportion_of_signal_and_offset(normalise, given, sides, found):
    values = normalise(drawn(given, 4, sides, units=8000))
    assert agree(values, found, far=False)
    assert found.gaussian


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        (0, predicted(replace(MEANT, mean=0.0))),
        (0, predicted(field(MEANT.offset, MEANT.signal, mean=0.7))),
        (0, predicted(MEANT, scale=SCALE**0.5)),
        (0, predicted(MEANT, shift=0.0)),
        (0, predicted(MEANT, mean=0.0)),
        (0, predicted(MEANT, eps=0.0)),
        (0, predicted(MEANT, centred=False)),
        (1, predicted(IMAGE, over_positions=True, group=1)),
        (2, predicted(MEANT, group=2)),
        (3, predicted(IMAGE, group=2, over_positions=True)),
        (4, rms(MEANT, centred=True)),
        (4, replace(rms(MEANT), mean=0.0)),
    ],
)
def test_real_normalisation_rejects_a_wrong_prediction(case, wrong):
    normalise, given, sides, _ = CASES[case]
    assert not agree(normalise(drawn(given, 4, sides, units=8000)), wrong, far=False)


@pytest.mark.parametrize("group", [1, 4])
def test_the_mean_of_few_units_takes_its_share_away(group):
    """Of a group of n units the mean holds 1/n of what they have at far positions. Slack: the images have 256 pixels, and of
    few units 1/variance is larger than 1 over its mean."""
    given = images(3.0, [0, 2, 2], [1.5, 2.5, 2.5], mean=0.7)
    values = F.group_norm(drawn(given, 2, (256,), units=1600), 1600 // group, eps=EPS)
    found = through_group_norm(given, group, True, eps=EPS)
    assert agree(values, found, slack=0.03, far=False)
    assert not agree(values, through_group_norm(given, math.inf, True, eps=EPS), slack=0.03, far=False), "n forgotten"
    assert not agree(values, through_group_norm(given, group, False, eps=EPS), slack=0.03, far=False), "every position"


def test_normalisation_of_silence_is_its_shift():
    for found in (
        predicted(field(0.0), eps=0.0),
        predicted(field(0.0), eps=EPS),
        predicted(field(0.0, 0.49, mean=0.7)),
    ):
        assert (found.signal, found.level) == pytest.approx((0.0, SHIFT), abs=1e-12)


def test_a_whisper_above_a_mean_that_all_units_share_is_normalised_to_full_strength():
    found = through_group_norm(field(1e-9, 1.0, mean=1.0))
    assert found.signal == pytest.approx(1.0, rel=1e-3)
    assert through_group_norm(field(1e-9, 1.0)).signal == pytest.approx(1e-9), "an offset of each unit's own stays"
