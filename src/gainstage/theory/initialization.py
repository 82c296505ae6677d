"""The chapter's table: which variance of the weights fits which activation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from gainstage.errors import BadInput
from gainstage.theory.activations import ActivationLike, lookup
from gainstage.theory.checks import check_known, positive, shown
from gainstage.theory.fans import Fans
from gainstage.theory.moments import finite_moments, moments

Mode = Literal["fan_in", "fan_out", "fan_avg"]
MODES: tuple[str, ...] = get_args(Mode)


@dataclass(frozen=True)
class Scheme:
    """Weight variance = scale / fan, with the fan chosen by `mode`.

    Raises BadInput for a scale that is not positive and finite and for an unknown mode.
    """

    name: str
    scale: float
    mode: Mode

    def __post_init__(self) -> None:
        positive(self.scale, "an initialiser's scale")
        check_known(self.mode, MODES, "mode")

    def variance(self, fans: Fans) -> float:
        """Variance of each weight of a layer with these fans; BadInput for fans that no weight has."""
        if not isinstance(fans, Fans):
            raise BadInput(f"the fans of a weight are a Fans, such as linear_fans((out, in)), got {shown(fans)}")
        if not all(0 < fan < math.inf for fan in fans):
            raise BadInput(
                f"a weight needs fans of more than zero, got {shown(fans)}: a layer without inputs or outputs has none, "
                "nor has a lazy one before its first batch"
            )
        return self.scale / {"fan_in": fans.fan_in, "fan_out": fans.fan_out, "fan_avg": fans.average}[self.mode]


GLOROT = Scheme("Glorot", 1.0, "fan_avg")  # Glorot & Bengio 2010
HE = Scheme("He", 2.0, "fan_in")  # He 2015
LECUN = Scheme("LeCun", 1.0, "fan_in")  # LeCun 1998; Klambauer 2017 for SELU


def scheme_for(activation: ActivationLike | None) -> Scheme:
    """The chapter's row for what follows the layer: Glorot for none, tanh, logistic and softmax; He for ReLU and its
    kin (2 / (1 + a^2) for a leaky ReLU of slope a, He 2015 eq. 15); LeCun for SELU. A function that the table does not have
    gets the variance that keeps the level, 1 / E f^2, by quadrature. activation: a name, a function or an Activation; None
    for none. Raises BadInput for what is none of these and for a function that is not finite."""
    if activation is None:
        return GLOROT
    activation = lookup(activation)
    if activation.family in ("linear", "logistic"):
        return GLOROT
    if activation.family == "selu":
        return LECUN
    if activation.family == "other":
        return Scheme("exact", finite_moments(activation).level_gain ** 2, "fan_in")
    if activation.name.startswith(("leaky_relu", "rrelu", "prelu")):
        return Scheme("He", moments(activation).level_gain ** 2, "fan_in")
    return HE
