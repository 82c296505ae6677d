"""Batch normalisation inserted into an existing network."""

import pytest
import torch
from torch import nn

from gainstage.nn import insert_batch_norm
from gainstage.program import Program
from gainstage.remedies import CannotApply
from gainstage.remedies.normalization import InsertBatchNormalization
from tests.networks import Function, Functional, Images, Residual, deep
from tests.nn.test_insertion import Variational
from tests.remedies.test_base import identity, treatment
from tests.tools import blobs, normal, quiet


def program(model, data=None):
    return Program(model, nn.CrossEntropyLoss(), data or blobs())


def test_it_stands_in_front_of_each_hidden_activation_and_the_useless_bias_goes():
    sick = program(deep(2, "relu"))
    InsertBatchNormalization().apply(treatment(sick))
    assert [type(m) for m in sick.model] == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear]
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
    assert isinstance(sick.model[1], nn.BatchNorm2d)


@pytest.mark.parametrize("build", [Functional, Residual, lambda: Images(activations="shared")])
@pytest.mark.parametrize("optimizer", [None, torch.optim.Adam])
@pytest.mark.draws
def test_networks_with_a_forward_of_their_own_are_treated_and_undone_exactly(build, optimizer):
    model = quiet(build)
    data = blobs() if not isinstance(model, Images) else (normal(64, 3, 7, 7), torch.arange(64) % 3)
    sick = Program(model, nn.CrossEntropyLoss(), data, optimizer=optimizer and optimizer(model.parameters()))
    before, wanted, remedy = identity(sick), treatment(sick), InsertBatchNormalization()
    undo = remedy.apply(wanted)
    assert remedy.changed(wanted.graph, treatment(sick).graph, wanted)
    undo()
    assert identity(sick) == before
    assert not any(module._forward_hooks for module in model.modules())


def test_it_puts_normalisation_where_insert_batch_norm_does():
    sick, twin = program(quiet(Functional)), quiet(Functional)
    InsertBatchNormalization().apply(treatment(sick))
    assert repr(sick.model) == repr(insert_batch_norm(twin, data=blobs()))


def test_an_activation_that_is_written_out_is_treated_too():
    def build():
        act = Function(lambda h: torch.where(h > 0, h, 0.1 * h))
        return nn.Sequential(nn.Linear(20, 16), act, nn.Linear(16, 3))

    sick = program(quiet(build))
    wanted, remedy = treatment(sick), InsertBatchNormalization()
    remedy.apply(wanted)
    assert [type(m) for m in sick.model] == [nn.Linear, nn.BatchNorm1d, Function, nn.Linear]
    assert remedy.changed(wanted.graph, treatment(sick).graph, wanted)


def test_what_a_network_puts_out_does_not_count_as_left_over():
    x, _ = blobs()
    sick = Program(quiet(Variational), lambda output, _: sum(part.square().mean() for part in output), (x, x))
    wanted, remedy = treatment(sick), InsertBatchNormalization()
    remedy.apply(wanted)
    assert remedy.changed(wanted.graph, treatment(sick).graph, wanted)


def test_what_it_refuses_leaves_the_network_as_it_was():
    model = quiet(Functional)
    model.first.normalization = "none"
    sick = program(model)
    before = identity(sick)
    with pytest.raises(CannotApply, match="has something called normalization already"):
        InsertBatchNormalization().apply(treatment(sick))
    assert identity(sick) == before


def test_it_does_not_apply_twice():
    sick = program(deep(2, "relu"))
    InsertBatchNormalization().apply(treatment(sick))
    with pytest.raises(CannotApply, match="there is nothing to normalise"):
        InsertBatchNormalization().apply(treatment(sick))
