"""Networks of SELUs for the tests of self-normalisation, and what to read off its result."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from gainstage.nn import VarianceScaling, dense_network, fans_of
from gainstage.nn.inspection import ACTIVATIONS, DENSE, DROPOUT, NORMALIZATION, SEQUENTIAL
from gainstage.nn.self_normalization import BIASES, INPUTS, WEIGHTS, Clause, SelfNormalization
from tests.tools import generator, normal, quiet

ALL = [INPUTS, WEIGHTS, BIASES, ACTIVATIONS, SEQUENTIAL, DENSE, DROPOUT, NORMALIZATION]
X = normal(500, 20)


def dense(hidden=(64, 64, 64), activation="selu", initializer="lecun_normal", seed=0, **settings):
    return quiet(
        lambda: dense_network(20, hidden, 3, activation, initializer, generator=generator(seed), **settings),
    )


def verdicts(found: SelfNormalization) -> dict[str, str]:
    return {clause.name: clause.state for clause in found.clauses}


def faults(found: SelfNormalization) -> dict[str, str]:
    return {name: state for name, state in verdicts(found).items() if state != "holds"}


def clause(found: SelfNormalization, name: str) -> Clause:
    return next(clause for clause in found.clauses if clause.name == name)


class WithFunctions(nn.Module):
    """SELU and alpha dropout called as functions."""

    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.ModuleList(nn.Linear(20, 20) for _ in range(3)), nn.Linear(20, 3)

    def forward(self, x):
        for layer in self.layers:
            x = F.alpha_dropout(F.selu(layer(x)), 0.1, self.training)
        return self.head(x)


def drawn(model, distribution="normal"):
    """LeCun weights and zero biases for any network."""
    initializer, draw = VarianceScaling(distribution=distribution), generator(1)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            initializer(layer.weight, fans_of(layer), draw)
            nn.init.zeros_(layer.bias)
    return model


def changed(change):
    """A healthy network after `change(its second layer)`."""
    model = dense()
    with torch.no_grad():
        change(model.hidden2)
    return model


def scale_second(factor):
    return changed(lambda layer: layer.weight.mul_(factor))
