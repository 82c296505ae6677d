"""Batch normalisation folded into its neighbours: the same outputs, the reasons where not, and the way back."""

import copy
import json
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from gainstage.errors import BadInput
from gainstage.nn import absorption, convolutional_network, dense_network, fold_batch_norm
from gainstage.nn.folding import _tolerance
from tests.networks import Convolutional, Images, settle
from tests.tools import normal, quiet, random_states, same_states


def dense(normalization):
    return dense_network(20, [16, 8], 3, "tanh", normalization=normalization, normalize_inputs=True)


class Functional(nn.Module):
    """Own forward: functions between, dropout that is not active, two outputs."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.Dropout2d(0.5)
        self.second, self.norm2 = nn.Conv2d(8, 4, 1, groups=4), nn.BatchNorm2d(4, affine=False)

    def forward(self, x):
        h = F.relu(self.norm(F.dropout(self.drop(self.conv(x)), training=self.training)), inplace=True)
        return self.norm2(self.second(h)), h.mean((2, 3))


def pictures():
    return 2 + 3 * normal(16, 3, 7, 7)


def in_front_of(*layers, units=3, norm=nn.BatchNorm2d):
    return lambda: nn.Sequential(norm(units), *quiet(lambda: [build() for build in layers]))


NETWORKS = {
    "dense": (lambda: dense("batch"), lambda: normal(32, 20) - 1, 3),
    "dense, after": (lambda: dense("batch_after"), lambda: normal(32, 20) - 1, 3),
    "convolutions": (lambda: convolutional_network(3, [8, 8], 4, normalization="batch"), pictures, 2),
    "residual, grouped, transposed": (lambda: Images("before"), pictures, 4),
    "functions": (Functional, pictures, 2),
    "in front of a grouped convolution": (in_front_of(lambda: nn.Conv2d(3, 6, 3, groups=3, bias=False)), pictures, 1),
    "in front of a reflecting convolution": (
        in_front_of(lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")),
        pictures,
        1,
    ),
    "in front, through another": (
        in_front_of(
            lambda: nn.BatchNorm1d(6), lambda: nn.BatchNorm1d(6), lambda: nn.Linear(6, 2), units=6, norm=nn.BatchNorm1d
        ),
        lambda: normal(32, 6) + 2,
        3,
    ),
    "on both sides": (
        in_front_of(lambda: nn.Conv1d(4, 6, 2), lambda: nn.BatchNorm1d(6), units=4, norm=nn.BatchNorm1d),
        lambda: normal(16, 4, 9) + 2,
        2,
    ),
    "volumes": (
        lambda: nn.Sequential(nn.ConvTranspose3d(2, 4, 2, groups=2), nn.BatchNorm3d(4), nn.SELU(), nn.Conv3d(4, 2, 2)),
        lambda: normal(8, 2, 4, 3, 3),
        1,
    ),
}
networks = pytest.mark.parametrize(("build", "data", "count"), NETWORKS.values(), ids=NETWORKS)


def norms(model):
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def outputs(model, x):
    with torch.no_grad():
        found = model(x.clone())
    return found if isinstance(found, tuple) else (found,)


def difference(model, twin, x):
    """The largest difference of an output as a share of the largest output."""
    pairs = zip(outputs(model, x), outputs(twin, x), strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def network(build, data):
    return settle(quiet(build), data())


@networks
@pytest.mark.draws
def test_the_folded_network_puts_out_the_same(build, data, count):
    model, x = network(build, data), data()
    twin = copy.deepcopy(model)
    found = fold_batch_norm(model, x)
    assert len(found.folded) == count
    assert not found.refused
    assert not norms(model)
    assert difference(twin, model, x) < 1e-5
    assert difference(twin, model, 10 * normal(*x.shape, seed=5)) < 1e-5, "on inputs that it was not made with too"
    assert found.difference < 1e-5


@networks
@pytest.mark.draws
def test_in_double_precision_it_puts_out_the_same_to_the_last_digits(build, data, count):
    model, x = network(build, data).double(), data().double()
    twin = copy.deepcopy(model)
    fold_batch_norm(model, x)
    assert difference(twin, model, x) < 1e-13


def eps_forgotten(norm):
    scale, shift = original(norm)
    return scale * (1 + norm.eps / norm.running_var.double()).sqrt(), shift


def mean_forgotten(norm):
    return original(norm)[0], torch.zeros(
        norm.num_features
    ).double() if norm.bias is None else norm.bias.detach().double()


original = absorption.scale_and_shift


@pytest.mark.parametrize("mutant", [eps_forgotten, mean_forgotten])
@pytest.mark.draws
def test_wrong_arithmetic_is_seen_by_the_comparison_and_leaves_the_network_as_it_was(mutant, monkeypatch):
    monkeypatch.setattr(absorption, "scale_and_shift", mutant)
    model, x = network(lambda: Images("before"), pictures), pictures()
    for norm in norms(model):
        norm.eps = 0.1
    before = everything(model)
    with pytest.raises(BadInput, match=r"folding would change the outputs by .* of the largest"):
        fold_batch_norm(model, x)
    assert everything(model) == before


def everything(model):
    """Modules, their modes and hooks, parameters and buffers, bit by bit, by identity and by name."""
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    modules = [(name, id(m), m.training, list(m._modules)) for name, m in model.named_modules()]
    parameters = [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]
    state = {name: value.detach().flatten().tolist() for name, value in model.state_dict().items()}
    return hooks, modules, parameters, state


@networks
@pytest.mark.draws
def test_undo_is_exact_and_an_optimiser_made_before_still_trains_the_network(build, data, count):
    model, x = network(build, data), data()
    optimizer = torch.optim.Adam(model.parameters())
    before = everything(model)
    found = fold_batch_norm(model, x)
    assert everything(model) != before
    found.undo()
    assert everything(model) == before
    found.undo()
    assert everything(model) == before
    loss = sum(output.square().mean() for output in model.train()(x.clone()))
    loss.backward()
    optimizer.step()
    assert all(
        everything(model)[3][name] != before[3][name] for name, p in model.named_parameters() if p.grad.abs().sum() > 0
    )


@pytest.mark.draws
def test_folded_parameters_are_the_objects_that_they_were():
    model = network(lambda: Images("before"), pictures)
    before = {name: id(p) for name, p in model.named_parameters() if "before" not in name}
    fold_batch_norm(model, pictures())
    assert {name: id(p) for name, p in model.named_parameters()} == before


@pytest.mark.draws
def test_what_can_be_folded_is_and_the_rest_is_listed():
    model = network(Convolutional, lambda: normal(8, 1, 8, 8))
    model.relu.add_module("unused", nn.BatchNorm1d(3))
    found = fold_batch_norm(model.eval())
    assert [(each.normalization, each.layer, each.side) for each in found.folded] == [("norm", "conv", "in front")]
    assert [(each.normalization, each.reason) for each in found.refused] == [("relu.unused", "it does not run")]


# when and on what


def test_in_training_mode_without_normalisation_and_without_values_it_is_refused():
    model = quiet(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()))
    with pytest.raises(BadInput, match=re.escape("call model.eval() first")):
        fold_batch_norm(model)
    model.eval()[2].train()
    with pytest.raises(BadInput, match="part of the model is in training mode"):
        fold_batch_norm(model)
    with pytest.raises(BadInput, match="the network has no batch normalisation; there is nothing to fold"):
        fold_batch_norm(quiet(lambda: nn.Linear(4, 4)).eval())
    with pytest.raises(BadInput, match="part of the model is on the meta device"):
        fold_batch_norm(nn.Sequential(nn.Linear(4, 4, device="meta"), nn.BatchNorm1d(4)).eval())
    for model, got in (
        (None, "a NoneType"),
        ("model", "a str"),
        (nn.BatchNorm1d, "the class BatchNorm1d; did you mean"),
    ):
        with pytest.raises(BadInput, match=rf"the model must be a torch\.nn\.Module, got {got}"):
            fold_batch_norm(model)


@pytest.mark.parametrize(
    "data",
    [
        None,
        pictures(),
        (pictures(), torch.zeros(16)),
        DataLoader(TensorDataset(pictures(), torch.zeros(16)), 5),
    ],
    ids=["none", "inputs", "pair", "loader"],
)
def test_it_takes_any_data_and_leaves_it_and_the_random_states_alone(data):
    model = quiet(lambda: Functional()).eval()
    kept, random = copy.deepcopy(data), random_states()
    assert len(fold_batch_norm(model, data).folded) == 2
    assert same_states(random_states(), random)
    assert not isinstance(data, torch.Tensor) or torch.equal(data, kept)


def test_networks_that_work_in_place_or_draw_are_compared_on_the_same_inputs_and_numbers():
    class Draws(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.norm = nn.ReLU(inplace=True), nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            noisy = self.norm(self.second(self.first(x.sub_(0.5)))) + torch.rand(4)
            return F.dropout(noisy, 0.5)

    model, random = quiet(Draws).eval(), random_states()
    assert fold_batch_norm(model, 2 + normal(8, 4)).difference < 1e-6
    assert same_states(random_states(), random)


@pytest.mark.parametrize(
    ("dtype", "on_gpu", "bits"),
    [(torch.float32, False, 23), (torch.float32, True, 10), (torch.float64, True, 52), (torch.bfloat16, False, 7)],
)
def test_the_outputs_may_differ_by_half_of_their_digits(dtype, on_gpu, bits):
    assert _tolerance(dtype, on_gpu) == 2 ** (-bits / 2)


def test_inputs_that_do_not_fit_and_outputs_that_are_not_finite_are_refused():
    model = quiet(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))).eval()
    with pytest.raises(BadInput, match="forward failed on inputs of shape"):
        fold_batch_norm(model, normal(8, 5))
    with pytest.raises(BadInput, match="or the outputs are not finite"):
        fold_batch_norm(model, torch.full((8, 4), torch.inf))


def test_the_result_is_plain_facts():
    model = settle(
        quiet(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4))), normal(8, 4)
    )
    facts = json.loads(fold_batch_norm(model).to_json())
    assert facts.pop("difference") < 1e-6
    assert facts == {
        "folded": [{"normalization": "1", "layer": "0", "side": "in front"}],
        "refused": [{"normalization": "3", "reason": "in front, relu in 2 stands there; behind, nothing stands there"}],
    }
