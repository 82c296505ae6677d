"""Edits of a network that can all be taken back, bit by bit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gainstage.errors import BadInput

IN_FRONT, BEHIND = "input_normalization", "normalization"  # a module's children that run in front of it and behind it


class Edits:
    """Collects the undo of each single edit, so that all of them can be taken back, the last one first. As a context
    manager it takes them back when something is raised inside.

    No edit renames a parameter or replaces the object that it is, so that an optimiser keeps it. A module that comes in
    has the mode of the one that it stands for or beside.
    """

    def __init__(self) -> None:
        self._undos: list[Callable[[], None]] = []

    def __enter__(self) -> Edits:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is not None:
            self.undo()

    def write(self, parameter: Tensor, values: Tensor) -> None:
        """Give a parameter other values, in its own device and dtype."""
        kept = parameter.detach().clone()
        self._undos.append(lambda: _write(parameter, kept))
        _write(parameter, values)

    def set_parameter(self, module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        """Give a module a parameter that it is registered to lack, or take one from it."""
        kept = module._parameters[name]
        self._undos.append(lambda: module._parameters.__setitem__(name, kept))
        module._parameters[name] = parameter

    def replace_module(self, model: nn.Module, old: nn.Module, new: nn.Module) -> None:
        """Put `new` in the place of `old` wherever the model, or one of its parts, has it as a child."""
        new.train(old.training)
        for parent, name in [(p, n) for p in model.modules() for n, child in p._modules.items() if child is old]:
            parent._modules[name] = new
            self._undos.append(lambda p=parent, n=name: p._modules.__setitem__(n, old))

    def pair(self, model: nn.Module, module: nn.Module, name: str, norm: nn.Module, behind: bool) -> None:
        """Put an nn.Sequential of `module`, there called `name`, and `norm` in the place of a module without parameters."""
        entries = [(BEHIND, norm), (name, module)]
        pair = nn.Sequential(OrderedDict(reversed(entries) if behind else entries))
        self.replace_module(model, module, pair)

    def insert_entry(self, parent: nn.Sequential, name: str, module: nn.Module, beside: str, behind: bool) -> None:
        """Hang `module` into an nn.Sequential in front of the entry `beside`, or behind it; the others keep their names."""
        entries = list(parent._modules.items())
        at = [entry for entry, _ in entries].index(beside) + behind
        while name in parent._modules:
            name += "_"
        _refill(parent._modules, [*entries[:at], (name, module.train(parent.training)), *entries[at:]])
        self._undos.append(lambda: _refill(parent._modules, entries))

    def attach(self, module: nn.Module, norm: nn.Module, behind: bool) -> None:
        """Make `norm` a child of `module` that runs on its first input, or on its output, whenever `module` is called."""
        name = BEHIND if behind else IN_FRONT
        if hasattr(module, name):
            raise BadInput(f"a {type(module).__name__} of the network has something called {name} already; rename it")
        if behind:
            handle: Any = module.register_forward_hook(_normalize_output)
        else:
            handle = module.register_forward_pre_hook(_normalize_input)
        module.add_module(name, norm.train(module.training))
        self._undos += [lambda: module._modules.__delitem__(name), handle.remove]

    def detach(self, model: nn.Module, norm: nn.Module) -> None:
        """Take `norm`, with the hook that runs it, from the modules of the model that it was attached to, also before the model
        was copied or saved."""
        for module in list(model.modules()):
            for name, hooks in _hooks_of(module).items():
                ours = [key for key, hook in hooks.items() if hook is ATTACHED[name]]
                if ours and module._modules.get(name) is norm:
                    self._undos += [_take_out(module._modules, name), *(_take_out(hooks, key) for key in ours)]

    def undo(self) -> None:
        """Take every edit back, in reverse order."""
        while self._undos:
            self._undos.pop()()


def _write(parameter: Tensor, values: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(values)


def _refill(held: dict[Any, Any], entries: Iterable[tuple[Any, Any]]) -> None:
    held.clear()
    held.update(entries)


def _take_out(held: dict[Any, Any], key: Any) -> Callable[[], None]:
    """Remove an entry; returns what puts it back at its place."""
    at, value = list(held).index(key), held.pop(key)

    def put_back() -> None:
        others = list(held.items())
        _refill(held, [*others[:at], (key, value), *others[at:]])

    return put_back


# functions of the module's file, so that a network with them can be copied and saved
def _normalize_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (module._modules[IN_FRONT](args[0]), *args[1:])  # type: ignore[misc]


def _normalize_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    return module._modules[BEHIND](output)  # type: ignore[misc]


ATTACHED = {IN_FRONT: _normalize_input, BEHIND: _normalize_output}


def _hooks_of(module: nn.Module) -> dict[str, dict[int, Any]]:
    return {IN_FRONT: module._forward_pre_hooks, BEHIND: module._forward_hooks}


def has_other_hooks(module: nn.Module) -> bool:
    """True where a module carries forward hooks that Edits.attach did not hang on it."""
    return any(hook is not ATTACHED[name] for name, hooks in _hooks_of(module).items() for hook in hooks.values())
