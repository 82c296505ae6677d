"""Cases of the rules that look at signal, gradient and weights."""

from __future__ import annotations

import torch

from tests.networks import deep, normal_weights
from tests.rules.cases.case import LOSS, Case
from tests.tools import blobs


def program(model, data=None):
    return model, LOSS, data or blobs()


def with_bias(value: float):
    model = deep(3, "relu")
    with torch.no_grad():
        model.hidden2.bias.fill_(value)
    return model


CASES: dict[str, Case] = {
    # every pre-activation far below zero; the twin has 92 % zeros but no dead unit on 256 samples
    "S101": Case(lambda: program(with_bias(-30.0)), lambda: program(with_bias(-1.0)), "hidden2"),
    "S102": Case(lambda: program(deep(4, "tanh", normal_weights(1.0))), lambda: program(deep(4, "tanh")), "hidden3"),
    # torch's default variance 1/(3 n) in front of a ReLU; He weights lose signal too, but not much
    "S103": Case(
        lambda: program(deep(10, "relu", normal_weights((3 * 64) ** -0.5))),
        lambda: program(deep(20, "relu")),
        "hidden9",
    ),
    "G101": Case(lambda: program(deep(8, "logistic")), lambda: program(deep(2, "logistic")), "hidden2"),
    "G102": Case(lambda: program(deep(8, "relu", normal_weights(0.5))), lambda: program(deep(20, "selu")), "hidden2"),
    "I101": Case(
        lambda: program(deep(6, "logistic", normal_weights(1.0))), lambda: program(deep(6, "tanh")), "hidden3"
    ),
}
