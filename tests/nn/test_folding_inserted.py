"""What insert_batch_norm put into a network, folded again: also what hangs on a hook, in copies and in saved networks."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gainstage.errors import BadInput
from gainstage.nn import fold_batch_norm, insert_batch_norm
from tests.networks import Images, settle
from tests.nn.test_folding import difference, everything, norms, outputs, pictures
from tests.tools import normal, quiet


def test_what_insert_batch_norm_puts_into_an_nn_sequential_is_folded():
    model = quiet(lambda: nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3)))
    settle(insert_batch_norm(model, first=True), normal(32, 20))
    assert [each.normalization for each in fold_batch_norm(model).folded] == ["input_normalization", "1_normalization"]


class Own(nn.Module):
    """Own forward: an activation with a parameter, one called as a function and one written out."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(20, 16), nn.Linear(16, 8, bias=False), nn.Linear(8, 6)
        self.head, self.act = nn.Linear(6, 3), nn.PReLU()

    def forward(self, x):
        h = F.relu(self.first(x))
        h = self.third(self.act(self.second(h)))
        return self.head(torch.where(h > 0, h, 0.1 * h))


HUNG = {
    "functions": (Own, lambda: 2 + 3 * normal(32, 20), {}, 3),
    "functions, and the input": (Own, lambda: 2 + 3 * normal(32, 20), {"first": True}, 4),
    "convolutions": (Images, pictures, {}, 4),
    "behind an activation": (
        lambda: nn.ModuleList([nn.Linear(20, 16), nn.PReLU(), nn.Linear(16, 3)]),
        lambda: normal(32, 20),
        {"position": "after"},
        1,
    ),
}
hung = pytest.mark.parametrize(("build", "data", "settings", "count"), HUNG.values(), ids=HUNG)


class InTurn(nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return x


def with_hooks(build, data, settings):
    """A network into which normalisation was inserted, with statistics of its own, and the network as it was before."""
    plain = quiet(build)
    plain = InTurn(plain) if isinstance(plain, nn.ModuleList) else plain
    model = insert_batch_norm(copy.deepcopy(plain), data=data(), **settings)
    return settle(model, data()), plain.eval()


def hooks(model):
    return [
        (name, list(m._forward_hooks.items()), list(m._forward_pre_hooks.items())) for name, m in model.named_modules()
    ]


@hung
@pytest.mark.draws
def test_what_hangs_on_a_hook_is_folded_and_leaves_no_trace(build, data, settings, count):
    (model, plain), x = with_hooks(build, data, settings), data()
    twin = copy.deepcopy(model)
    assert difference(plain, model, x) > 1e-2, "or this test could not fail"
    found = fold_batch_norm(model, x)
    assert (len(found.folded), len(norms(twin))) == (count, count)
    assert not found.refused
    assert not norms(model)
    assert not any(behind or in_front for _, behind, in_front in hooks(model))
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]
    assert model.state_dict().keys() - {"second.bias"} == plain.state_dict().keys(), "a layer without bias gets one"
    assert difference(twin, model, x) < 1e-5
    assert difference(twin, model, 10 * normal(*x.shape, seed=5)) < 1e-5


@hung
@pytest.mark.draws
def test_undo_brings_what_hung_on_a_hook_back_bit_by_bit(build, data, settings, count):
    (model, _), x = with_hooks(build, data, settings), data()
    before, carried, output = everything(model), hooks(model), outputs(model, x)
    found = fold_batch_norm(model, x)
    assert everything(model) != before
    found.undo()
    assert everything(model) == before
    assert hooks(model) == carried
    assert all(torch.equal(a, b) for a, b in zip(outputs(model, x), output, strict=True))
    assert len(fold_batch_norm(model, x).folded) == count, "and it can be folded again"


def saved(model):
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@hung
@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved])
@pytest.mark.draws
def test_a_copy_or_a_saved_network_is_folded_by_itself(build, data, settings, count, twin_of):
    (model, _), x = with_hooks(build, data, settings), data()
    before, output = everything(model), outputs(model, x)
    twin = twin_of(model)
    assert all(torch.equal(a, b) for a, b in zip(outputs(twin, x), output, strict=True))
    kept = everything(twin)
    found = fold_batch_norm(twin, x)
    assert len(found.folded) == count
    assert difference(model, twin, x) < 1e-5
    assert everything(model) == before
    found.undo()
    assert everything(twin) == kept


@pytest.mark.draws
def test_one_that_cannot_be_folded_keeps_its_hook_while_others_lose_theirs():
    model, _ = with_hooks(Images, pictures, {"first": True})
    twin = copy.deepcopy(model)
    found = fold_batch_norm(model, pictures())
    assert [each.normalization for each in found.refused] == ["stem.input_normalization"]
    assert [name for name, behind, in_front in hooks(model) if behind or in_front] == ["stem"]
    assert difference(twin, model, pictures()) < 1e-5


@pytest.mark.draws
def test_a_layer_that_carries_a_hook_of_someone_else_too_is_refused():
    model, _ = with_hooks(Own, lambda: normal(32, 20), {})
    model.first.register_forward_hook(lambda *_: None)
    found = fold_batch_norm(model)
    assert {each.normalization for each in found.folded} == {"act.input_normalization", "third.normalization"}
    assert [(each.normalization, each.reason.split(";")[0]) for each in found.refused] == [
        ("first.normalization", "in front, linear in first carries hooks")
    ]


@pytest.mark.draws
def test_a_users_own_hook_that_normalises_is_not_ours():
    model = nn.Sequential(*quiet(lambda: [nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 3)]))
    model[0].normalization = nn.BatchNorm1d(8)
    model[0].register_forward_hook(lambda module, _, output: module.normalization(output))
    settle(model, normal(32, 20))
    before = everything(model)
    with pytest.raises(BadInput, match=r"0.normalization: in front, linear in 0 carries hooks"):
        fold_batch_norm(model)
    assert everything(model) == before
