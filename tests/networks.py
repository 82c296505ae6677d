"""Small networks for the tests, each with one property that a test needs; all drawn from generators of their own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gainstage.nn import dense_network
from gainstage.theory import Activation, moments
from tests.tools import generator, quiet, refill


def deep(
    depth: int, activation: str, initializer="auto", width: int = 64, inputs: int = 20, outputs: int = 3, seed: int = 0
):
    """A plain network of `depth` hidden layers."""
    return quiet(
        lambda: dense_network(inputs, [width] * depth, outputs, activation, initializer, generator=generator(seed))
    )


def drawn(build, seed: int = 0, gain: float = 1.0, bias: float = 0.1):
    """A network whose weights are N(0, gain^2 / fan_in) and whose biases are N(0, bias^2), as theory has it; its
    normalisations have scale 1 and shift 0, other vectors keep their values."""
    model, draw = quiet(build), generator(seed + 10_000)
    plain = [m for m in model.modules() if hasattr(m, "eps")]
    kept = {id(p): p.detach().clone() for p in model.parameters() if p.ndim < 2}
    refill(model, None, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(gain)
            elif name.endswith("bias"):
                parameter.normal_(0.0, bias, generator=draw)
            else:
                parameter.copy_(kept[id(parameter)])
        for module in plain:
            nn.init.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
    return model


class Function(nn.Module):
    """Any function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def keeping(function: Callable[[Tensor], Tensor]) -> float:
    """The weights' factor on 1/sqrt(fan_in) that keeps the level of pre-activations of variance 1."""
    return moments(Activation("function", function, "other"), 1.0).level_gain


def wide(function: Callable[[Tensor], Tensor], seed: int = 0, depth: int = 20, width: int = 512):
    """A plain network of `depth` layers and a last one to ten outputs, with any function behind each."""

    def build():
        layers = [part for _ in range(depth) for part in (nn.Linear(width, width), Function(function))]
        return nn.Sequential(*layers, nn.Linear(width, 10))

    return drawn(build, seed, keeping(function))


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


class Block(nn.Module):
    """A residual block. kind: of "norm" (layer normalisation in front of the branch), "pre" (activation in front of it),
    "post" (activation behind the sum), "scale" (LayerScale of 0.3) and "gate" (times a number that starts at zero)."""

    def __init__(self, width: int, kind: str, activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width) if "norm" in kind else nn.Identity()
        self.gamma = nn.Parameter(torch.full((width,), 0.3)) if "scale" in kind else None
        self.gate = nn.Parameter(torch.zeros(())) if "gate" in kind else None
        self.kind, self.activation = kind, activation

    def forward(self, x):
        front = self.activation(self.norm(x)) if "pre" in self.kind else self.norm(x)
        branch = self.second(self.activation(self.first(front)))
        branch = branch if self.gamma is None else self.gamma * branch
        branch = branch if self.gate is None else self.gate * branch
        return self.activation(x + branch) if "post" in self.kind else x + branch


class ResidualDeep(nn.Module):
    """A stem, blocks of one kind, and a head."""

    def __init__(self, kind: str, activation=torch.relu, blocks: int = 8, width: int = 256):
        super().__init__()
        self.stem, self.head = nn.Linear(128, width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(Block(width, kind, activation) for _ in range(blocks))

    def forward(self, x):
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        return self.head(h)


class SharedBlocks(nn.Module):
    """The same residual branch six times."""

    def __init__(self, width: int = 256):
        super().__init__()
        self.stem, self.first, self.second = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        h = self.stem(x)
        for _ in range(6):
            h = h + self.second(torch.relu(self.first(h)))
        return self.head(h)


class Encoder(nn.Module):
    """A transformer's encoder for (batch, 16 tokens, 64 numbers): positions, layer normalisation, attention, dropout."""

    def __init__(self, width: int = 128, heads: int = 4, blocks: int = 2, dropout: float = 0.1, causal: bool = False):
        super().__init__()
        self.embed, self.positions = nn.Linear(64, width), nn.Parameter(torch.zeros(1, 16, width))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                    "norm2": nn.LayerNorm(width),
                    "up": nn.Linear(width, 4 * width),
                    "down": nn.Linear(4 * width, width),
                }
            )
            for _ in range(blocks)
        )
        self.drop, self.norm, self.head = nn.Dropout(dropout), nn.LayerNorm(width), nn.Linear(width, 10)
        self.heads, self.causal = heads, causal

    def forward(self, x):
        h = self.embed(x) + self.positions
        for block in self.blocks:
            parts = block["qkv"](block["norm1"](h)).chunk(3, -1)
            query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
            h = h + self.drop(block["out"](mixed.transpose(1, 2).flatten(2)))
            h = h + self.drop(block["down"](F.gelu(block["up"](block["norm2"](h)))))
        return self.head(self.norm(h).mean(1))


class Joined(nn.Module):
    """Each layer takes in what all layers in front of it put out, concatenated; layer normalisation and dropout."""

    def __init__(self, layers: int = 6, width: int = 128):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(128 + width * i, width) for i in range(layers))
        self.norm, self.drop = nn.LayerNorm(width), nn.Dropout(0.2)
        self.head = nn.Linear(128 + width * layers, 10)

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, self.drop(F.relu(self.norm(layer(x))))], 1)
        return self.head(x)


class SqueezeExcitation(nn.Module):
    """Every unit times a gate that is worked out from all of them."""

    def __init__(self, width: int = 64, squeezed: int = 16, outputs: int = 3):
        super().__init__()
        self.stem, self.head = nn.Linear(20, width), nn.Linear(width, outputs)
        self.down, self.up = nn.Linear(width, squeezed), nn.Linear(squeezed, width)

    def forward(self, x):
        h = torch.relu(self.stem(x))
        return self.head(h * torch.sigmoid(self.up(torch.relu(self.down(h)))))


class TwoInputs(nn.Module):
    """One layer for each of two inputs, and two more for their sum."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.left, self.right = nn.Linear(20, width), nn.Linear(12, width)
        self.hidden, self.head = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, left, right):
        return self.head(torch.relu(self.hidden(torch.relu(self.left(left) + self.right(right)))))


class Tokens(nn.Module):
    """Token numbers, 0 for padding: an embedding and the mean over what is not padding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(11, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        real = (x != 0).unsqueeze(-1)
        h = torch.relu(self.hidden(self.embedding(x) * real)) * real
        return self.head(h.sum(1) / real.sum(1).clamp(min=1))


def convolutions(act: Callable[[], nn.Module] = nn.ReLU) -> dict[str, Callable[[], nn.Module]]:
    """Builders of convolutional networks for images of 3 x 16 x 16, by what is special about them."""
    conv, flat = nn.Conv2d, nn.Flatten
    norm = nn.BatchNorm2d
    return {
        "padding": lambda: nn.Sequential(
            conv(3, 64, 3, padding=1), act(), conv(64, 64, 5, padding=2), act(), conv(64, 64, 3), act(), flat(),
            nn.Linear(64 * 196, 10),
        ),
        "stride": lambda: nn.Sequential(
            conv(3, 64, 3, padding=1), act(), conv(64, 128, 3, 2, 1), act(), conv(128, 128, 2, 2), act(), flat(),
            nn.Linear(128 * 16, 10),
        ),
        "batch norm": lambda: nn.Sequential(
            conv(3, 64, 3, padding=1), norm(64), act(), conv(64, 64, 3, padding=1), norm(64), act(),
            conv(64, 64, 3, 2, 1), norm(64), act(), flat(), nn.Linear(64 * 64, 10),
        ),
        "average pooling": lambda: nn.Sequential(
            conv(3, 64, 3, padding=1), act(), nn.AvgPool2d(2), conv(64, 64, 3, padding=1), act(), nn.AvgPool2d(2), flat(),
            nn.Linear(64 * 16, 10),
        ),
        "max pooling": lambda: nn.Sequential(
            conv(3, 64, 3, padding=1), act(), nn.MaxPool2d(2), conv(64, 64, 3, padding=1), act(), nn.MaxPool2d(2), flat(),
            nn.Linear(64 * 16, 10),
        ),
        "global pooling": lambda: nn.Sequential(
            *[part for i in range(4) for part in (conv(64 if i else 3, 64, 3, padding=1), act())],
            nn.AdaptiveAvgPool2d(1), flat(), nn.Linear(64, 10),
        ),
        "groups and dilation": lambda: nn.Sequential(
            conv(3, 64, 3, padding=1), act(), conv(64, 64, 3, padding=1, groups=4), act(), conv(64, 128, 1), act(),
            conv(128, 64, 3, padding=2, dilation=2), act(), flat(), nn.Linear(64 * 256, 10),
        ),
        "transposed": lambda: nn.Sequential(
            conv(3, 64, 3, 2, 1), act(), nn.ConvTranspose2d(64, 64, 2, 2), act(), nn.ConvTranspose2d(64, 64, 4, 2, 1), act(),
            flat(), nn.Linear(64 * 1024, 10),
        ),
    }  # fmt: skip


class Images(nn.Module):
    """Own forward: a plain, a grouped residual and a grouped transposed convolution, each with or without normalisation, its
    activations called as functions or as modules of their own, or one module for all."""

    def __init__(self, normalized: str = "", activations: str = "functions"):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branch1, self.branch2 = nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 4, 3, stride=2, groups=2)
        self.head = nn.Linear(4, 3)
        for i, units in enumerate((8, 8, 8, 4), start=1):
            setattr(self, f"before{i}", nn.BatchNorm2d(units) if normalized == "before" else nn.Identity())
            setattr(self, f"after{i}", nn.BatchNorm2d(units) if normalized == "after" else nn.Identity())
        shared = nn.ReLU() if activations == "shared" else None
        for i in range(1, 5):
            setattr(self, f"act{i}", F.relu if activations == "functions" else shared or nn.ReLU())

    def forward(self, x):
        h = self.after1(self.act1(self.before1(self.stem(x))))
        g = self.after2(self.act2(self.before2(self.branch1(h))))
        h = self.after3(self.act3(self.before3(self.branch2(g)) + h))
        h = self.after4(self.act4(self.before4(self.up(h))))
        return self.head(h.mean((2, 3)))


def settle(model: nn.Module, x, seed: int = 0) -> nn.Module:
    """A model whose normalisations have seen `x` and have scales and shifts of their own; in evaluation mode."""
    draw = generator(seed)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.affine:
                norm.weight.uniform_(0.5, 2.0, generator=draw)
                norm.bias.normal_(generator=draw)
        for _ in range(10):
            model.train()(x)
    return model.eval()
