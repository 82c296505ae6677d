"""Where numbers first stop being finite: one more pass, looked at behind every operation, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from gainstage.data import Batch
from gainstage.program import Loss, run_loss, run_model, tensors_in
from gainstage.signal import operations as ops
from gainstage.signal.ledger import Place
from gainstage.signal.trace import Tracer
from gainstage.signal.untouched import untouched

# what puts an infinity in on purpose, as masks do
FILLS = {
    "masked_fill", "where", "full", "full_like", "new_full", "fill", "index_fill", "setitem", "tensor", "as_tensor",
    "new_tensor", "triu", "tril",
}  # fmt: skip


def locate(model: nn.Module, loss: Loss, batch: Batch, samples: int) -> Place | None:
    """The first operation of a pass on `batch` whose result is not finite although what it took in was; leaves no trace.

    Forward, of what reaches a stage's output or the loss; else backward. An infinity that a mask puts in on purpose does not
    count, until numbers that are none come of it. None where all is finite.
    """
    modules = [model, *([loss] if isinstance(loss, nn.Module) else [])]
    with untouched(*modules), torch.enable_grad():
        finder = Finder(model, samples)
        x, y = batch
        returned: list[Tensor] = []

        def told(*given: Any) -> Tensor:
            returned.append(loss(*given))
            return returned[-1]

        with finder.of(model, x):
            output = run_model(model, x)
        value = run_loss(told, output, y, within=finder.of_loss())
        finder.finish(output)
        return finder.first or finder.cause_of(returned[-1]) or _going_back(finder, model, value, samples)


class Finder(Tracer):
    """A tracer that looks for the first cause of numbers that are not finite; `first`: of those that left a stage."""

    def __init__(self, model: nn.Module, samples: int):
        super().__init__(model)
        self.first: Place | None = None
        self.nodes: dict[Any, Place] = {}  # of autograd's graph
        self._samples = samples
        self._held = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())}
        self._causes: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._entered: dict[str, int] = {}

    def cause_of(self, tensor: Tensor) -> Place | None:
        """What made a tensor not finite; None for a finite one, and where infinities were meant."""
        if not tensor.is_floating_point() or tensor.is_meta or bool(tensor.isfinite().all()):
            return None
        return self._causes.get(tensor)

    def _enter_module(self, module: nn.Module, _inputs: Any) -> None:
        super()._enter_module(module, _inputs)
        self._entered[self._module_stack[-1]] = self._entered.get(self._module_stack[-1], 0) + 1

    def _leaves(self, origin: int, part: int, tensor: Tensor) -> None:
        super()._leaves(origin, part, tensor)
        self.first = self.first or self.cause_of(tensor)

    def _run(self, func, args, kwargs) -> Any:
        given = [t.detach() for t in tensors_in([args, kwargs]) if t.is_floating_point()]
        named = [self._held[id(t)] for t in tensors_in([args, kwargs]) if id(t) in self._held and _is_broken(t)]
        causes = [cause for t in tensors_in([args, kwargs]) if (cause := self.cause_of(t)) is not None]
        filled = any(not_finite(t) for t in given) and not any(t.isnan().any() for t in given)
        sizes = [t.abs().nan_to_num(0, 0, 0).max() for t in given if t.numel()]
        here = self._here(ops.name_of(func), float(max(sizes)) if sizes else None)
        result = super()._run(func, args, kwargs)
        made = tensors_in(args[0] if here.operation == "setitem" else result)
        filled = filled or here.operation in FILLS
        for tensor in made:
            if tensor.grad_fn is not None:
                self.nodes.setdefault(tensor.grad_fn, here)
            if not_finite(tensor) and (tensor.isnan().any() or causes or named or not filled):
                here = replace(here, sample=sample_of([tensor], self._samples))
                self._causes[tensor] = causes[0] if causes else replace(here, **_held(named))
        return result

    def _here(self, operation: str, largest: float | None) -> Place:
        module = "" if self.in_loss else self._module_stack[-1]
        return Place("forward", operation, module, self._entered.get(module, 1), self.in_loss, largest=largest)


def _held(named: Sequence[str]) -> dict[str, Any]:
    """The parameter or buffer that is to blame, and so no sample."""
    return {"tensor": named[0], "sample": None} if named else {}


def _is_broken(held: Tensor) -> bool:
    """True for a parameter that is not finite, and for a buffer with something that is no number: masks hold infinities."""
    return not_finite(held) and (isinstance(held, nn.Parameter) or bool(held.isnan().any()))


def not_finite(tensor: Tensor) -> bool:
    """True for a tensor with an infinity, or with something that is no number."""
    return tensor.is_floating_point() and not tensor.is_meta and not bool(tensor.isfinite().all())


def sample_of(tensors: Sequence[Tensor], samples: int) -> int | None:
    """The first sample whose numbers are not finite; None where samples are not the first dimension."""
    for tensor in tensors:
        if tensor.ndim and len(tensor) == samples and not_finite(tensor):
            return int((~tensor.isfinite()).reshape(samples, -1).any(1).nonzero()[0])
    return None


def _going_back(finder: Finder, model: nn.Module, value: Tensor, samples: int) -> Place | None:
    """The first operation, from the loss on, that makes a gradient not finite of one that was; rather one whose fault gets as
    far as a parameter."""
    found: list[Place] = []
    arriving: dict[Any, Place] = {}  # at a node, a gradient that is not finite and where that comes from
    handles = [_watched(node, place, samples, found, arriving) for node, place in _nodes_behind(value, finder)]
    try:
        parameters = [p for p in model.parameters() if p.requires_grad]
        torch.autograd.grad(value, parameters, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    harmful = [cause for node, cause in arriving.items() if not node.next_functions]
    return next(iter(harmful or found), None)


def _watched(node: Any, place: Place, samples: int, found: list[Place], arriving: dict[Any, Place]) -> Any:
    """The handle of a hook on a node, which notes in `found` where it makes a gradient not finite, and in `arriving` who
    gets it."""

    def hook(passed: Sequence[Tensor | None], given: Sequence[Tensor | None]) -> None:
        broken = [t for t in passed if t is not None and not_finite(t)]
        if not broken:
            return
        taken = [t for t in given if t is not None and t.numel()]
        if any(map(not_finite, taken)):
            cause = arriving.get(node)
        else:
            largest = float(max(t.abs().max() for t in taken)) if taken else None
            cause = replace(place, direction="backward", sample=sample_of(broken, samples), largest=largest)
            found.append(cause)
        for tensor, (behind, _) in zip(passed, node.next_functions, strict=False):
            if cause is not None and behind is not None and tensor is not None and not_finite(tensor):
                arriving.setdefault(behind, cause)

    return node.register_hook(hook)


def _nodes_behind(value: Tensor, finder: Finder) -> list[tuple[Any, Place]]:
    """All nodes of autograd's graph but those of parameters, with the operation each belongs to: those inside an operation
    to the one that they lead up to."""
    places: dict[Any, Place] = {}
    waiting = [(value.grad_fn, Place("forward", "loss", "", in_loss=True))]
    while waiting:
        node, above = waiting.pop()
        if node is None or node in places or not node.next_functions:
            continue
        places[node] = finder.nodes.get(node, above)
        waiting.extend((each, places[node]) for each, _ in node.next_functions)
    return list(places.items())
