"""Whether a network has learned anything yet: independent draws look different from weights that were trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gainstage.initialization import weight_of, whole
from gainstage.signal import Graph, Stage

SIGMAS = 5.0
LEAST = 4  # a matrix with fewer rows or columns cannot be judged


def is_untrained(model: nn.Module, graph: Graph) -> bool:
    """True when every weight and bias of the graph's layers looks like a fresh draw.

    In doubt the answer is False: new weights must never replace what was learned. Sharded weights cannot be judged.
    """
    if any(hasattr(parameter, "to_local") for parameter in model.parameters()):
        return False
    stages = [(stage, weight_of(model, stage)) for stage in graph.stages]
    return all(map(_norm_looks_new, model.modules())) and all(
        looks_drawn(weight) and _bias_looks_drawn(model, stage, weight)
        for stage, weight in stages
        if weight is not None
    )


def looks_drawn(weight: Tensor) -> bool:
    """True when a weight matrix looks like independent draws: equally strong rows and columns, and no direction that
    stands out. All-equal weights and matrices of fewer than four rows or columns count as drawn."""
    matrix = whole(weight).flatten(1).double()
    matrix = matrix - matrix.mean()
    if float(matrix.abs().max()) == 0 or min(matrix.shape) < LEAST:
        return True
    return _even(matrix) and _edge_kept(matrix)


def _even(matrix: Tensor) -> bool:
    """Rows and columns equally strong within sampling error.

    For independent draws of variance v and kurtosis k the mean square of m of them has variance (k - 1) v^2 / m;
    orthogonal matrices spread even less.
    """
    power = matrix.square()
    mean = float(power.mean())
    excess = float(power.square().mean()) / mean**2 - 1
    for dim in (0, 1):
        summed, groups = matrix.shape[dim], matrix.shape[1 - dim]
        expected = excess * mean**2 / summed
        if float(power.mean(dim).var()) > expected * (1 + SIGMAS * math.sqrt(2 / (groups - 1))):
            return False
    return True


def _edge_kept(matrix: Tensor) -> bool:
    """No singular value beyond the edge of independent draws, std * (sqrt(rows) + sqrt(columns)).

    What a network learns is of low rank and stands out there. The largest value scatters around the edge by a relative
    min(rows, columns)^(-2/3) (Marchenko & Pastur 1967; Tracy & Widom 1994).
    """
    rows, columns = matrix.shape
    power = float(matrix.square().mean())
    edge = math.sqrt(power) * (math.sqrt(rows) + math.sqrt(columns))
    heavy = math.sqrt(max(float(matrix.pow(4).mean()) / power**2 / 3, 1.0))  # 1 for normal draws, more for sparse ones
    return _largest_singular_value(matrix) <= edge * (1 + 1.2 * heavy * min(rows, columns) ** (-2 / 3))


def _largest_singular_value(matrix: Tensor, rounds: int = 30) -> float:
    """By power iteration, from below: enough to see what stands out, and cheap for large matrices."""
    vector = torch.ones(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    vector = vector + torch.arange(len(vector), device=matrix.device).remainder(7)
    for _ in range(rounds):
        vector = matrix.T @ (matrix @ (vector / vector.norm()))
    return float(vector.norm().sqrt())


def _norm_looks_new(module: nn.Module) -> bool:
    """A normalisation whose own scale and shift are still alike for all units, and which has counted no batch."""
    if not isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)):
        return True
    counted = getattr(module, "num_batches_tracked", None)
    own = [whole(parameter).flatten() for parameter in (module.weight, module.bias) if parameter is not None]
    return (counted is None or int(counted) == 0) and all(map(_all_equal, own))


def _bias_looks_drawn(model: nn.Module, stage: Stage, weight: Tensor) -> bool:
    """All biases alike (as every initialiser but torch's default leaves them), or uniform on +-1/sqrt(fan_in), the
    default of torch's layers."""
    parameters = [model.get_parameter(name) for name in stage.layer.parameters]
    vectors = [whole(parameter) for parameter in parameters if parameter.ndim == 1]
    bound = 1 / math.sqrt(weight[0].numel())
    return all(
        _all_equal(vector) or (float(vector.abs().max()) <= bound * 1.0001 and _wide(vector, bound))
        for vector in vectors
    )


def _all_equal(vector: Tensor) -> bool:
    return bool((vector == vector[0]).all())


def _wide(vector: Tensor, bound: float) -> bool:
    """As wide as a uniform distribution on +-bound: the mean square is bound^2 / 3, with standard error
    bound^2 * sqrt(4/45 / n)."""
    error = bound**2 * math.sqrt(4 / 45 / len(vector))
    return abs(float(vector.square().mean()) - bound**2 / 3) <= SIGMAS * error
