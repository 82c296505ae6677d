"""A tensor of a random network in numbers: what the theory of propagation hands from operation to operation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from gainstage.theory.checks import power, whole
from gainstage.theory.composition import IDENTITY, Composite

Origin: TypeAlias = tuple[int, ...]
FAR = -1  # the last column of gaps: any two positions


@dataclass(frozen=True, eq=False)
class Field:
    """Moments of a tensor's values over its units and over the draw of the weights.

    level: mean square. gaps: half the mean squared difference between two values of one unit, float64 of shape
    (2, columns): gaps[0] within one sample, gaps[1] in two samples; columns are distances between their positions
    (pixels, tokens): 0, 1, 2, 4, ... and, last, any two positions. Kept as differences, so that nothing cancels when all
    samples are nearly alike. NaN stands for "no prediction".
    mean: what all units have in common. variance: of ln(signal), from the finite width of the layers so far, an upper
    bound; inherited: the part of it from the layers in front of the last one, which has `units` units.
    gaussian: the units' values are Gaussian. origins: the layers whose weights it was drawn from: fields without a common
    origin are uncorrelated but for their means. pre and function: the Gaussian field of which it is a pointwise function.
    node: number of the operation that made it.
    """

    level: float
    gaps: NDArray[np.float64]
    mean: float = 0.0
    variance: float = 0.0
    inherited: float = 0.0
    units: float = math.inf
    gaussian: bool = False
    origins: frozenset[Origin] = frozenset()
    pre: Field | None = None
    function: Composite = IDENTITY
    node: int = -1

    @property
    def signal(self) -> float:
        """Power of what differs between samples."""
        return float(self.gaps[1, 0])

    @property
    def offset(self) -> float:
        """Power of what all samples share."""
        return max(self.level - self.signal, 0.0) if self.known else math.nan

    @property
    def similarity(self) -> float:
        """Mean cosine between two samples."""
        return 1 - self.signal / self.level if self.level > 0 else math.nan

    @property
    def known(self) -> bool:
        """False where there is no prediction."""
        return math.isfinite(self.level + self.signal)

    @property
    def source(self) -> tuple[Field, Composite] | None:
        """The Gaussian field that this is a function of, and the function."""
        if self.pre is not None:
            return self.pre, self.function
        return (self, IDENTITY) if self.gaussian else None

    @property
    def flat(self) -> Field:
        """The same without positions: what was at several positions now counts as different units."""
        if not self.gaps[0].any() and not np.isnan(self.gaps).any() and (self.gaps[1] == self.gaps[1, 0]).all():
            return self
        gaps = np.zeros_like(self.gaps)
        gaps[1] = self.gaps[1, 0]
        return replace(self, gaps=gaps)

    def measured(self, level: float, signal: float, node: int, far: Sequence[float] = ()) -> Field:
        """The same brought to a level and a signal that were measured, as an origin of its own certainty. far: measured gaps
        of any two positions, in one sample and in two, where they are known."""
        scale = signal / self.signal if self.signal > 0 else math.nan
        gaps = self.gaps * scale
        gaps[:, FAR] = far or gaps[:, FAR]
        gaps[0, 0], gaps[1, 0] = 0.0, signal
        mean = self.mean * math.sqrt(level / self.level) if self.level > 0 else self.mean
        fresh = {"variance": 0.0, "inherited": 0.0, "pre": None, "function": IDENTITY, "node": node}
        return replace(self, level=level, gaps=gaps, mean=mean, gaussian=self.straight, **fresh)

    @property
    def straight(self) -> bool:
        """Gaussian, itself or as an affine function of a Gaussian field."""
        return self.gaussian or (self.pre is not None and self.function.affine is not None)


def field(signal: float, offset: float = 0.0, columns: int = 2, **settings) -> Field:
    """A field without positions: the given powers of signal and offset; NaN for "no prediction". settings: of Field. Raises
    BadInput for powers that are negative or no numbers, and for fewer than two columns."""
    signal, offset = power(signal, "the power of a signal"), power(offset, "the power of an offset")
    columns = whole(columns, "the number of columns of a field", 2)
    gaps = np.zeros((2, columns))
    gaps[1] = signal
    return Field(signal + offset, gaps, **settings)


def unknown(inputs: Iterable[Field], columns: int) -> Field:
    """No prediction; made of everything that its inputs are made of, and no more certain."""
    given = tuple(inputs)
    origins = frozenset[Origin]().union(*(f.origins for f in given))
    units = min((f.units for f in given), default=math.inf)
    return Field(math.nan, np.full((2, columns), math.nan), math.nan, units=units, origins=origins)


def independent(fields: Sequence[Field]) -> bool:
    """True when no two of them have an origin, or a part of one, in common."""
    for i, one in enumerate(fields):
        for other in fields[i + 1 :]:
            if _part_of(one.origins, other.origins) or _part_of(other.origins, one.origins):
                return False
    return True


def _part_of(parts: frozenset[Origin], wholes: frozenset[Origin]) -> bool:
    return any(part[:length] in wholes for part in parts for length in range(1, len(part) + 1))


def shared_source(fields: Sequence[Field]) -> Field | None:
    """The one Gaussian field that all of them are functions of, if there is one."""
    sources = [f.source for f in fields]
    first = sources[0] if sources else None
    if first is None or any(source is None or source[0] is not first[0] for source in sources):
        return None
    return first[0]
