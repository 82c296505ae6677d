"""torch.compile: compiled code calls no hooks, so that measured steps run the model as it was written."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import torch
from torch import nn

_waiting: WeakSet[Any] = WeakSet()  # who wants to see what runs; torch has one stance for the whole process
_stances: list[Any] = []


def is_compiled(model: nn.Module) -> bool:
    """True when the model or a part of it is known to run compiled; it may be without that, from outside."""
    return any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in model.modules())


def run_eagerly(who: Any, wanted: bool) -> None:
    """From now on compiled code runs as it was written (`wanted`), until nobody wants that any more. Compiled graphs are
    kept, and used again afterwards."""
    (_waiting.add if wanted else _waiting.discard)(who)
    if wanted and not _stances and hasattr(torch.compiler, "set_stance"):  # from torch 2.6 on
        _stances.append(torch.compiler.set_stance("force_eager"))
    settle()


def settle() -> None:
    """Bring compiled code back where no monitor is left that wants it away."""
    if not list(_waiting) and _stances:  # its length counts what is just being collected
        _stances.pop().__exit__(None, None, None)
