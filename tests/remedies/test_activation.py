"""Another activation in the hidden stages."""

import pytest
from torch import nn

from gainstage.program import Program
from gainstage.remedies import CannotApply
from gainstage.remedies.activation import UseElu, UseSelu
from tests.networks import deep, normal_weights
from tests.remedies.test_base import treatment
from tests.tools import blobs, quiet


def program(model):
    return Program(model, nn.CrossEntropyLoss(), blobs())


@pytest.mark.parametrize(("remedy", "kind", "variance"), [(UseSelu, nn.SELU, 1 / 64), (UseElu, nn.ELU, 2 / 64)])
def test_hidden_activations_and_their_weights_change_together(remedy, kind, variance):
    sick = program(deep(3, "tanh", normal_weights(1.0)))
    remedy().apply(treatment(sick))
    assert all(isinstance(m, kind) for name, m in sick.model.named_children() if name.startswith("activation"))
    assert float(sick.model.hidden2.weight.detach().var()) == pytest.approx(variance, rel=0.1)


def test_only_stages_that_share_the_activation_at_fault_change():
    sick = program(
        quiet(lambda: nn.Sequential(nn.Linear(20, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)))
    )
    UseSelu().apply(treatment(sick, where=("0",)))
    assert [type(m) for m in sick.model[1::2]] == [nn.SELU, nn.ReLU]


def test_an_output_activation_is_left_alone():
    sick = program(quiet(lambda: nn.Sequential(nn.Linear(20, 8), nn.Sigmoid(), nn.Linear(8, 3), nn.Sigmoid())))
    UseSelu().apply(treatment(sick))
    assert [type(m) for m in sick.model[1::2]] == [nn.SELU, nn.Sigmoid]


def test_a_shared_activation_module_is_replaced_once_for_all_its_stages():
    shared = nn.Tanh()
    sick = program(quiet(lambda: nn.Sequential(nn.Linear(20, 8), shared, nn.Linear(8, 8), shared, nn.Linear(8, 3))))
    UseSelu().apply(treatment(sick))
    assert not any(isinstance(module, nn.Tanh) for module in sick.model)


def test_it_does_not_apply_where_the_activation_is_there_already():
    with pytest.raises(CannotApply, match="no hidden stage has another activation than selu"):
        UseSelu().apply(treatment(program(deep(2, "selu"))))
