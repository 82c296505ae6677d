"""Small networks for the tests, each with one property that a test needs; all drawn from generators of their own."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from gainstage.nn import dense_network
from tests.tools import generator, quiet, refill


def deep(
    depth: int, activation: str, initializer="auto", width: int = 64, inputs: int = 20, outputs: int = 3, seed: int = 0
):
    """A plain network of `depth` hidden layers."""
    return quiet(
        lambda: dense_network(inputs, [width] * depth, outputs, activation, initializer, generator=generator(seed))
    )


def normal_weights(std: float, seed: int = 0):
    """An initialiser: N(0, std^2)."""
    draw = generator(seed)
    return lambda weight: weight.normal_(0.0, std, generator=draw)


class Functional(nn.Module):
    """Activations called as functions, a residual addition and a concatenation."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(20, 16), nn.Linear(16, 16), nn.Linear(32, 3)

    def forward(self, x):
        h = F.relu(self.first(x))
        g = torch.tanh(self.second(h)) + h
        return self.third(torch.cat([g, h], dim=1))


class FunctionalDeep(nn.Module):
    """Eight hidden layers with the logistic function called as a function."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(20, 20) for _ in range(8))
        self.head = nn.Linear(20, 3)

    def forward(self, x):
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        return self.head(x)


class Convolutional(nn.Module):
    """Convolution, batch normalisation, in-place ReLU, pooling, dropout, a transposed convolution."""

    def __init__(self, dropout: float = 0.25):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(4 * 8 * 8, 3)

    def forward(self, x):
        h = F.max_pool2d(self.relu(self.norm(self.conv(x))), 2)
        h = self.drop(F.elu(self.up(h)))
        return self.head(h.flatten(1))


class Residual(nn.Module):
    """Blocks x + branch(x); the branch's last weights are zero when `gated`."""

    def __init__(self, blocks: int = 6, width: int = 20, gated: bool = False):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, width)) for _ in range(blocks)
        )
        self.head = nn.Linear(width, 3)
        self.gated = gated

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def residual(gated: bool = False) -> Residual:
    """A residual network with weights of its own generator."""
    model = refill(quiet(lambda: Residual(gated=gated)))
    if gated:
        for block in model.blocks:
            nn.init.zeros_(block[2].weight)
    return model


class Fails(nn.Module):
    """Runs two layers, changes its buffer and its own attribute, draws random numbers, and raises half way."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(20, 16), nn.BatchNorm1d(16), nn.Dropout(0.5)

    def forward(self, x):
        h = self.drop(self.norm(self.first(x)))
        self.last_hidden = h
        raise RuntimeError("out of paper")
