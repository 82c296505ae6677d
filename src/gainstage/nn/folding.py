"""Batch normalisation folded into the layers beside it, for inference."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gainstage.display import Displayed
from gainstage.errors import BadInput
from gainstage.nn.absorption import Absorbed, Absorber, Refused
from gainstage.nn.edits import Edits
from gainstage.nn.flow import check_model, flow_of
from gainstage.program import run_model, tensors_in
from gainstage.randomness import seeded
from gainstage.signal import untouched
from gainstage.signal.example import example_inputs

SAMPLES = 32  # that the network is traced and compared on


@dataclass(frozen=True)
class RefusedNorm:
    """A normalisation that stays as it is, by path, and why."""

    normalization: str
    reason: str


@dataclass(frozen=True, eq=False)
class Folding(Displayed):
    """What fold_batch_norm did. difference: the largest difference of an output before and after, as a share of the largest
    output, measured on its `data` or on noise."""

    folded: tuple[Absorbed, ...]
    refused: tuple[RefusedNorm, ...]
    difference: float
    edits: Edits = field(repr=False)

    def undo(self) -> None:
        """The network as it was, bit by bit: the same modules with the same parameters, and their values at that time."""
        self.edits.undo()

    def to_dict(self) -> dict[str, Any]:
        return {
            "folded": [asdict(each) for each in self.folded],
            "refused": [asdict(each) for each in self.refused],
            "difference": self.difference,
        }


def fold_batch_norm(model: nn.Module, data: Any = None) -> Folding:
    """Fold every batch normalisation that can be into the layer beside it, in place, for inference.

    In evaluation mode a normalisation is s x + t, unit by unit, with s = scale / sqrt(variance + eps) and t = shift - mean s
    (Ioffe and Szegedy 2015, algorithm 2). Behind a layer W x + b it becomes s W and s b + t; in front of one W s and
    b + W t. What stands beside it is read from one traced forward pass. Layers are nn.Linear with (batch, features) and
    convolutions with (batch, channels, ...), grouped and transposed ones too; one without bias gets one. An nn.Identity
    takes the normalisation's place; of one that insert_batch_norm hung on a module by a hook nothing is left. Parameters stay
    the objects that they are.
    Left alone, and listed with the reason: normalisations without running statistics, that do not run or run more than
    once, or that carry hooks or are parametrised; those with neither such a layer directly in front, read by nothing else,
    nor directly behind; beside a layer that runs more than once, is tied, parametrised or carries hooks of others than
    insert_batch_norm; and in front of a zero-padded or transposed convolution unless t is zero, for it would not reach the
    border.
    data: training data, or inputs alone, on which the network is traced and its outputs are compared; without it noise of
    a shape that is read off the first layer.
    Raises BadInput, with nothing changed, for what is no nn.Module, in training mode, where nothing can be folded (with the
    reasons), and where the outputs would change by more than half of their digits.
    """
    _check(model)
    x = _noise(example_inputs(model)) if data is None else example_inputs(model, data, SAMPLES)
    before = _outputs(model, x)
    with Edits() as edits:
        folded, refused = _fold_all(Absorber(model, flow_of(model, copy.deepcopy(x)), edits))
        difference = _difference(before, _outputs(model, x))
    return Folding(folded, refused, difference, edits)


def _check(model: nn.Module) -> None:
    check_model(model)
    if any(module.training for module in model.modules()):
        raise BadInput("folding is for inference, and part of the model is in training mode; call model.eval() first")
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise BadInput("the network has no batch normalisation; there is nothing to fold")
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise BadInput("part of the model is on the meta device, where nothing has values; load its weights first")


def _fold_all(absorber: Absorber) -> tuple[tuple[Absorbed, ...], tuple[RefusedNorm, ...]]:
    """Those folded, and those refused: again and again, for what one leaves free may let another follow."""
    folded: list[Absorbed] = []
    waiting = dict.fromkeys(absorber.normalizations(), "")
    while True:
        refused: dict[str, str] = {}
        for path in waiting:
            try:
                folded.append(absorber.absorb(path))
            except Refused as reason:
                refused[path] = str(reason)
        if len(refused) == len(waiting):
            break
        waiting = refused
    if not folded:
        reasons = "; ".join(f"{path or 'it'}: {reason}" for path, reason in refused.items())
        raise BadInput(f"no batch normalisation can be folded: {reasons}")
    return tuple(folded), tuple(RefusedNorm(path, reason) for path, reason in refused.items())


def _noise(x: Tensor) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x) if x.is_floating_point() else x


def _outputs(model: nn.Module, x: Any) -> list[Tensor]:
    with untouched(model), torch.no_grad(), seeded(0):
        found = tensors_in(run_model(model, copy.deepcopy(x)))
    return [tensor.detach().clone() for tensor in found if tensor.is_floating_point() and tensor.numel()]


def _difference(before: list[Tensor], after: list[Tensor]) -> float:
    worst = 0.0
    for old, new in zip(before, after, strict=True):
        share = float((new - old).abs().max()) / (float(old.abs().max()) or 1.0)
        if not share <= _tolerance(old.dtype, old.is_cuda):
            raise BadInput(
                f"folding would change the outputs by {share:.2g} of the largest: forward does more with a layer or a "
                "normalisation than to run it, or the outputs are not finite"
            )
        worst = max(worst, share)
    return worst


def _tolerance(dtype: torch.dtype, on_gpu: bool) -> float:
    """Half of the digits: rounding stays far below it, and another function of the inputs far above."""
    eps = torch.finfo(dtype).eps
    if on_gpu and dtype == torch.float32:
        eps = 2.0**-10  # it may multiply in TensorFloat-32, which has as many bits
    return eps**0.5
