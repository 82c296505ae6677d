"""Where normalisation can be put in a network, found from its flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gainstage.errors import BadInput
from gainstage.nn.flow import Flow, Function, is_activation, is_chain, is_layer
from gainstage.nn.normalization import batch_norm_of
from gainstage.signal import Operation
from gainstage.signal import operations as ops

Position = Literal["before", "after"]
KEEP_UNITS = ("dropout", "pool")
TO_LAYERS = (*KEEP_UNITS, "add")  # what may stand between a hidden activation and the layers that lead to it


class Entry(NamedTuple):
    """A place in an nn.Sequential that runs as a whole."""

    parent: nn.Sequential
    name: str


@dataclass(frozen=True, eq=False)
class Insertion:
    """A normalisation that is to run behind a module, or in front of it.

    entry: where the module stands, if in an nn.Sequential. layer: path of the layer whose units are normalised. biased: the
    layer whose bias is of no use afterwards. first: in front of the first layer.
    """

    norm: nn.Module
    module: nn.Module
    entry: Entry | None
    behind: bool
    layer: str
    biased: nn.Module | None = None
    first: bool = False

    @property
    def name(self) -> str:
        """What an nn.Sequential is to call the normalisation."""
        return "input_normalization" if self.first or self.entry is None else f"{self.entry.name}_normalization"


@dataclass(frozen=True)
class Hidden:
    """A hidden activation, and a layer that leads to it."""

    layer: Operation
    activation: Function

    @property
    def name(self) -> str:
        """For example "relu" or "sigmoid+mul"."""
        return "+".join(dict.fromkeys(operation.name for operation in self.activation))


def hidden_activations(flow: Flow) -> list[Hidden]:
    """The hidden activations without normalisation, each with every layer that leads to it."""
    return [
        Hidden(layer, activation)
        for activation in flow.activations()
        if any(map(is_layer, flow.forward(activation[-1])))
        and all(reader.kind != "normalization" for reader in flow.forward(activation[-1], KEEP_UNITS))
        for layer in flow.backward(activation[0], TO_LAYERS)
        if layer.name in ops.DENSE and len(layer.shape) == len(activation[-1].shape)
    ]


class Places:
    """The places in a network, from its flow."""

    def __init__(self, model: nn.Module, flow: Flow):
        self.model, self.flow = model, flow
        self.hidden = hidden_activations(flow)
        self.hidden_layers = {each.layer.index for each in self.hidden}
        self.hidden_operations = {operation.index for each in self.hidden for operation in each.activation}

    # ---------------------------------------------------------------- at the activations
    def at_activations(self, position: Position) -> list[Insertion]:
        """One insertion for each place, though it may run several times."""
        found: dict[Any, Insertion] = {}
        for hidden in self.hidden:
            insertion = self._before(hidden) if position == "before" else self._after(hidden)
            found.setdefault(insertion.entry or insertion.module, insertion)
        return list(found.values())

    def _before(self, hidden: Hidden) -> Insertion:
        layer, runs = self._module(hidden.layer), self._runs(hidden.layer)
        biased = layer if layer._parameters.get("bias") is not None and len(runs) == 1 else None
        way = self._way(hidden)
        activation = None if way is None or self._is_part(hidden) else self._activation(hidden)
        if activation is not None:
            return self._insertion(hidden, *activation, behind=False, biased=None if way else biased)
        if not isinstance(layer, (nn.Linear, _ConvNd)):
            raise BadInput(self._as_function(Hidden(hidden.layer, (hidden.layer,))))
        if not {run.index for run in runs} <= self.hidden_layers:
            raise BadInput(
                f"{hidden.layer.module} runs several times, not always in front of a hidden activation; give each run a "
                "layer of its own"
            )
        return self._insertion(hidden, layer, self._entry(layer), behind=True, biased=biased)

    def _after(self, hidden: Hidden) -> Insertion:
        activation = self._activation(hidden)
        if activation is not None:
            return self._insertion(hidden, *activation, behind=True)
        if not self._is_module(hidden.activation):
            raise BadInput(self._as_function(hidden))
        raise BadInput(f"{hidden.activation[0].module} runs behind several layers; give each of them one of its own")

    def _insertion(self, hidden: Hidden, module: nn.Module, entry: Entry | None, **settings: Any) -> Insertion:
        norm = self._norm(hidden.layer, hidden.layer.channels)
        return Insertion(norm, module, entry, layer=hidden.layer.module, **settings)

    def _way(self, hidden: Hidden) -> list[Operation] | None:
        """What stands between layer and activation; None where another way joins it or leads off."""
        way, inside = [hidden.activation[0]], {operation.index for operation in hidden.activation[1:]}
        while way[-1] is not hidden.layer:
            source = self.flow.sources(way[-1])[0]
            readers = [reader for reader in self.flow.readers(source) if reader.index not in inside]
            if len(way[-1].inputs) > 1 or len(readers) > 1:
                return None
            way.append(source)
        return way[1:-1]

    def _is_part(self, hidden: Hidden) -> bool:
        """True where torch's own activation, the first behind the layer, is part of a longer function. It is normalised behind
        the layer, where networks that were saved with their normalisation have it."""
        named = [operation for operation in hidden.activation if is_activation(operation)]
        return len(hidden.activation) > 1 and any(hidden.layer in self.flow.backward(each, TO_LAYERS) for each in named)

    def _activation(self, hidden: Hidden) -> tuple[nn.Module, Entry | None] | None:
        """The module that is nothing but the activation behind the layer, and where it stands; None if there is none."""
        if not self._is_module(hidden.activation):
            return None
        path = hidden.activation[0].module
        module, runs = self._module(hidden.activation[0]), self.flow.runs(path)
        entry = self._entry(module, behind=self._module(hidden.layer))
        layers = {each.layer.module for each in self.hidden if each.activation[0].module == path}
        ours = len(layers) == 1 and {run.index for run in runs} <= self.hidden_operations
        return (module, entry) if entry or ours else None

    def _is_module(self, activation: Function) -> bool:
        """True where a module without children runs this and nothing else, each time."""
        module, names = activation[0].module, [operation.name for operation in activation]
        runs = [operation.name for operation in self.flow.runs(module)]
        alone = runs == names * (len(runs) // len(names))
        return bool(module) and alone and not list(self._module(activation[0]).children())

    # ---------------------------------------------------------------- at the input
    def in_front(self, x: Any) -> Insertion | None:
        """In front of the first layer, or of the network with inputs `x` where several operations read them; None where
        they are normalised already."""
        readers = self.flow.readers(None)
        while len(readers) == 1 and _passes(readers[0]):
            readers = self.flow.readers(readers[0])
        if all(reader.kind == "normalization" for reader in readers):
            return None
        layer = self._module(readers[0])
        if len(readers) == 1 and isinstance(layer, (nn.Linear, _ConvNd)) and len(self._runs(readers[0])) == 1:
            units = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
            return Insertion(self._norm(readers[0], units), layer, self._entry(layer), False, "", first=True)
        convolves = any(reader.name.startswith("conv") for reader in readers)
        if not isinstance(x, Tensor) or not x.is_floating_point() or not (x.ndim == 2 or convolves):
            kind = type(layer if len(readers) == 1 else self.model).__name__
            raise BadInput(f"batch normalisation does not fit in front of a {kind}")
        return self._in_front_of_all(x)

    def _in_front_of_all(self, x: Tensor) -> Insertion:
        model, norm = self.model, batch_norm_of(x.shape[1], x.ndim - 2, next(self.model.parameters(), x))
        start = (
            Entry(model, next(iter(model._modules))) if isinstance(model, nn.Sequential) and is_chain(model) else None
        )
        return Insertion(norm, model, start, False, "", first=True)

    # ---------------------------------------------------------------- both
    def _module(self, operation: Operation) -> nn.Module:
        return self.model.get_submodule(operation.module)

    def _runs(self, operation: Operation) -> list[Operation]:
        """The operations of this kind in the same module, of all times that it runs."""
        return [other for other in self.flow.runs(operation.module) if other.kind == operation.kind]

    def _entry(self, module: nn.Module, behind: nn.Module | None = None) -> Entry | None:
        """Where a module stands in an nn.Sequential that runs as a whole; of several places the first behind another."""
        chains = [m for path, m in self.model.named_modules() if path in self.flow.chains]
        for parent in sorted(chains, key=lambda chain: not _holds(chain, behind)):
            passed = not _holds(parent, behind)
            for name, child in parent._modules.items():
                if passed and child is module:
                    return Entry(parent, name)  # type: ignore[arg-type]
                passed = passed or _holds(child, behind)
        return None

    def _norm(self, layer: Operation, units: int) -> nn.Module:
        if layer.name == "linear" and len(layer.shape) != 2:
            raise BadInput(
                f"batch normalisation takes (batch, features) at a linear layer, but {layer.module or 'the model'} puts out "
                f"{layer.shape}; put nn.LayerNorm({units}) there by hand"
            )
        like = self.model.get_parameter(layer.weight) if layer.weight else next(self.model.parameters())
        return batch_norm_of(units, len(layer.shape) - 2, like)

    def _as_function(self, called: Hidden) -> str:
        """What to write where code calls an activation, or the layer itself, as a function."""
        layer, operation = called.layer, called.activation[-1]
        module, norm = self._module(operation), type(self._norm(layer, layer.channels)).__name__
        where = f"{type(module).__name__}.forward" + (f" (module {operation.module})" if operation.module else "")
        behind = f" behind {layer.module}" if operation is not layer else ""
        how = "called as a function" if len(called.activation) == 1 else "written out"
        return (
            f"the {called.name}{behind} is {how} in {where}, and nothing can be put behind it from outside; "
            f"write self.normalization = nn.{norm}({layer.channels}) and call it on what {called.name} puts out"
        )


def _passes(operation: Operation) -> bool:
    """True for what stands in front of a first layer without being one."""
    return len(operation.inputs) == 1 and operation.kind != "normalization" and not is_layer(operation)


def _holds(module: nn.Module | None, other: nn.Module | None) -> bool:
    return module is not None and any(each is other for each in module.modules())
