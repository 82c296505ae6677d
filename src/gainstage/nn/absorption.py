"""A batch normalisation absorbed by the layer beside it: which layer can, and the weights that it then has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from gainstage.nn.edits import Edits, has_other_hooks
from gainstage.nn.flow import Flow
from gainstage.signal import Operation
from gainstage.signal import operations as ops

COPIES = ("clone", "contiguous", "detach")  # operations that leave every number as it is

Layer = nn.Linear | _ConvNd
Side = Literal["in front", "behind"]


@dataclass(frozen=True)
class Absorbed:
    """A normalisation that went into a layer, both by path; side: where the layer stands, seen from the normalisation."""

    normalization: str
    layer: str
    side: Side


class Refused(Exception):
    """A normalisation cannot be absorbed; the message says why."""


class Absorber:
    """Makes layers of one network, in evaluation mode, absorb its normalisations."""

    def __init__(self, model: nn.Module, flow: Flow, edits: Edits):
        self.model, self.flow, self.edits = model, flow, edits
        self.gone: set[int] = set()  # operations of normalisations that were absorbed

    def normalizations(self) -> list[str]:
        """Paths of all batch normalisations."""
        return [path for path, module in self.model.named_modules() if isinstance(module, _BatchNorm)]

    def absorb(self, path: str) -> Absorbed:
        """Let the layer directly in front of a normalisation absorb it, or else the one directly behind; Refused, with
        nothing changed, where neither can."""
        norm, run = self._normalization(path)
        ways: dict[Side, Callable[..., str]] = {"in front": self._in_front, "behind": self._behind}
        reasons = []
        for side, absorbing in ways.items():
            try:
                layer = absorbing(run, *scale_and_shift(norm))
            except Refused as reason:
                reasons.append(f"{side}, {reason}")
                continue
            self.edits.detach(self.model, norm)
            self.edits.replace_module(self.model, norm, nn.Identity())
            self.gone.add(run.index)
            return Absorbed(path, layer, side)
        raise Refused("; ".join(reasons))

    def _normalization(self, path: str) -> tuple[_BatchNorm, Operation]:
        norm, runs = self.model.get_submodule(path), self.flow.runs(path)
        assert isinstance(norm, _BatchNorm)
        if not path:
            raise Refused("it is the whole network")
        if norm.running_mean is None or norm.running_var is None:
            raise Refused("it has no running statistics")
        _check_plain(norm)
        if not runs:
            raise Refused("it does not run")
        if any(run.name != "batch_norm" for run in runs) or list(norm.children()):
            raise Refused(f"a {type(norm).__name__} does more than to normalise")
        if len(runs) > 1:
            raise Refused("it runs more than once")
        return norm, runs[0]

    def _in_front(self, run: Operation, scale: Tensor, shift: Tensor) -> str:
        """Path of the layer in front, which now puts out what the normalisation did."""
        source = run
        while source is run or self._copies(source):
            if len(source.inputs) != 1 or not self.flow.sources(source):
                raise Refused("nothing stands there")
            source = self.flow.sources(source)[0]
            if len(self.flow.readers(source)) > 1:
                raise Refused(f"{self._name(source)} is read elsewhere too")
        absorb_behind(self.edits, self._layer(source, run), scale, shift)
        return source.module

    def _behind(self, run: Operation, scale: Tensor, shift: Tensor) -> str:
        """Path of the layer behind, which now takes in what the normalisation did."""
        reader = run
        while reader is run or self._copies(reader):
            readers = self.flow.readers(reader)
            if len(readers) != 1:
                raise Refused("its output is read in several places" if readers else "nothing stands there")
            reader = readers[0]
        layer = self._layer(reader, run)
        if bool(shift.any()) and (isinstance(layer, _ConvTransposeNd) or _is_zero_padded(layer)):
            raise Refused(f"{self._name(reader)} has a border that the shift would not reach")
        absorb_in_front(self.edits, layer, scale, shift)
        return reader.module

    def _copies(self, operation: Operation) -> bool:
        """True for operations that leave the numbers as they are, or repeat some at the border."""
        if operation.kind == "dropout":
            return not operation.settings.get("training", True)
        repeats = operation.name == "pad" and isinstance(self.model.get_submodule(operation.module), _ConvNd)
        return operation.index in self.gone or operation.name in COPIES or repeats

    def _layer(self, operation: Operation, run: Operation) -> Layer:
        """The layer of an operation that reads what the normalisation puts out, or puts out what it reads."""
        layer, name = self.model.get_submodule(operation.module), self._name(operation)
        if operation.name not in ops.DENSE:
            raise Refused(f"{name} stands there")
        if not isinstance(layer, Layer):
            raise Refused(f"{name} is called as a function")
        _check_plain(layer, name)
        if len([other for other in self.flow.runs(operation.module) if other.kind == "layer"]) > 1:
            raise Refused(f"{name} runs more than once")
        users = [other for other in self.flow.operations if set(operation.parameters) & set(other.parameters)]
        if len(users) > 1 or _is_shared(self.model, layer):
            raise Refused(f"{name} shares its parameters")
        if not operation.weight:
            raise Refused(f"{name} computes its weight in forward")
        if len(run.shape) != layer.weight.ndim:
            raise Refused(f"{name} has its units in another dimension")
        return layer

    def _name(self, operation: Operation) -> str:
        return f"{operation.name} in {operation.module}" if operation.module else operation.name


def _check_plain(module: nn.Module, name: str = "it") -> None:
    if not {"weight", "bias"} <= module._parameters.keys():
        raise Refused(f"{name} is parametrised")
    if has_other_hooks(module):
        raise Refused(f"{name} carries hooks")


def _is_shared(model: nn.Module, layer: nn.Module) -> bool:
    """True where another module has a parameter of the layer too."""
    ours = {id(parameter) for parameter in layer._parameters.values() if parameter is not None}
    others = (module for module in model.modules() if module is not layer)
    return any(id(parameter) in ours for module in others for parameter in module._parameters.values())


def _is_zero_padded(layer: Layer) -> bool:
    if not isinstance(layer, _ConvNd) or layer.padding_mode != "zeros":
        return False
    return any(layer._reversed_padding_repeated_twice)  # what "same" and "valid" amount to as well


# ---------------------------------------------------------------- arithmetic, in float64
def scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """s and t, each (units,), of s x + t, which is what the normalisation does in evaluation mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (_exact(norm.running_var) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * _exact(norm.weight)
    shift = -scale * _exact(norm.running_mean)
    return scale, shift if norm.bias is None else shift + _exact(norm.bias)


def absorb_behind(edits: Edits, layer: Layer, scale: Tensor, shift: Tensor) -> None:
    """Make the layer put out s y + t in place of y; s and t: (outputs,)."""
    weight = _grouped(layer)
    along = _along(scale, weight, 2 if isinstance(layer, _ConvTransposeNd) else 1)
    bias = shift if layer.bias is None else shift + scale * _exact(layer.bias)
    _write(edits, layer, weight * along, bias)


def absorb_in_front(edits: Edits, layer: Layer, scale: Tensor, shift: Tensor) -> None:
    """Make the layer take in s x + t where it is given x; s and t: (inputs,). Exact where no zeros join x at a border."""
    weight, inputs = _grouped(layer), 1 if isinstance(layer, _ConvTransposeNd) else 2
    others = [d for d in range(1, weight.ndim) if d != 3 - inputs]
    bias = (weight * _along(shift, weight, inputs)).sum(others).flatten()
    if layer.bias is not None:
        bias = bias + _exact(layer.bias)
    _write(edits, layer, weight * _along(scale, weight, inputs), bias)


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()  # not every device has double precision


def _grouped(layer: Layer) -> Tensor:
    """The weight with its groups apart: (groups, outputs, inputs, *kernel), transposed (groups, inputs, outputs, *kernel)."""
    return _exact(layer.weight).unflatten(0, (getattr(layer, "groups", 1), -1))


def _along(values: Tensor, weight: Tensor, dim: int) -> Tensor:
    """One value a unit, of all groups in turn, in the shape that multiplies a grouped weight along `dim`."""
    shape = [len(weight), *[1] * (weight.ndim - 1)]
    shape[dim] = -1
    return values.view(shape)


def _write(edits: Edits, layer: Layer, weight: Tensor, bias: Tensor) -> None:
    edits.write(layer.weight, weight.flatten(0, 1))
    if layer.bias is None:
        like = layer.weight
        new = nn.Parameter(bias.to(device=like.device, dtype=like.dtype), requires_grad=like.requires_grad)
        edits.set_parameter(layer, "bias", new)
    else:
        edits.write(layer.bias, bias)
