"""Batch normalisation made to fit a layer, and its momentum in both conventions."""

from __future__ import annotations

from numbers import Real
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gainstage.errors import BadInput

Convention = Literal["torch", "keras"]
DEFAULT_MOMENTUM = {"torch": 0.1, "keras": 0.9}  # PyTorch's, in each convention
KINDS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # by the number of dimensions behind the units


def keras_momentum(momentum: float) -> float:
    """PyTorch's momentum for Keras's: 1 - momentum (Keras's default 0.99 is 0.01 in PyTorch).

    PyTorch: the weight of the new batch, average = (1 - m) average + m batch. Keras, and the chapter: the weight of the
    old average, average = m average + (1 - m) batch. Raises BadInput outside (0, 1).
    """
    return _torch_momentum(momentum, "keras")


def _torch_momentum(momentum: float | None, convention: str) -> float:
    if convention not in ("torch", "keras"):
        raise BadInput(f"no momentum convention is called {convention!r}; known are: torch, keras")
    if not isinstance(momentum, Real) or not 0 < momentum < 1:
        raise BadInput(
            f"a batch normalisation's momentum must lie between 0 and 1, got {momentum!r}; in PyTorch it is the weight of "
            "the new batch (default 0.1), in Keras that of the old average (default 0.99)"
        )
    return float(momentum) if convention == "torch" else 1.0 - float(momentum)


def batch_norm_after(layer: nn.Module, momentum: float | None = None, convention: Convention = "torch") -> nn.Module:
    """Batch normalisation of the shape that `layer` puts out, on its device and in its dtype.

    convention: what `momentum` is, "torch": the weight of the new batch in the moving averages; "keras": the weight of
    the old average. momentum None: PyTorch's default, 0.1 ("torch"), which is 0.9 ("keras").
    Raises BadInput for layers without channels that batch normalisation could work on, for a momentum outside (0, 1) and
    for an unknown convention.
    """
    share = _torch_momentum(DEFAULT_MOMENTUM.get(convention) if momentum is None else momentum, convention)
    if isinstance(layer, nn.Linear):
        return batch_norm_of(layer.out_features, 0, layer.weight, share)
    if isinstance(layer, _ConvNd):
        return batch_norm_of(layer.out_channels, len(layer.kernel_size), layer.weight, share)
    raise BadInput(f"batch normalisation does not fit behind a {type(layer).__name__}")


def batch_norm_of(units: int, places: int, like: Tensor, momentum: float = DEFAULT_MOMENTUM["torch"]) -> nn.Module:
    """Batch normalisation of (batch, units) and `places` further dimensions, with the device and dtype of `like`."""
    return KINDS[places](units, momentum=momentum, device=like.device, dtype=like.dtype)
