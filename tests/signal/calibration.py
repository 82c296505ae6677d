"""Measured against predicted: the standard errors between them, and what is wrong with a sample of these."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch.nn import functional as F

from gainstage.signal import Ledger, Row, measure, predict, prediction
from tests.tools import normal

FUNCTIONS = {
    "relu": torch.relu,
    "leaky relu": lambda z: F.leaky_relu(z, 0.2),
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "tanh": torch.tanh,
    "logistic": torch.sigmoid,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "hardswish": F.hardswish,
    "x sin x": lambda z: z * torch.sin(z),
    "sin": torch.sin,
    "x^2 - 1": lambda z: z * z - 1,
    "|x|": torch.abs,
    "x + sin^2 3x": lambda z: z + torch.sin(3 * z) ** 2 / 3,
    "relu by where": lambda z: torch.where(z > 0, z, 0.1 * z),
}


def images(seed, side=16):
    return normal(64, 3, side, side, seed=seed)


def heavier(factor):
    """The theory of layers whose weights are larger by a factor (of the power) than they are."""
    layer = prediction._layer

    def mutant(op, readings, columns):
        node = layer(op, readings, columns)
        return replace(node, weight_power=factor * node.weight_power)

    return mutant


def usable(row: Row) -> bool:
    """False where single precision leaves nothing but noise."""
    return row.signal is not None and row.signal > 1e-5 and not row.is_rounding


def ledger_of(model, x) -> Ledger:
    """With ten classes in turn as targets."""
    return measure(model, F.cross_entropy, (x, torch.arange(len(x)) % 10))[1]


def forward(ledger: Ledger) -> list[float]:
    """Standard errors of the stages' gains above theory."""
    return [row.gain_sigmas for row in ledger.rows if usable(row) and row.gain_sigmas is not None]


def backward(ledger: Ledger) -> list[float]:
    """Standard errors of their backward gains above theory."""
    return [row.backward_gain_sigmas for row in ledger.rows if usable(row) and row.backward_gain_sigmas is not None]


def complaints(sigmas: list[float], shift: float = 0.0, spread: tuple[float, float] = (0.0, 1.3)) -> list[str]:
    """What speaks against numbers of mean 0 within three standard errors and `shift`, and of a standard deviation within
    `spread`; at most 1 % (or one) may lie beyond 3, none beyond 4.5."""
    z = torch.tensor(sigmas, dtype=torch.float64)
    assert len(z) > 10
    beyond, mean, deviation = int((z.abs() > 3).sum()), float(z.mean()), float(z.std())
    found = [f"{beyond} of {len(z)} beyond 3"] if beyond > max(0.01 * len(z), 1) else []
    found += [f"one at {float(z.abs().max()):.1f}"] if z.abs().max() > 4.5 else []
    found += [f"mean {mean:+.2f}"] if not abs(mean) <= 3 * deviation / math.sqrt(len(z)) + shift else []
    found += [f"standard deviation {deviation:.2f}"] if not spread[0] <= deviation <= spread[1] else []
    return found


def forecast(model, x) -> dict[str, list[float]]:
    """Standard errors of logarithms above predict() from the input alone: of signals, of gradients relative to the output's,
    and of what is left of a similarity to 1, which is a power (where single precision can tell)."""
    _, prediction = predict(model, x)
    ledger = ledger_of(model, x)
    found: dict[str, list[float]] = {"signal": [], "gradient": [], "similarity": []}
    for row, expected in zip(ledger.rows, prediction.rows, strict=True):
        if expected.signal and expected.signal_error and usable(row):
            found["signal"].append(math.log(row.signal / expected.signal) / expected.signal_error)
            if max(row.similarity, expected.similarity) < 1 - 1e-4:
                left = math.log((1 - row.similarity) / (1 - expected.similarity))
                found["similarity"].append(left / (2 * expected.signal_error))
        if expected.gradient and expected.gradient_error and row.gradient:
            relative = row.gradient / ledger.rows[-1].gradient
            found["gradient"].append(math.log(relative / expected.gradient) / expected.gradient_error)
    return found
