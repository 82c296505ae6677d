"""Edits of a network: what they do, and that they can all be taken back."""

import copy
import pickle

import pytest
import torch
from torch import nn

from gainstage.errors import BadInput
from gainstage.nn.edits import Edits, has_other_hooks
from tests.tools import normal, quiet


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4, bias=False))
        self.act = nn.Tanh()
        self.alias = self.act

    def forward(self, x):
        return self.act(self.layers(x))


def write(model, edits):
    edits.write(model.layers[0].weight, torch.zeros(4, 4))


def set_parameter(model, edits):
    edits.set_parameter(model.layers[0], "bias", None)
    edits.set_parameter(model.layers[2], "bias", nn.Parameter(torch.ones(4)))


def replace_module(model, edits):
    edits.replace_module(model, model.act, nn.Sigmoid())


def pair(model, edits):
    edits.pair(model, model.act, "activation", nn.BatchNorm1d(4), behind=True)


def insert_entry(model, edits):
    edits.insert_entry(model.layers, "1_normalization", nn.BatchNorm1d(4), "1", behind=False)
    edits.insert_entry(model.layers, "1_normalization", nn.BatchNorm1d(4), "1", behind=True)


def attach(model, edits):
    edits.attach(model.layers[0], nn.BatchNorm1d(4), behind=True)
    edits.attach(model.layers[0], nn.BatchNorm1d(4), behind=False)


EDITS = [write, set_parameter, replace_module, pair, insert_entry, attach]


def everything(model):
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    modules = [(name, id(m), m.training, list(m._modules)) for name, m in model.named_modules(remove_duplicate=False)]
    values = [(name, id(p), p.detach().flatten().tolist()) for name, p in model.named_parameters()]
    return hooks, modules, values, list(model.state_dict())


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_changes_the_network_and_its_undo_brings_back_all_of_it(edit):
    model = quiet(Net).eval()
    before, output = everything(model), model(normal(3, 4))
    edits = Edits()
    quiet(lambda: edit(model, edits))
    assert everything(model) != before
    assert not model.training
    assert not any(module.training for module in model.modules()), "what comes in has the mode of what was there"
    edits.undo()
    assert everything(model) == before
    assert torch.equal(model(normal(3, 4)), output)
    edits.undo()
    assert everything(model) == before, "a second time there is nothing to undo"


def fail_half_way(model):
    with Edits() as edits:
        for edit in EDITS:
            edit(model, edits)
        raise RuntimeError("on purpose")


def test_all_together_are_taken_back_in_reverse_order_and_after_an_error():
    model = quiet(Net)
    before = everything(model)
    with pytest.raises(RuntimeError, match="on purpose"):
        fail_half_way(model)
    assert everything(model) == before
    with Edits() as edits:
        write(model, edits)
    assert everything(model) != before, "without an error the edits stay"


def test_a_module_is_replaced_wherever_it_is_a_child():
    model = quiet(Net)
    replace_module(model, Edits())
    assert isinstance(model.act, nn.Sigmoid)
    assert model.alias is model.act


@pytest.mark.parametrize(
    ("behind", "names"), [(False, ["normalization", "activation"]), (True, ["activation", "normalization"])]
)
def test_a_pair_runs_in_the_order_that_is_asked_for(behind, names):
    model = quiet(Net)
    Edits().pair(model, model.act, "activation", nn.BatchNorm1d(4), behind)
    assert [name for name, _ in model.act.named_children()] == names


def test_entries_keep_their_names_and_a_name_that_is_taken_is_not_taken_again():
    model = quiet(Net)
    insert_entry(model, Edits())
    assert list(model.layers._modules) == ["0", "1_normalization", "1", "1_normalization_", "2"]


def test_what_is_attached_runs_also_in_copies_and_saved_networks():
    layer, x = quiet(lambda: nn.Linear(4, 4)).double(), 3 + normal(64, 4).double()
    edits = Edits()
    edits.attach(layer, nn.BatchNorm1d(4).double(), behind=True)
    edits.attach(layer, nn.BatchNorm1d(4).double(), behind=False)
    twin = copy.deepcopy(layer)
    for each in (layer, twin, pickle.loads(pickle.dumps(layer))):
        output = each(x)
        assert torch.allclose(output.mean(0), torch.zeros(4).double(), atol=1e-9)
        assert torch.allclose(each.input_normalization.running_mean, 0.1 * x.mean(0))
    assert twin.normalization is not layer.normalization
    edits.undo()
    assert not list(layer.children())
    assert list(twin.children())


def test_a_name_that_means_something_else_is_not_overwritten():
    layer = quiet(lambda: nn.Linear(4, 4))
    layer.normalization = "none"
    with pytest.raises(BadInput, match="a Linear of the network has something called normalization already"):
        Edits().attach(layer, nn.BatchNorm1d(4), behind=True)
    assert not layer._forward_hooks


def bystander(*_):
    """A hook of the user's."""


def attached():
    """A layer with both normalisations attached, among hooks and children of the user's."""
    layer = quiet(lambda: nn.Linear(4, 4))
    for register in (layer.register_forward_hook, layer.register_forward_pre_hook):
        register(bystander)
    layer.add_module("first", nn.Identity())
    edits = Edits()
    edits.attach(layer, nn.BatchNorm1d(4), behind=True)
    edits.attach(layer, nn.BatchNorm1d(4), behind=False)
    for register in (layer.register_forward_hook, layer.register_forward_pre_hook):
        register(bystander)
    layer.add_module("last", nn.Identity())
    return layer


def hung(layer):
    return [list(held.items()) for held in (layer._forward_hooks, layer._forward_pre_hooks, layer._modules)]


@pytest.mark.parametrize("name", ["normalization", "input_normalization"])
@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_what_was_attached_is_detached_from_a_copy_too_and_comes_back_to_its_place(name, twin_of):
    layer, edits = attached(), Edits()
    twin, before = twin_of(layer), hung(layer)
    kept = hung(twin)
    edits.detach(nn.Sequential(twin), getattr(twin, name))
    assert not hasattr(twin, name)
    assert [child for child, _ in hung(twin)[2]] == [child for child, _ in kept[2] if child != name]
    assert sorted(map(len, hung(twin)[:2])) == [2, 3], "one hook is gone and no other"
    assert sum(hook is bystander for held in hung(twin)[:2] for _, hook in held) == 4
    twin(normal(3, 4))
    edits.undo()
    assert hung(twin) == kept
    assert hung(layer) == before


def test_an_undone_detachment_leaves_what_was_hung_meanwhile():
    layer, edits = attached(), Edits()
    edits.detach(layer, layer.normalization)
    layer.register_forward_hook(lambda *_: None)
    layer.add_module("meanwhile", nn.Identity())
    edits.undo()
    assert [name for name, _ in hung(layer)[2]] == [
        "first",
        "normalization",
        "input_normalization",
        "last",
        "meanwhile",
    ]
    assert len(layer._forward_hooks) == 4


def test_a_module_that_merely_is_called_so_is_not_detached():
    layer = quiet(lambda: nn.Linear(4, 4))
    layer.normalization = nn.BatchNorm1d(4)
    layer.register_forward_hook(lambda module, _, output: module.normalization(output))
    before = hung(layer)
    Edits().detach(layer, layer.normalization)
    assert hung(layer) == before
    other = attached()
    before = hung(other)
    Edits().detach(other, nn.BatchNorm1d(4))
    assert hung(other) == before, "another normalisation than the one that is meant"


def test_hooks_of_others_are_told_from_those_of_attach():
    layer = quiet(lambda: nn.Linear(4, 4))
    assert not has_other_hooks(layer)
    for behind in (True, False):
        Edits().attach(layer, nn.BatchNorm1d(4), behind)
    assert not has_other_hooks(layer)
    handle = layer.register_forward_hook(bystander)
    assert has_other_hooks(layer)
    handle.remove()
    layer.register_forward_pre_hook(bystander)
    assert has_other_hooks(layer)
