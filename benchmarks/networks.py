"""The networks that are measured, each with a batch and its loss; all weights and data from fixed seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gainstage.nn import dense_network

CLASSES = 10
VOCABULARY = 256


@dataclass(frozen=True)
class Case:
    """A network to train. build: draws its weights. batch: inputs (samples, ...) and targets. goal: of watching every step,
    in plain steps. quick: it belongs to the smoke test (the others take Cockpit seconds a step)."""

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, Tensor]]
    goal: float = 1.10
    quick: bool = True


class Loss(nn.Module):
    """Cross-entropy of logits (samples, classes) or (samples, tokens, classes), the mean over all."""

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def cases() -> list[Case]:
    """All networks, from the smallest tensors to the largest."""
    wide = partial(dense_network, 64, [256] * 20, CLASSES, "relu")
    return [
        Case("MLP 20x256, batch 128", wide, partial(vectors, 128), quick=False),
        Case("MLP 100x100, SELU, batch 32", partial(deep, 100), partial(vectors, 32), goal=1.25),
        Case("CNN of six layers, batch 64", Convolutional, partial(images, 64)),
        Case("ResNet-18, 32x32 images, batch 32", ResNet18, partial(images, 32), quick=False),
        Case("GPT, 4 layers of 128, 64 tokens, batch 16", Gpt, partial(texts, 16, 64)),
    ]


@dataclass(frozen=True)
class Training:
    """A network in training, always on the same batch, with a learning rate so small that nothing changes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: nn.Module
    x: Tensor
    y: Tensor

    def step(self) -> None:
        """One plain training step."""
        self.optimizer.zero_grad()
        self.loss(self.model(self.x), self.y).backward()
        self.optimizer.step()


def training(case: Case, device: str) -> Training:
    """The same weights and data at each call; a first step is done."""
    torch.manual_seed(0)
    model, (x, y) = case.build().to(device), case.batch()
    made = Training(model, torch.optim.SGD(model.parameters(), lr=1e-6), Loss(), x.to(device), y.to(device))
    made.step()
    return made


def deep(layers: int) -> nn.Module:
    """A plain network of 100 SELU units a layer."""
    return dense_network(64, [100] * layers, CLASSES, "selu")


def vectors(samples: int) -> tuple[Tensor, Tensor]:
    """(samples, 64) and their classes."""
    return torch.randn(samples, 64), torch.arange(samples) % CLASSES


def images(samples: int) -> tuple[Tensor, Tensor]:
    """(samples, 3, 32, 32) and their classes."""
    return torch.randn(samples, 3, 32, 32), torch.arange(samples) % CLASSES


def texts(samples: int, tokens: int) -> tuple[Tensor, Tensor]:
    """(samples, tokens), and at each place the next token."""
    text = torch.randint(VOCABULARY, (samples, tokens + 1))
    return text[:, :-1], text[:, 1:]


class Convolutional(nn.Module):
    """Six convolutions with batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [3, 16, 16, 32, 32, 64, 64]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, stride=1 + (a != b)), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(sizes)
        )
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((2, 3)))


def convolution(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
    """A convolution that keeps the places, and batch normalisation."""
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a skip connection (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = convolution(inputs, outputs, 3, stride)
        self.second = convolution(outputs, outputs, 3, 1)
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else convolution(inputs, outputs, 1, stride)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(self.second(self.relu1(self.first(x))) + self.skip(x))


class ResNet18(nn.Module):
    """The network of He et al. 2016, table 1, column 18-layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))
        sizes = [64, 64, 128, 256, 512]
        self.blocks = nn.Sequential(
            *(block for a, b in pairwise(sizes) for block in (BasicBlock(a, b, 1 + (a != b)), BasicBlock(b, b, 1)))
        )
        self.head = nn.Linear(512, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Attention(nn.Module):
    """Causal self-attention of several heads."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query_key_value, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.query_key_value(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        return self.mix(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Normalisation in front of attention, and in front of two linear layers (Radford et al. 2019)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Gpt(nn.Module):
    """A small GPT-2: embeddings of tokens and places, blocks, a head of its own."""

    def __init__(self, layers: int = 4, width: int = 128, heads: int = 4, tokens: int = 64):
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(tokens, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        return self.head(self.norm(self.blocks(self.tokens(x) + self.places(places))))
