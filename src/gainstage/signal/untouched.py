"""Leave no trace: whatever happens inside, the model and the process are afterwards as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from gainstage.errors import BadInput
from gainstage.program import is_sharded
from gainstage.randomness import preserved

# kept by nn.Module itself; restored piece by piece below rather than by replacing the containers
_CONTAINERS = ("_parameters", "_buffers", "_modules")


@contextmanager
def untouched(*modules: nn.Module) -> Iterator[None]:
    """Restores on exit, also after an error: random states (Python, NumPy, torch on every device), and of every
    submodule its buffers (values and identity), gradients, train flag and plain attributes, such as a hidden state that
    a forward pass leaves behind, with what is in its lists, dictionaries, sets and tensors. Parameters' values are not
    copied, but for embeddings that renormalise theirs: nothing else inside may change them.
    """
    _check_ordinary(modules)
    _reshard(modules)
    buffers: dict[int, torch.Tensor] = {}
    states = [_ModuleState(m, buffers) for m in dict.fromkeys(m for module in modules for m in module.modules())]
    gradients = [(p, p.grad) for module in modules for p in module.parameters()]
    copies = [None if grad is None else grad.detach().clone() for _, grad in gradients]
    try:
        with preserved():
            yield
    finally:
        _reshard(modules)
        for state in states:
            state.restore()
        for (parameter, grad), copy in zip(gradients, copies, strict=True):
            _restore_gradient(parameter, grad, copy)


def _reshard(modules: tuple[nn.Module, ...]) -> None:
    """FSDP2 keeps its outermost parameters whole between forward and backward: put them back into their shards, or it would
    take the restored shards for whole ones."""
    for module in (each for model in modules for each in model.modules()):
        if is_sharded(module):
            getattr(module, "reshard")()  # noqa: B009, a method of a type that is not imported


class _Content:
    """What is inside a list, a dictionary, a set or a tensor that a forward pass may change in place."""

    def __init__(self, value: Any):
        self.value = value
        plain = isinstance(value, (list, dict, set))
        self.copy: Any = value.copy() if plain else value.detach().clone() if isinstance(value, torch.Tensor) else None

    def restore(self) -> None:
        if isinstance(self.value, torch.Tensor):
            _restore_values(self.value, self.copy)
        elif self.copy is not None and self.value != self.copy:
            self.value.clear()
            self.value.extend(self.copy) if isinstance(self.value, list) else self.value.update(self.copy)


class _ModuleState:
    """One module without its children. Inside, its buffers are copies, so that the originals are never written to: a graph
    that the user still holds stays valid."""

    def __init__(self, module: nn.Module, copies: dict[int, torch.Tensor]):
        self.module = module
        self.attributes = {k: v for k, v in vars(module).items() if k not in _CONTAINERS}
        self.contents = {k: _Content(v) for k, v in self.attributes.items() if not k.startswith("_")}
        self.parameters, self.children = dict(module._parameters), dict(module._modules)
        # the one kind of layer whose forward pass writes to its weight
        renormed = isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None
        self.weight = _Content(module.weight) if renormed else None
        self.buffers = dict(module._buffers)
        for name, buffer in self.buffers.items():
            if buffer is not None:
                module._buffers[name] = copies.setdefault(id(buffer), buffer.detach().clone())

    def restore(self) -> None:
        attributes = vars(self.module)
        for name in set(attributes) - set(self.attributes) - set(_CONTAINERS):
            del attributes[name]
        attributes.update(self.attributes)
        for content in self.contents.values():
            content.restore()
        if self.weight is not None:
            self.weight.restore()
        _restore_entries(self.module._parameters, self.parameters)
        _restore_entries(self.module._modules, self.children)
        self.module._buffers.clear()
        self.module._buffers.update(self.buffers)


def _restore_entries(mine: dict[str, Any], kept: dict[str, Any]) -> None:
    if mine.keys() != kept.keys() or any(mine[name] is not kept[name] for name in kept):
        mine.clear()
        mine.update(kept)


def _restore_gradient(parameter: nn.Parameter, grad: torch.Tensor | None, copy: torch.Tensor | None) -> None:
    parameter.grad = grad
    _restore_values(grad, copy)


def _restore_values(tensor: torch.Tensor | None, copy: torch.Tensor | None) -> None:
    """Write only where something changed: a needless write would invalidate a graph that the user still holds."""
    if tensor is None or copy is None or tensor.is_meta or torch.equal(tensor, copy):
        return
    with torch.no_grad():
        tensor.copy_(copy)


def _check_ordinary(modules: tuple[nn.Module, ...]) -> None:
    """BadInput for modules that cannot be looked into, or that a first forward pass would turn into others."""
    for module in modules:
        if any(isinstance(m, torch.jit.ScriptModule) for m in module.modules()):
            raise BadInput("a scripted module cannot be looked into; give the module that it was made from")
        check_shapes(module)


def has_lazy_layers(module: nn.Module) -> bool:
    """True while layers wait for a first batch to tell their sizes."""
    return any(is_lazy(p) for p in (*module.parameters(), *module.buffers()))


def check_shapes(module: nn.Module) -> None:
    """BadInput for lazy layers that have no shape yet."""
    if has_lazy_layers(module):
        raise BadInput("the model has lazy layers without a shape yet; run one batch through it first")
