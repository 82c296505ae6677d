"""Drawing weights anew: right variances, never over what was learned."""

import pytest
from torch import nn

import gainstage as gs
from gainstage.program import Program
from gainstage.remedies import CannotApply
from gainstage.remedies.initialization import InitializeForActivation
from tests.networks import deep, normal_weights
from tests.remedies.test_base import treatment
from tests.tools import blobs


def test_it_refuses_a_trained_network():
    program = Program(deep(3, "relu"), nn.CrossEntropyLoss(), blobs())
    gs.fit(program, optimizer="adam", epochs=30, progress=False)
    with pytest.raises(CannotApply, match="has been trained"):
        InitializeForActivation().apply(treatment(program))


def test_it_draws_every_layer_with_the_variance_of_the_table():
    program = Program(deep(3, "relu", normal_weights(1.0)), nn.CrossEntropyLoss(), blobs())
    InitializeForActivation().apply(treatment(program))
    variance = float(program.model.hidden2.weight.detach().var())
    assert variance == pytest.approx(2 / 64, rel=4 * (2 / 64**2) ** 0.5)
    assert variance != pytest.approx(1 / 64, rel=4 * (2 / 64**2) ** 0.5)
    assert float(program.model.hidden2.bias.detach().abs().max()) == 0
