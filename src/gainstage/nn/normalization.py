"""Batch normalisation: made to fit a layer, put into a network, and its statistics taken over a whole training set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice, takewhile
from numbers import Real
from typing import Any, Literal, NamedTuple

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gainstage.data import Source, as_source
from gainstage.data.sources import FromLoader, generators_kept
from gainstage.display import Displayed, render
from gainstage.errors import BadInput, GainstageError
from gainstage.randomness import preserved, seeded

Convention = Literal["torch", "keras"]
NORMALIZATIONS = (_BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)
POOLING = tuple(getattr(nn.modules.pooling, f"_{kind}PoolNd") for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg"))
KEEP_UNITS = (nn.Identity, nn.modules.dropout._DropoutNd, *POOLING)
DEFAULT_MOMENTUM = {"torch": 0.1, "keras": 0.9}  # PyTorch's, in each convention


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
    kind, _, units = _shape(layer, "behind")
    return kind(units, momentum=share, device=layer.weight.device, dtype=layer.weight.dtype)


def _shape(layer: nn.Module, where: str) -> tuple[Callable[..., nn.Module], int, int]:
    """The kind of batch normalisation that fits beside a layer, and how many inputs and outputs the layer has."""
    if isinstance(layer, nn.Linear):
        return nn.BatchNorm1d, layer.in_features, layer.out_features
    if isinstance(layer, nn.modules.conv._ConvNd):
        kind = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[len(layer.kernel_size)]
        return kind, layer.in_channels, layer.out_channels
    raise BadInput(f"batch normalisation does not fit {where} a {type(layer).__name__}")


class _Place(NamedTuple):
    """An entry of a chain of nested Sequentials: where it hangs, and what it is."""

    parent: nn.Sequential
    name: str
    module: nn.Module


class _Hidden(NamedTuple):
    """A hidden activation, its layer, and whether nothing but identities stands between them."""

    place: _Place
    layer: nn.Module
    adjacent: bool


def insert_batch_norm(
    model: nn.Sequential, position: Literal["before", "after"] = "before", first: bool = False
) -> nn.Sequential:
    """Put batch normalisation before or after each hidden activation, in place; returns the model.

    Works on an nn.Sequential and the Sequentials nested in it, whose Linear layers take (batch, features). Hidden is an
    activation, one of torch's modules, that has a linear or convolutional layer in front of it, with nothing but dropout
    and pooling between, and any layer further on. What is normalised already stays as it is. No entry is renamed: the new
    ones are called like "relu1_normalization" and "input_normalization". Make the optimiser afterwards.
    position "before": the bias of the layer directly in front goes, for the normalisation subtracts it again.
    first: one more in front of the first layer, which takes the place of standardised inputs.
    Raises BadInput, with nothing changed, for other models, an unknown position, and where there is nothing to normalise.
    """
    if position not in ("before", "after"):
        raise BadInput(f"no position is called {position!r}; known are: before, after")
    if not _is_chain(model) or any(nn.parameter.is_lazy(p) for p in model.parameters()):
        raise BadInput(
            "insert_batch_norm works on an nn.Sequential with layers of known size, not on "
            f"a {type(model).__name__} like this; elsewhere put batch_norm_after(layer) into the model's own code"
        )
    chain = list(_chain(model))
    hidden = _hidden(chain)
    norms = [batch_norm_after(h.layer) for h in hidden]
    entry = _first_layer(chain) if first else None
    if entry is not None:
        kind, inputs, _ = _shape(entry.module, "in front of")
        norm = kind(inputs, device=entry.module.weight.device, dtype=entry.module.weight.dtype)
        _insert(entry, "input_normalization", norm, model.training)
    elif not norms:
        raise BadInput(
            "there is nothing to normalise: the network has no hidden activation module behind a linear or convolutional "
            "layer without normalisation; put batch_norm_after(layer) in by hand where it belongs"
        )
    for h, norm in zip(hidden, norms, strict=True):
        _insert(h.place, f"{h.place.name}_normalization", norm, model.training, behind=position == "after")
        alone = sum(place.module is h.layer for place in chain) == 1  # used elsewhere too, a layer needs its bias
        if position == "before" and h.adjacent and alone and "bias" in h.layer._parameters:
            h.layer._parameters["bias"] = None
    return model


def _is_chain(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _chain(model: nn.Sequential) -> Iterator[_Place]:
    """All entries in order of execution, nested Sequentials unfolded."""
    for name, module in model._modules.items():
        if isinstance(module, nn.Sequential) and _is_chain(module):
            yield from _chain(module)
        elif module is not None:
            yield _Place(model, name, module)


def _is_activation(module: nn.Module) -> bool:
    ours = type(module).__module__ == nn.modules.activation.__name__
    return ours and not isinstance(module, (nn.MultiheadAttention, nn.GLU))


def _is_layer(module: nn.Module) -> bool:
    return not isinstance(module, NORMALIZATIONS) and any(p.ndim > 1 for p in module.parameters())


def _hidden(chain: list[_Place]) -> list[_Hidden]:
    """The hidden activations to normalise, each place once, though it may run several times."""
    modules = [place.module for place in chain]
    last = max((i for i, module in enumerate(modules) if _is_layer(module)), default=0)
    found: dict[tuple[int, str], _Hidden] = {}
    for i, place in enumerate(chain[:last]):
        between = list(takewhile(lambda m: isinstance(m, KEEP_UNITS), reversed(modules[:i])))
        layer = modules[i - len(between) - 1] if len(between) < i else None
        follower = next(m for m in modules[i + 1 :] if not isinstance(m, KEEP_UNITS))
        fits = isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)) and not isinstance(follower, NORMALIZATIONS)
        if layer is not None and fits and _is_activation(place.module):
            adjacent = all(isinstance(m, nn.Identity) for m in between)
            found.setdefault((id(place.parent), place.name), _Hidden(place, layer, adjacent))
    return list(found.values())


def _first_layer(chain: list[_Place]) -> _Place | None:
    """The first layer, unless its inputs are normalised already."""
    found = next((p for p in chain if isinstance(p.module, NORMALIZATIONS) or _is_layer(p.module)), None)
    return None if found is None or isinstance(found.module, NORMALIZATIONS) else found


def _insert(place: _Place, name: str, norm: nn.Module, training: bool, behind: bool = False) -> None:
    """Hang `norm` into the Sequential in front of an entry, or behind it, without renaming the others."""
    entries = list(place.parent._modules.items())
    at = [entry for entry, _ in entries].index(place.name) + behind
    place.parent._modules.clear()
    place.parent._modules.update([*entries[:at], (name, norm.train(training)), *entries[at:]])


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


@render.register
def _(table: PopulationStatistics, width: int) -> Group:
    grid = Table(box=None, padding=(0, 2), pad_edge=False, header_style="bold")
    for heading in ("layer", "units", "values", "std, dB", "worst", "mean, stds", "worst"):
        grid.add_column(heading, justify="left" if heading == "layer" else "right", overflow="fold")
    for row in table.rows:
        layer, units, values, *numbers = row.to_dict().values()
        grid.add_row(Text(layer), str(units), str(values), *(f"{number:+.2f}" for number in numbers))
    skipped = [Text(f"never ran: {', '.join(table.skipped)}", style="yellow")] if table.skipped else []
    return Group("moving averages against the population, which took their place", grid, *skipped)


def population_statistics(model: nn.Module, data: Any, batch_size: int = 256) -> PopulationStatistics:
    """Write exact means and variances over a training set into the running_mean and running_var of every batch
    normalisation, and return them beside the moving averages that stood there.

    Each layer's are those of the inputs it has in evaluation mode, with the layers below corrected already: what training
    mode would compute if the whole set were one batch, without dropout. Variances divide by n: the set is the population.
    data: (x, y), a Dataset or a DataLoader, which keeps its own batch size; batches may differ in size.
    Cost: one pass where the set is one batch. Otherwise one pass for each layer that only goes up to that layer (about
    half a forward pass over the set for each, without gradients), and the first batch once more.
    Weights, gradients, modes and random states are afterwards as before; after an error the statistics too.
    Raises BadInput without a batch normalisation that keeps statistics or where none runs, for one that runs several times
    in a forward pass, for fewer than two values a unit, for statistics that are not finite, and where forward fails.
    """
    norms = {module: name for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    layers: dict[Any, str] = {module: name for module, name in norms.items() if module.running_mean is not None}
    if not layers:
        raise BadInput(
            "the network has no batch normalisation with moving averages; there are no statistics to correct"
        )
    if not isinstance(batch_size, int) or batch_size < 1:
        raise BadInput(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    source = as_source(data)
    moving = {layer: (layer.running_mean.clone(), layer.running_var.clone()) for layer in layers}
    with _evaluating(model, moving):
        settled = _settle(model, layers, source, batch_size)
        rows = tuple(_row(layers[layer], layer, moments, *moving[layer]) for layer, moments in settled.items())
    return PopulationStatistics(rows, tuple(name for layer, name in layers.items() if layer not in settled))


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
                _forward(model, x)
    return found


@contextmanager
def _batches(source: Source, batch_size: int) -> Iterator[Iterator[Any]]:
    """The same batches every time, also of a loader that shuffles or draws; its own generators stay as they were."""
    with seeded(0), ExitStack() as stack:
        if isinstance(source, FromLoader):
            stack.enter_context(generators_kept(source.loader))
        yield iter(source.batches(batch_size))


def _forward(model: nn.Module, x: Any) -> None:
    try:
        model(*x) if type(x) in (tuple, list) else model(**x) if isinstance(x, dict) else model(x)
    except GainstageError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise BadInput(
            f"the model's forward failed on a batch of the data: {type(error).__name__}: {reason}"
        ) from error


def _row(name: str, layer: Any, moments: _Moments, *moving: Tensor) -> LayerStatistics:
    """The finished row of a layer; BadInput where its population gives no usable statistics."""
    if moments.count < 2:
        raise BadInput(f"{name} saw one value a unit in the whole data; give at least two samples")
    if not bool((moments.mean.isfinite() & moments.variance.isfinite()).all()):
        raise BadInput(f"the inputs of {name} hold NaN or infinite values; check the data and the weights below it")
    mean, square = (average.detach().cpu().double() for average in moving)
    return LayerStatistics(name, moments.count, moments.mean, moments.variance, mean, square, layer.eps)
