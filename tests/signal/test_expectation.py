"""What theory expects of single stages."""

import pytest
from torch import nn

from gainstage.signal import trace
from gainstage.signal.expectation import Powers, expected_backward_gain, expected_level
from gainstage.theory import Level, lookup, moments
from tests.tools import normal, quiet

POWERS = Powers(weight=1 / 20, bias=0.0)
LEVEL = Level(1.0, 0.0)


def first_stage(*modules):
    graph = trace(quiet(lambda: nn.Sequential(nn.Linear(20, 20), *modules)), normal(8, 20))
    return graph, graph.stages[0]


def test_a_linear_stage_keeps_the_level_of_lecun_weights():
    _, stage = first_stage()
    assert expected_level(stage, LEVEL, POWERS).signal == pytest.approx(1.0)


def test_the_bias_adds_to_the_offset_not_to_the_signal():
    _, stage = first_stage()
    after = expected_level(stage, LEVEL, Powers(1 / 20, 0.25))
    assert (after.signal, after.offset) == pytest.approx((1.0, 0.25))


def test_an_activation_passes_its_moments():
    _, stage = first_stage(nn.Tanh())
    assert expected_level(stage, LEVEL, POWERS).total == pytest.approx(moments(lookup("tanh"), 1.0).second, rel=1e-6)


def test_dropout_turns_level_into_noise_only_in_training():
    _, stage = first_stage(nn.Dropout(0.5))
    assert expected_level(stage, LEVEL, POWERS).signal == pytest.approx(2.0)
    _, stage = first_stage(nn.Dropout(0.5).eval())
    assert expected_level(stage, LEVEL, POWERS).signal == pytest.approx(1.0)


def test_nothing_is_expected_behind_an_unknown_operation():
    class Sine(nn.Module):
        def forward(self, x):
            return x.sin()

    graph, stage = first_stage(Sine())
    assert expected_level(stage, LEVEL, POWERS) is None
    assert expected_backward_gain(graph, stage, LEVEL, POWERS) is None


def test_backward_through_the_second_stage_of_a_chain():
    graph = trace(quiet(lambda: nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 40), nn.ReLU())), normal(8, 20))
    gain = expected_backward_gain(graph, graph.stages[1], LEVEL, POWERS)
    assert gain == pytest.approx((40 / 20 / 2) ** 0.5)
