"""Normalisation layers made to fit a given layer."""

from __future__ import annotations

from torch import nn

from gainstage.errors import BadInput


def batch_norm_after(layer: nn.Module) -> nn.Module:
    """Batch normalisation of the shape that `layer` puts out, on its device and in its dtype.

    Raises BadInput for layers without channels that batch normalisation could work on.
    """
    if isinstance(layer, nn.Linear):
        kind, units = nn.BatchNorm1d, layer.out_features
    elif isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d)):
        kind, units = nn.BatchNorm1d, layer.out_channels
    elif isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        kind, units = nn.BatchNorm2d, layer.out_channels
    elif isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d)):
        kind, units = nn.BatchNorm3d, layer.out_channels
    else:
        raise BadInput(f"batch normalisation does not fit behind a {type(layer).__name__}")
    return kind(units, device=layer.weight.device, dtype=layer.weight.dtype)
