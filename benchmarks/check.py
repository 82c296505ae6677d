"""What a check costs, in units of one plain training step of the same network: medians, both timed in turn in one run."""

from __future__ import annotations

from itertools import pairwise
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gainstage as gs
from benchmarks.tools import environment, seconds, write

ROUNDS = 15
BATCH = 256  # what a check measures


class Convolutional(nn.Module):
    """Six convolutions with batch normalisation on 32x32 images."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [3, 16, 16, 32, 32, 64, 64]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, stride=1 + (a != b)), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(sizes)
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((2, 3)))


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """Name, network and inputs."""
    return {
        "MLP 20x256": (gs.nn.dense_network(64, [256] * 20, 10, "relu"), torch.randn(BATCH, 64)),
        "MLP 100x100": (gs.nn.dense_network(64, [100] * 100, 10, "selu"), torch.randn(BATCH, 64)),
        "CNN of six layers": (Convolutional(), torch.randn(BATCH, 3, 32, 32)),
    }


def measure(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Medians over rounds in which a plain step and a check take turns."""
    y = torch.arange(len(x)) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    def check() -> None:
        gs.check(model, F.cross_entropy, (x, y))

    rounds = [(seconds(step), seconds(check)) for _ in range(ROUNDS + 3)][3:]
    plain = median(a for a, _ in rounds)
    return {"step_ms": 1e3 * plain, "check_in_steps": median(b / a for a, b in rounds)}


def main() -> None:
    """Write results/check.json and results/check.md."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    found = {name: measure(model, x) for name, (model, x) in networks().items()}
    lines = ["| network | one training step | one check, in training steps |", "| --- | --- | --- |"]
    lines += [f"| {name} | {row['step_ms']:.1f} ms | {row['check_in_steps']:.1f} |" for name, row in found.items()]
    write(
        "check",
        f"What a check of {BATCH} samples costs",
        lines,
        {"environment": environment(2), "networks": found},
        ROUNDS,
    )


if __name__ == "__main__":
    main()
