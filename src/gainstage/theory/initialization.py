"""The chapter's table: which variance of the weights fits which activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gainstage.theory.activations import Activation
from gainstage.theory.fans import Fans
from gainstage.theory.moments import finite_moments, moments

Mode = Literal["fan_in", "fan_out", "fan_avg"]


@dataclass(frozen=True)
class Scheme:
    """Weight variance = scale / fan, with the fan chosen by `mode`."""

    name: str
    scale: float
    mode: Mode

    def variance(self, fans: Fans) -> float:
        """Variance of each weight of a layer with these fans."""
        return self.scale / {"fan_in": fans.fan_in, "fan_out": fans.fan_out, "fan_avg": fans.average}[self.mode]


GLOROT = Scheme("Glorot", 1.0, "fan_avg")  # Glorot & Bengio 2010
HE = Scheme("He", 2.0, "fan_in")  # He 2015
LECUN = Scheme("LeCun", 1.0, "fan_in")  # LeCun 1998; Klambauer 2017 for SELU


def scheme_for(activation: Activation | None) -> Scheme:
    """The chapter's row for what follows the layer: Glorot for none, tanh, logistic and softmax; He for ReLU and its
    kin (2 / (1 + a^2) for a leaky ReLU of slope a, He 2015 eq. 15); LeCun for SELU. A function that the table does not have
    gets the variance that keeps the level, 1 / E f^2, by quadrature. Raises BadInput for one that is not finite."""
    if activation is None or activation.family in ("linear", "logistic"):
        return GLOROT
    if activation.family == "selu":
        return LECUN
    if activation.family == "other":
        return Scheme("exact", finite_moments(activation).level_gain ** 2, "fan_in")
    if activation.name.startswith(("leaky_relu", "rrelu", "prelu")):
        return Scheme("He", moments(activation).level_gain ** 2, "fan_in")
    return HE
