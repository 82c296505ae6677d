"""Batch normalisation inserted into an existing network."""

import pytest
import torch
from torch import nn

from gainstage.program import Program
from gainstage.remedies import CannotApply
from gainstage.remedies.normalization import InsertBatchNormalization
from tests.networks import deep
from tests.remedies.test_base import treatment
from tests.tools import blobs, normal, quiet


def program(model, data=None):
    return Program(model, nn.CrossEntropyLoss(), data or blobs())


def test_it_stands_in_front_of_each_hidden_activation_and_the_useless_bias_goes():
    sick = program(deep(2, "relu"))
    InsertBatchNormalization().apply(treatment(sick))
    pair = sick.model.activation1
    assert [type(m) for m in pair] == [nn.BatchNorm1d, nn.ReLU]
    assert sick.model.hidden1.bias is None
    assert sick.model.output.bias is not None


def test_no_existing_parameter_is_renamed():
    sick = program(deep(2, "relu"))
    before = {name for name, _ in sick.model.named_parameters() if "bias" not in name}
    InsertBatchNormalization().apply(treatment(sick))
    assert before <= {name for name, _ in sick.model.named_parameters()}


def test_convolutions_get_the_normalisation_of_their_dimension():
    def network():
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))

    sick = program(quiet(network), (normal(16, 1, 8, 8), torch.arange(16) % 3))
    InsertBatchNormalization().apply(treatment(sick))
    assert isinstance(sick.model[1][0], nn.BatchNorm2d)


def test_a_shared_activation_cannot_be_normalised_in_place():
    shared = nn.Tanh()
    sick = program(quiet(lambda: nn.Sequential(nn.Linear(20, 8), shared, nn.Linear(8, 8), shared, nn.Linear(8, 3))))
    with pytest.raises(CannotApply, match="share one activation module"):
        InsertBatchNormalization().apply(treatment(sick))


def test_it_does_not_apply_twice():
    sick = program(deep(2, "relu"))
    InsertBatchNormalization().apply(treatment(sick))
    with pytest.raises(CannotApply, match="normalised already"):
        InsertBatchNormalization().apply(treatment(sick))
