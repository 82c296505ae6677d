"""The two cases of each rule, whatever its family, and the mistakes of earlier tools that these rules must not make."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import gainstage as gs
from gainstage.checkup import check
from gainstage.rules import flatten
from tests.networks import Convolutional, deep, residual
from tests.rules.cases import CASES
from tests.tools import blobs, normal, quiet, refill

LOSS = nn.CrossEntropyLoss()


@pytest.mark.parametrize("code", sorted(CASES))
def test_the_sick_network_is_found_at_the_right_place(code):
    found = [f for f in flatten(checked(CASES[code].sick(), CASES[code].level).findings) if f.code == code]
    assert len(found) == 1
    assert CASES[code].stage in (found[0].where or ("",))
    assert all(isinstance(value, float) for value in found[0].evidence.values())
    assert found[0].message


@pytest.mark.parametrize("code", sorted(CASES))
def test_the_healthy_twin_stays_silent(code):
    case = CASES[code]
    assert checked(case.healthy(), case.level, ignore=case.ignore).codes == []


def checked(case, level, **options):
    return check(*(case if isinstance(case, tuple) else (case,)), level=level, **options)


def batch_normalised():
    return nn.Sequential(
        nn.Linear(20, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 3),
    )


def normalised_deep():
    parts = [nn.Linear(20, 64)]
    for _ in range(15):
        parts += [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(64, 3))


def autoencoder():
    sizes = [20, 128, 32, 2, 32, 128, 3]
    parts = []
    for a, b in pairwise(sizes):
        parts += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*parts[:-1])


def zero_head():
    model = deep(6, "relu")
    nn.init.zeros_(model.output.weight)
    return model


def sparse():
    model = deep(2, "relu", width=512)
    with torch.no_grad():
        model.hidden1.bias.fill_(-2.0)
    return model


class PreNorm(nn.Module):
    """x + branch(LayerNorm(x)), as in a transformer."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(blocks)
        )
        self.first, self.head = nn.Linear(20, 32), nn.Linear(32, 3)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def defaults(activation, depth):
    parts = [part for _ in range(depth) for part in (nn.Linear(20, 20), activation())]
    return nn.Sequential(*parts, nn.Linear(20, 3))


HEALTHY = {
    "pre-norm residual, 24 blocks of torch's defaults": lambda: quiet(lambda: PreNorm(24)),
    "torch's defaults, five ReLU layers": lambda: quiet(lambda: defaults(nn.ReLU, 5)),
    "torch's defaults, five GELU layers": lambda: quiet(lambda: defaults(nn.GELU, 5)),
    "He ReLU, 20 layers": lambda: deep(20, "relu"),
    "SELU, 40 layers": lambda: deep(40, "selu"),
    "ELU, 10 layers": lambda: deep(10, "elu"),
    "GELU with He weights": lambda: deep(8, "gelu"),
    "tanh with Glorot weights, 20 layers": lambda: deep(20, "tanh"),
    "torch's defaults, three layers": lambda: quiet(
        lambda: nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    ),
    "batch normalisation": lambda: quiet(batch_normalised),
    "batch normalisation, 15 layers of torch's defaults": lambda: quiet(normalised_deep),
    "a funnel and back": lambda: quiet(autoencoder),
    "residual": residual,
    "residual, branches gated by zeros": lambda: residual(gated=True),
    "an output layer of zeros": zero_head,
    "a linear network": lambda: deep(10, "identity"),
    "many zeros, none dead": sparse,
    "one layer": lambda: quiet(lambda: nn.Linear(20, 3)),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_networks_stay_silent(name):
    checkup = gs.check(HEALTHY[name](), LOSS, blobs(512))
    assert [str(finding) for finding in checkup.findings] == []


def test_a_healthy_convolutional_network_stays_silent():
    model = refill(quiet(Convolutional))
    with torch.no_grad():
        model.norm.weight.fill_(1.0)
    assert gs.check(model, LOSS, (normal(64, 1, 8, 8), torch.arange(64) % 3)).codes == []


def test_a_share_of_zeros_is_not_death():
    """92 % zeros and no dead unit on 4,096 samples: tools that count zeros call this dead."""
    model = deep(1, "relu", width=512)
    with torch.no_grad():
        model.hidden1.weight.normal_(0, 20**-0.5, generator=torch.Generator().manual_seed(0))
        model.hidden1.bias.fill_(-1.4)
    x = normal(4096, 20)
    zeros = float((torch.relu(model.hidden1(x)) == 0).float().mean().detach())
    assert zeros > 0.9
    assert "S101" not in gs.check(model, LOSS, (x, torch.arange(4096) % 3)).codes


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_verdicts_do_not_depend_on_the_scale_of_the_loss(scale):
    """Absolute gradient thresholds (1e-7) would fire or fall silent with the loss's reduction."""

    def loss(output, y):
        return scale * nn.functional.cross_entropy(output, y)

    assert gs.check(deep(20, "relu"), loss, blobs()).codes == []
    assert "G101" in gs.check(deep(8, "logistic"), loss, blobs()).codes


def test_standardised_inputs_beyond_one_are_no_fault():
    x, y = blobs()
    assert float(x.abs().max()) > 1
    assert gs.check(deep(3, "relu"), LOSS, (x, y)).codes == []


def test_a_fault_in_the_middle_is_seen_although_first_and_last_stage_agree():
    model = deep(10, "relu")
    with torch.no_grad():
        for layer in (model.hidden4, model.hidden5, model.hidden6):
            layer.weight.mul_(0.01)
        model.hidden7.weight.mul_(100.0)
    finding = next(f for f in flatten(gs.check(model, LOSS, blobs()).findings) if f.code == "S103")
    assert "hidden6" in finding.where


@pytest.mark.parametrize("depth", [2, 5])
def test_a_trained_tanh_network_stays_silent(depth):
    """Learning itself saturates units: hidden features become decisions."""
    x, y = blobs(512)
    model = quiet(lambda: defaults(nn.Tanh, depth))
    gs.fit(model, LOSS, (x, y), optimizer="adam", epochs=40, progress=False)
    assert gs.check(model, LOSS, (x, y)).codes == []
