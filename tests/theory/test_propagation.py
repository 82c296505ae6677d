"""Levels through one operation, against wide random layers measured unit by unit.

The samples are built with exact inner products, so that the pre-activations of Gaussian weights are exactly jointly
Gaussian and every unit is an independent draw: tolerances are standard errors over the units.
"""

import math

import pytest
import torch
from torch.nn import functional as F

from gainstage.theory import (
    Level,
    decibels,
    gradient_gain,
    lookup,
    moments,
    through_activation,
    through_batch_norm,
    through_dropout,
    through_layer,
    through_layer_norm,
)
from tests.tools import generator, normal, quiet

SAMPLES, FEATURES, UNITS = 4, 64, 20_000
GIVEN = Level(signal=1.5, offset=2.5)


def inputs(level):
    """(SAMPLES, FEATURES): mean square signal + offset in each sample, mean product `offset` between two."""
    directions = torch.linalg.qr(normal(FEATURES, SAMPLES + 1).double()).Q.T * math.sqrt(FEATURES)
    return math.sqrt(level.offset) * directions[0] + math.sqrt(level.signal) * directions[1:]


def gaussian(level, samples=SAMPLES, units=UNITS):
    """(samples, units) of Gaussian values: a share that all samples of a unit have in common, and one of their own."""
    common, own = normal(1, units, seed=1).double(), normal(samples, units, seed=2).double()
    return math.sqrt(level.offset) * common + math.sqrt(level.signal) * own


def agree(values, level, sigmas=4.0):
    """The signal and the offset of (samples, units) equal `level`, within `sigmas` standard errors over the units."""
    signal = values.var(0)
    offset = values.square().mean(0) - signal
    return all(
        abs(float(found.mean()) - expected) < sigmas * float(found.std()) / found.numel() ** 0.5
        for found, expected in ((signal, level.signal), (offset, level.offset))
    )


def random_layer(weight_std, bias_std=0.0, level=GIVEN):
    weight = weight_std * normal(UNITS, FEATURES, seed=3).double()
    return inputs(level) @ weight.T + bias_std * normal(UNITS, seed=4).double()


def test_total_is_signal_and_offset():
    assert GIVEN.total == 4.0


def test_a_layer_multiplies_powers_and_adds_its_bias_to_the_offset():
    values = random_layer(weight_std=0.3, bias_std=2.0)
    assert agree(values, through_layer(GIVEN, FEATURES, 0.3**2, 2.0**2))


@pytest.mark.parametrize(
    "wrong",
    [
        through_layer(GIVEN, UNITS, 0.3**2, 2.0**2),
        through_layer(GIVEN, FEATURES, 0.3, 2.0**2),
        through_layer(GIVEN, FEATURES, 0.3**2, 2.0),
        through_layer(GIVEN, FEATURES, 0.3**2),
        through_layer(Level(GIVEN.offset, GIVEN.signal), FEATURES, 0.3**2, 2.0**2),
    ],
    ids=["fan_out", "weight std", "bias std", "no bias", "signal and offset swapped"],
)
def test_a_random_layer_rejects_a_wrong_prediction(wrong):
    assert not agree(random_layer(weight_std=0.3, bias_std=2.0), wrong)


@pytest.mark.parametrize("name", ["identity", "relu", "tanh", "gelu", "selu", "logistic", "relu6"])
@pytest.mark.parametrize("level", [GIVEN, Level(0.6, 0.0), Level(0.01, 1.0)], ids=str)
def test_an_activation_behind_a_random_layer(name, level):
    values = lookup(name).function(random_layer(FEATURES**-0.5, level=level))
    assert agree(values, through_activation(level, lookup(name)))


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "logistic"])
@pytest.mark.parametrize(
    "mutant",
    [
        lambda level, f: through_activation(Level(level.total, 0.0), f),
        lambda level, f: through_activation(Level(level.signal, 0.0), f),
        lambda level, f: through_activation(Level(level.signal**0.5, level.offset**0.5), f),
        lambda level, f: Level(level.signal * moments(f, level.total).slope, through_activation(level, f).offset),
    ],
    ids=["all signal", "offset dropped", "std for variance", "linearised"],
)
def test_a_random_layer_rejects_a_wrong_activation(name, mutant):
    values = lookup(name).function(random_layer(FEATURES**-0.5))
    assert not agree(values, mutant(GIVEN, lookup(name)))


def test_an_activation_behind_silence():
    assert through_activation(Level(0.0, 0.0), lookup("relu")) == Level(0.0, 0.0)
    assert through_activation(Level(0.0, 0.0), lookup("logistic")) == Level(0.0, 0.25)
    assert through_activation(Level(0.0, 2.0), lookup("relu")) == Level(0.0, pytest.approx(1.0))


def normalised(values, weight_std, bias_std):
    """Batch normalisation of (samples, units) with random scale and shift."""
    units = values.shape[1]
    weight = 1 + weight_std * normal(units, seed=5).double()
    bias = bias_std * normal(units, seed=6).double()
    return F.batch_norm(values, None, None, weight, bias, training=True), 1 + weight_std**2, bias_std**2


def test_batch_normalisation_forgets_the_level_and_applies_its_own():
    values, weight_power, bias_power = normalised(gaussian(GIVEN, samples=512, units=2000), 0.5, 0.7)
    values = values * math.sqrt(511 / 512)  # it divides by the biased variance
    assert agree(values, through_batch_norm(GIVEN, weight_power, bias_power))
    assert not agree(values, Level(weight_power, bias_power + GIVEN.offset / GIVEN.signal)), "an offset kept"
    assert not agree(values, through_batch_norm(GIVEN, weight_power**0.5, bias_power)), "std for variance"
    assert not agree(values, through_batch_norm(GIVEN))


def test_batch_normalisation_cannot_revive_a_dead_signal():
    assert through_batch_norm(Level(0.0, 3.0), 1.0, 0.25) == Level(0.0, 0.25)


def test_layer_normalisation_keeps_the_proportion_of_signal_and_offset():
    weight = 1 + 0.5 * normal(UNITS, seed=5).double()
    bias = 0.7 * normal(UNITS, seed=6).double()
    values = F.layer_norm(gaussian(GIVEN), (UNITS,), weight, bias)
    assert agree(values, through_layer_norm(GIVEN, 1.25, 0.49))
    assert not agree(values, through_layer_norm(Level(GIVEN.offset, GIVEN.signal), 1.25, 0.49)), "swapped"
    assert not agree(values, through_batch_norm(GIVEN, 1.25, 0.49)), "another normalisation"
    assert not agree(values, through_layer_norm(GIVEN, 1.25)), "bias dropped"


def test_batch_normalisation_lifts_a_whisper_to_full_strength():
    assert through_batch_norm(Level(1e-6, 3.0)) == Level(1.0, 0.0)


def test_without_settings_scale_is_one_and_shift_is_none():
    assert through_layer(GIVEN, 10, 0.2) == Level(3.0, 5.0)
    assert through_batch_norm(GIVEN) == Level(1.0, 0.0)
    assert through_layer_norm(GIVEN) == Level(1.5 / 4, 2.5 / 4)


def test_layer_normalisation_of_silence_is_its_bias():
    assert through_layer_norm(Level(0.0, 0.0), 1.0, 0.49) == Level(0.0, 0.49)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_adds_its_noise_to_the_signal(rate):
    values = quiet(lambda: F.dropout(gaussian(GIVEN), rate))
    assert agree(values, through_dropout(GIVEN, rate))
    assert not agree(values, through_dropout(GIVEN, 1 - rate) if rate != 0.5 else GIVEN), "the keep rate"
    assert not agree(values, Level(GIVEN.signal / (1 - rate), GIVEN.offset)), "only the signal's noise"


def test_no_dropout_changes_nothing():
    assert through_dropout(GIVEN, 0.0) == GIVEN


def test_total_dropout_is_silence():
    assert not quiet(lambda: F.dropout(gaussian(GIVEN), 1.0)).any()
    assert through_dropout(GIVEN, 1.0) == Level(0.0, 0.0)


NETWORKS, FAN_IN, FAN_OUT, Q = 400, 256, 128, 3.0


def measured_gains(activation, scale=1.0):
    """Power gains of the gradient through f(scale * W x), one for each of many independent networks.

    The pre-activations scale * W x have power Q; W has power 1/FAN_OUT.
    """
    draw = generator(7)
    weight = torch.randn(NETWORKS, FAN_OUT, FAN_IN, generator=draw) / FAN_OUT**0.5
    x = torch.randn(NETWORKS, FAN_IN, 1, generator=draw)
    x = (x / x.norm(dim=1, keepdim=True) * (Q * FAN_OUT) ** 0.5 / scale).requires_grad_(True)
    above = torch.randn(NETWORKS, FAN_OUT, 1, generator=draw)
    (below,) = torch.autograd.grad((activation(scale * weight @ x) * above).sum(), x)
    return below.square().mean((1, 2)) / above.square().mean((1, 2))


def gains_agree(measured, gain, sigmas=4.0):
    """Standard errors over the networks, and the 1/width by which a finite network differs from a wide one."""
    error = float(measured.std()) / NETWORKS**0.5
    return abs(float(measured.mean()) - gain**2) < sigmas * error + gain**2 * (1 / FAN_IN + 1 / FAN_OUT)


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "logistic"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_gradient_behind_random_layers(name, scale):
    activation = lookup(name)
    measured = measured_gains(activation.function, scale)
    assert gains_agree(measured, gradient_gain(activation, Q, FAN_OUT, 1 / FAN_OUT, scale**2))
    assert not gains_agree(measured, gradient_gain(activation, Q, FAN_IN, 1 / FAN_OUT, scale**2)), "fans swapped"
    assert not gains_agree(measured, gradient_gain(None, Q, FAN_OUT, 1 / FAN_OUT, scale**2)), "activation forgotten"


@pytest.mark.parametrize("name", ["tanh", "logistic"])
def test_random_layers_reject_the_gradient_at_another_level(name):
    measured = measured_gains(lookup(name).function)
    assert not gains_agree(measured, gradient_gain(lookup(name), Q**2, FAN_OUT, 1 / FAN_OUT))


def test_the_gradient_through_a_plain_layer():
    measured = measured_gains(lambda z: z)
    assert gains_agree(measured, gradient_gain(None, Q, FAN_OUT, 1 / FAN_OUT))
    assert not gains_agree(measured, gradient_gain(None, Q, FAN_OUT, FAN_OUT**-0.5)), "std for variance"


def test_the_gradient_behind_silence_is_the_limit_of_the_gradient_behind_a_whisper():
    whisper = gradient_gain(lookup("logistic"), 1e-12, FAN_OUT, 1 / FAN_OUT)
    assert gradient_gain(lookup("logistic"), 0.0, FAN_OUT, 1 / FAN_OUT) == pytest.approx(whisper)


def chain(weight_power, bias_power, depth=20, width=512):
    """The level behind each stage of a deep ReLU network fed with unit noise."""
    level, levels = Level(1.0, 0.0), []
    for _ in range(depth):
        level = through_activation(through_layer(level, width, weight_power, bias_power), lookup("relu"))
        levels.append(level)
    return levels


def closed_form_chain(depth=20):
    """The same for He weights without bias, by the arc-cosine kernel: total 1, correlation c."""
    correlation = 0.0
    for _ in range(depth):
        angle = math.acos(correlation)
        correlation = (math.sin(angle) + (math.pi - angle) * correlation) / math.pi
    return 1 - correlation


def test_a_deep_relu_network_of_he_keeps_its_level_and_loses_signal():
    levels = chain(2 / 512, 0.0)
    assert all(level.total == pytest.approx(1.0) for level in levels)
    assert levels[-1].signal == pytest.approx(closed_form_chain(), rel=1e-2)
    assert decibels(levels[-1].signal ** 0.5) == pytest.approx(-12.5, abs=1)


def test_a_deep_relu_network_of_torchs_default_falls_silent_while_its_level_looks_survivable():
    """Measured on such a network, 20 layers of 512: level -34.5 dB, signal -161.9 dB."""
    default = 1 / (3 * 512)
    last = chain(default, default)[-1]
    assert decibels(last.total**0.5) == pytest.approx(-34.5, abs=1.5)
    assert decibels(last.signal**0.5) == pytest.approx(-161.9, abs=1.5)
    assert decibels(chain(default, 0.0)[-1].total ** 0.5) < -100, "without the bias the level would fall as well"
