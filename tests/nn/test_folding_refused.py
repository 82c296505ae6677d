"""What fold_batch_norm leaves as it is, and its reasons."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gainstage.errors import BadInput
from gainstage.nn import fold_batch_norm
from tests.networks import settle
from tests.nn.test_folding import difference, everything
from tests.tools import normal, quiet


class Net(nn.Module):
    """A convolution, a normalisation, a head; `way` says how forward leads from the inputs and the convolution's output to
    the head."""

    def __init__(self, way=lambda net, x, h: net.norm(h), **settings):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4, **settings), nn.Linear(4, 2)
        self.unused, self.way = nn.BatchNorm1d(4), way
        self.also = [self.norm]

    def forward(self, x):
        return self.head(torch.relu(self.way(self, x, self.conv(x))).mean(-1))


class PutsOut(Net):
    def forward(self, x):
        h = self.conv(x)
        return h, self.head(self.norm(h).mean(-1))


def changed(change, **settings):
    def build():
        model = Net(**settings)
        change(model)
        return model

    return build


def tie(model):
    model.twin = nn.Conv1d(4, 4, 3)
    model.twin.weight = model.conv.weight


class Louder(nn.BatchNorm1d):
    def forward(self, x):
        return 2 * super().forward(x)


def way(function):
    return lambda: Net(function)


class Squared(nn.Conv1d):
    """A layer that computes its weight in forward."""

    def forward(self, x):
        return F.conv1d(x, self.weight**2, self.bias, padding=1)


ALONE = [  # the only normalisation that runs is refused: what is given, and the reason
    (way(lambda net, x, h: net.norm(h) + h), "in front, conv1d in conv is read elsewhere too; behind, add stands there"),
    (PutsOut, "conv1d in conv is read elsewhere too"),
    (way(lambda net, x, h: net.norm(net.norm(h))), "norm: it runs more than once"),
    (way(lambda net, x, h: net.norm(net.conv(h))), "conv1d in conv runs more than once"),
    (way(lambda net, x, h: net.norm(torch.tanh(h))), "in front, tanh stands there; behind, relu stands there"),
    (way(lambda net, x, h: net.norm(F.dropout(h, 0.1))), "in front, dropout stands there"),
    (way(lambda net, x, h: net.norm(F.conv1d(x, net.conv.weight))), "conv1d is called as a function"),
    (way(lambda net, x, h: net.norm(h) + (x * net.conv.weight.mean()).sum()), "conv1d in conv shares its parameters"),
    (way(lambda net, x, h: net.norm(h.flip(1))), "in front, flip stands there"),
    (lambda: Net(track_running_stats=False), "norm: it has no running statistics"),
    (changed(tie), "conv1d in conv shares its parameters"),
    (changed(lambda m: nn.utils.parametrizations.weight_norm(m.conv)), "conv1d in conv is parametrised"),
    (changed(lambda m: nn.utils.parametrizations.weight_norm(m.norm)), "norm: it is parametrised"),
    (changed(lambda m: m.conv.register_forward_hook(lambda *_: None)), "conv1d in conv carries hooks"),
    (changed(lambda m: m.norm.register_forward_pre_hook(lambda *_: None)), "norm: it carries hooks"),
    (changed(lambda m: setattr(m, "conv", Squared(4, 4, 3))), "conv1d in conv computes its weight in forward"),
    (way(lambda net, x, h: (lambda n: net.conv(n) + n)(net.norm(x))), "behind, its output is read in several places"),
    (changed(lambda m: setattr(m, "norm", Louder(4))), "norm: a Louder does more than to normalise"),
    (lambda: nn.BatchNorm1d(4), "it: it is the whole network"),
    (lambda: nn.Sequential(nn.BatchNorm1d(4)), "in front, nothing stands there; behind, nothing stands there"),
    (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()), "in front, nothing stands there; behind, relu in 1 stands there"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "reason"), ALONE)
@pytest.mark.draws
def test_what_cannot_be_folded_exactly_is_refused_with_its_reason_and_nothing_changes(build, reason):
    model, x = quiet(build).eval(), normal(8, 4, 9)
    settle(model, x)
    before = everything(model)
    with pytest.raises(BadInput, match=f"no batch normalisation can be folded: .*{reason}") as caught:
        fold_batch_norm(model, x)
    assert everything(model) == before
    assert isinstance(model, (nn.BatchNorm1d, nn.Sequential)) or "unused: it does not run" in str(caught.value)


@pytest.mark.parametrize(
    "function", [lambda net, x, h: net.norm(h) * (h > 0), lambda net, x, h: net.also[0](h)], ids=["mask", "from a list"]
)
def test_what_is_read_or_called_behind_the_traces_back_is_seen_in_the_outputs(function):
    model = settle(quiet(way(function)), normal(8, 4, 9))
    before = everything(model)
    with pytest.raises(BadInput, match="fold"):
        fold_batch_norm(model, normal(8, 4, 9))
    assert everything(model) == before


BORDERS = [
    lambda: nn.Conv1d(4, 3, 3, padding=1),
    lambda: nn.Conv1d(4, 3, 3, padding="same"),
    lambda: nn.ConvTranspose1d(4, 3, 3),
]


@pytest.mark.parametrize("build", BORDERS)
def test_a_border_that_the_shift_would_not_reach_is_refused_unless_there_is_no_shift(build):
    model, x = quiet(lambda: nn.Sequential(nn.BatchNorm1d(4), build())), normal(8, 4, 9)
    with torch.no_grad():
        model[0].weight.mul_(3.0)
        model[0].running_var.mul_(0.5)
    twin = copy.deepcopy(model.eval())
    assert len(fold_batch_norm(model, x).folded) == 1
    assert difference(twin, model, x) < 1e-5
    twin[0].bias.data[2] = 0.1
    with pytest.raises(BadInput, match=r"behind, conv\w+ in 1 has a border that the shift would not reach"):
        fold_batch_norm(twin, x)


def test_other_dimensions_than_the_layers_units_are_refused():
    model = settle(quiet(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))), normal(8, 4, 4))
    with pytest.raises(BadInput, match="in front, linear in 0 has its units in another dimension"):
        fold_batch_norm(model, normal(8, 4, 4))
