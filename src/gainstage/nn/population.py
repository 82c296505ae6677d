"""Statistics of batch normalisations taken exactly, over a whole training set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gainstage.data import Source, as_source
from gainstage.data.sources import FromLoader, generators_kept
from gainstage.display import Displayed
from gainstage.errors import BadInput
from gainstage.nn.flow import check_model
from gainstage.program import run_model
from gainstage.randomness import preserved, seeded


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """One batch normalisation over a whole training set, beside what its moving averages were; tensors (units,), float64.

    values: how many numbers each unit's statistics were taken from. Variances divide by `values`, not by one less; the
    moving average is one of variances that divide by a batch's values less one.
    """

    layer: str
    values: int
    mean: Tensor
    variance: Tensor
    moving_mean: Tensor
    moving_variance: Tensor
    eps: float

    @property
    def std_db(self) -> Tensor:
        """By how many dB the moving standard deviation is above the population's, unit by unit: 20 log10 of the ratio of
        sqrt(variance + eps), by which the layer divides."""
        return 10 * torch.log10((self.moving_variance + self.eps) / (self.variance + self.eps))

    @property
    def mean_shift(self) -> Tensor:
        """The moving mean minus the population's, in units of the population's sqrt(variance + eps), unit by unit."""
        return (self.moving_mean - self.mean) / (self.variance + self.eps).sqrt()

    def to_dict(self) -> dict[str, Any]:
        """Over the units: mean and worst of std_db, root mean square and worst of mean_shift."""
        db, shift = self.std_db, self.mean_shift
        return {
            "layer": self.layer,
            "units": len(self.mean),
            "values": self.values,
            "std_db": float(db.mean()),
            "std_db_worst": float(db[db.abs().argmax()]),
            "mean_shift": float(shift.square().mean().sqrt()),
            "mean_shift_worst": float(shift[shift.abs().argmax()]),
        }


@dataclass(frozen=True, eq=False)
class PopulationStatistics(Displayed):
    """The statistics of every batch normalisation that ran, in order of execution; skipped: those that never ran."""

    rows: tuple[LayerStatistics, ...]
    skipped: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [row.to_dict() for row in self.rows], "skipped": list(self.skipped)}


def population_statistics(model: nn.Module, data: Any, batch_size: int = 256) -> PopulationStatistics:
    """Write exact means and variances over a training set into the running_mean and running_var of every batch
    normalisation, and return them beside the moving averages that stood there.

    Each layer's are those of the inputs it has in evaluation mode, with the layers below corrected already: what training
    mode would compute if the whole set were one batch, without dropout. Variances divide by n: the set is the population.
    data: inputs alone, a tensor or array of shape (samples, ...); (x, y); a Dataset; or a DataLoader, which keeps its own
    batch size. Batches may differ in size.
    Cost: one pass where the set is one batch. Otherwise one pass for each layer that only goes up to that layer (about
    half a forward pass over the set for each, without gradients), and the first batch once more.
    Weights, gradients, modes and random states are afterwards as before; after an error the statistics too.
    Raises BadInput for what is no nn.Module or no data, without a batch normalisation that keeps statistics or where none
    runs, for one that runs several times in a forward pass, for fewer than two values a unit, for statistics that are not
    finite, and where forward fails.
    """
    check_model(model)
    norms = {module: name for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    layers: dict[Any, str] = {module: name for module, name in norms.items() if module.running_mean is not None}
    if not layers:
        raise BadInput(
            "the network has no batch normalisation with moving averages; there are no statistics to correct"
        )
    if not isinstance(batch_size, int) or batch_size < 1:
        raise BadInput(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    source = _source(data)
    moving = {layer: (layer.running_mean.clone(), layer.running_var.clone()) for layer in layers}
    with _evaluating(model, moving):
        settled = _settle(model, layers, source, batch_size)
        rows = tuple(_row(layers[layer], layer, moments, *moving[layer]) for layer, moments in settled.items())
    return PopulationStatistics(rows, tuple(name for layer, name in layers.items() if layer not in settled))


def _source(data: Any) -> Source:
    if data is None:
        raise BadInput("statistics are taken over a training set; give its inputs, (x, y), a Dataset or a DataLoader")
    if isinstance(data, (Tensor, np.ndarray)):
        data = (data, np.zeros(len(data) if data.ndim else 0))  # inputs alone
    return as_source(data)


@contextmanager
def _evaluating(model: nn.Module, moving: dict[Any, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Every module in evaluation mode, no gradients; afterwards modes and random states as before, and after an error the
    `moving` means and variances back in their layers."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with preserved(), torch.no_grad():
            for module, _ in modes:
                module.training = False
            yield
    except BaseException:
        for layer, (mean, variance) in moving.items():
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)
        raise
    finally:
        for module, training in modes:
            module.training = training


class _Reached(BaseException):
    """Ends a forward pass at the layer that is being settled; no Exception, so that no forward catches it."""


@dataclass
class _Moments:
    """Count, mean and sum of squared deviations of each unit, merged batch by batch (Chan 1983), in float64."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))

    def add(self, x: Tensor) -> None:
        """One batch (batch, units, ...)."""
        x = x if x.dtype in (torch.float32, torch.float64) else x.float()
        parts = torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=0)
        variance, mean = (part.cpu().double() for part in parts)
        new = x.numel() // x.shape[1]
        total, shift = self.count + new, mean - self.mean
        self.squares = self.squares + variance * new + shift.square() * (self.count * new / total)
        self.mean = self.mean + shift * (new / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        return self.squares / self.count


def _settle(model: nn.Module, layers: dict[Any, str], source: Source, batch_size: int) -> dict[Any, _Moments]:
    """The population's moments of every layer that runs, in order of execution, written into the layers."""
    with _batches(source, batch_size) as batches:
        first = list(islice(batches, 2))
    if not first:
        raise BadInput("the data yields no batch: it is empty, or smaller than a batch with drop_last")
    settled = _sweep(model, layers, first[:1])
    if not settled:
        raise BadInput("no batch normalisation ran in forward; hand over the model as it is before torch.compile")
    for layer in settled if len(first) > 1 else ():
        with _batches(source, batch_size) as batches:
            settled.update(_sweep(model, {layer: layers[layer]}, batches, stop=True))
    return settled


def _sweep(model: nn.Module, layers: dict[Any, str], batches: Iterable[Any], stop: bool = False) -> dict[Any, _Moments]:
    """Forward passes in which each layer, before it runs, takes over the moments of its inputs so far.

    stop: end each forward pass at the first of `layers`.
    """
    found: dict[Any, _Moments] = {}

    def take_over(layer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if layer in found and not stop:
            raise BadInput(
                f"the batch normalisation {layers[layer]} runs several times in a forward pass, so that no one "
                "population is its own; give each call a layer of its own"
            )
        moments = found.setdefault(layer, _Moments())
        moments.add(args[0] if args else kwargs["input"])
        layer.running_mean.copy_(moments.mean)
        layer.running_var.copy_(moments.variance)
        if stop:
            raise _Reached

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(take_over, with_kwargs=True).remove)
        for x, _ in batches:
            with suppress(_Reached):
                run_model(model, x)
    return found


@contextmanager
def _batches(source: Source, batch_size: int) -> Iterator[Iterator[Any]]:
    """The same batches every time, also of a loader that shuffles or draws; its own generators stay as they were."""
    with seeded(0), ExitStack() as stack:
        if isinstance(source, FromLoader):
            stack.enter_context(generators_kept(source.loader))
        yield iter(source.batches(batch_size))


def _row(name: str, layer: Any, moments: _Moments, *moving: Tensor) -> LayerStatistics:
    """The finished row of a layer; BadInput where its population gives no usable statistics."""
    if moments.count < 2:
        raise BadInput(f"{name} saw one value a unit in the whole data; give at least two samples")
    if not bool((moments.mean.isfinite() & moments.variance.isfinite()).all()):
        raise BadInput(f"the inputs of {name} hold NaN or infinite values; check the data and the weights below it")
    mean, square = (average.detach().cpu().double() for average in moving)
    return LayerStatistics(name, moments.count, moments.mean, moments.variance, mean, square, layer.eps)
