"""Very deep plain networks on Fashion-MNIST: no skip connections, no normalisation, every setting from the library.

`python -m benchmarks.depth` (100 layers, 5 epochs, three seeds) or `--layers 1000 --epochs 3 --seeds 1`. The data are the
four IDX files of Debian's package dataset-fashion-mnist; the first 5,000 training images are kept for validation.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import nn

import gainstage as gs
from benchmarks.tools import RESULTS, environment
from gainstage.training import recommend_training

FOLDER = Path("/usr/share/datasets/fashion-mnist")
PUBLISHED = {"SELU": 0.8218, "ReLU": 0.7380}  # the chapter, 100 layers, 5 epochs
UNITS = 100


def read(name: str) -> np.ndarray:
    """An IDX file, compressed or not."""
    path = next(p for p in (FOLDER / name, FOLDER / f"{name}.gz") if p.exists())
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    dimensions = raw[3]
    shape = np.frombuffer(raw, ">i4", dimensions, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def load() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Training and validation parts, standardised by the training part's mean and standard deviation."""
    x = torch.from_numpy(read("train-images-idx3-ubyte").astype(np.float32)).flatten(1)
    y = torch.from_numpy(read("train-labels-idx1-ubyte").astype(np.int64))
    std, mean = torch.std_mean(x[5000:])
    x = (x - mean) / std
    return (x[5000:], y[5000:]), (x[:5000], y[:5000])


def train(layers: int, epochs: int, seed: int) -> dict[str, float]:
    """One network: tanh, isometric weights, the recommended training."""
    train_data, valid = load()
    model = gs.nn.dense_network(784, [UNITS] * layers, 10, "tanh")
    gs.initialize(model, train_data[0][:256], scheme="isometric", generator=torch.Generator().manual_seed(seed))
    plan = recommend_training(layers)
    began = perf_counter()
    settings = plan.settings(len(train_data[0]), epochs)
    run = gs.fit(model, nn.CrossEntropyLoss(), train_data, valid, epochs=epochs, seed=seed, **settings)
    last = run.history[-1]
    return {"accuracy": last["valid_accuracy"], "seconds_an_epoch": (perf_counter() - began) / epochs, "seed": seed}


def main() -> None:
    """Add to results/depth.json."""
    options = argparse.ArgumentParser()
    options.add_argument("--layers", type=int, default=100)
    options.add_argument("--epochs", type=int, default=5)
    options.add_argument("--seeds", type=int, default=3)
    given = options.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rows = [train(given.layers, given.epochs, seed) for seed in range(given.seeds)]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "depth.json"
    results = json.loads(path.read_text()) if path.exists() else {"published_100_layers_5_epochs": PUBLISHED}
    results[f"{given.layers} layers, {given.epochs} epochs"] = rows
    results["environment"] = environment(1)
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
