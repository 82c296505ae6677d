"""What it costs to draw 100 million normal weights: ratio to torch.nn.init.normal_, medians, both in turn in one run."""

from __future__ import annotations

from statistics import median

import torch
from torch import nn

from benchmarks.tools import environment, seconds, table, write
from gainstage.nn import initializer
from gainstage.theory import Fans

WEIGHTS, ROUNDS = 100_000_000, 7


def main() -> None:
    """Write results/fill.json and results/fill.md."""
    torch.set_num_threads(2)
    weight = torch.empty(10_000, WEIGHTS // 10_000)
    fans = Fans(weight.shape[1], weight.shape[0])
    presets = {name: initializer(name) for name in ("he_normal", "glorot_uniform")}
    peers = {
        "he_normal": lambda: nn.init.normal_(weight, 0, 0.01),
        "glorot_uniform": lambda: nn.init.uniform_(weight, -0.01, 0.01),
    }
    rows = {}
    for name, preset in presets.items():
        rounds = [(seconds(peers[name]), seconds(lambda p=preset: p(weight, fans))) for _ in range(ROUNDS + 1)][1:]
        rows[name] = {"torch_s": median(a for a, _ in rounds), "ratio": median(b / a for a, b in rounds)}
    here = environment(2)
    text = [
        "# What drawing weights costs",
        "",
        f"`make bench`, torch {here['torch']}, 2 threads; medians of {ROUNDS} rounds, all in turn in one run.",
        "",
        *table(
            ["initialiser", "torch.nn.init, 100 million weights", "gainstage, ratio"],
            ([name, f"{row['torch_s']:.2f} s", f"{row['ratio']:.2f}"] for name, row in rows.items()),
        ),
    ]
    write("fill", "\n".join(text) + "\n", {"environment": here, "initialisers": rows})


if __name__ == "__main__":
    main()
