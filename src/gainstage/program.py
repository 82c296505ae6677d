"""Program: what is being trained, and the two calls that every measurement and every training makes of it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.optim import Optimizer

from gainstage.data import Source, as_source
from gainstage.errors import BadInput, GainstageError
from gainstage.optimizers import OptimizerLike, check_optimizer, make_optimizer

Loss = Callable[[Any, Any], Tensor]


@dataclass
class Program:
    """A model with its loss, its data and, optionally, what trains it.

    model: an nn.Module called with the inputs (a tuple as positional, a dict as keyword arguments, or whole where the
    forward pass takes one dict).
    loss: called as loss(output, targets) with the model's whole output, returns one number; loss_inside takes the one that
    the forward pass has computed.
    data, valid: (x, y) tensors or arrays, a Dataset or a DataLoader.
    optimizer: a name, a torch.optim.Optimizer on the model's parameters, or a callable that takes the parameters.
    clip_norm: what the gradient's norm over all parameters is clipped to before each step; None: it is not.
    Remedies change a program in place and hand back how to undo it. Raises BadInput where a part cannot be used.
    """

    model: nn.Module
    loss: Loss
    data: Any
    optimizer: OptimizerLike = None
    batch_size: int | None = None
    epochs: int | None = None
    valid: Any = None
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            hint = f"; did you mean {self.model.__name__}()?" if isinstance(self.model, type) else ""
            raise BadInput(f"the model must be a torch.nn.Module, got {_kind(self.model)}{hint}")
        if not callable(self.loss) or isinstance(self.loss, type):
            raise BadInput(f"the loss must be callable as loss(output, targets), got {_kind(self.loss)}")
        for name in ("batch_size", "epochs"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise BadInput(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise BadInput(f"clip_norm must be positive, got {self.clip_norm}")
        check_optimizer(self.optimizer)
        self.data = as_source(self.data)
        self.valid = None if self.valid is None else as_source(self.valid)

    @property
    def source(self) -> Source:
        """The training data."""
        return self.data

    def copy(self) -> Program:
        """A twin with its own model, loss and optimiser, and the same data."""
        try:
            model, loss, optimizer = copy.deepcopy((self.model, self.loss, self.optimizer))
        except Exception as error:
            raise BadInput(f"the model cannot be copied for a trial ({error}); use level='preflight'") from error
        return replace(self, model=model, loss=loss, optimizer=optimizer)

    def bare(self) -> Program:
        """The same with the model itself in place of what is wrapped around it; see unwrapped."""
        model = unwrapped(self.model)
        return self if model is self.model else replace(self, model=model)

    def make_optimizer(self) -> Optimizer:
        """The optimiser instance on the model's parameters."""
        return make_optimizer(self.optimizer, self.model)


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def as_program(model: Any, loss: Any = None, data: Any = None, **settings: Any) -> Program:
    """A Program from (model, loss, data, ...), or a Program handed over whole with `settings` that are not None on top."""
    given = {key: value for key, value in settings.items() if value is not None}
    if isinstance(model, Program):
        if loss is not None or data is not None:
            raise BadInput("give either a Program or model, loss and data, not both")
        return replace(model, **given) if given else model
    if data is None:
        raise BadInput("a model is measured with its loss on its data: give model, loss and data, or a Program")
    return Program(model, loss_inside if loss is None else loss, data, **given)


def loss_inside(output: Any, _targets: Any = None) -> Tensor:
    """The loss that a model has computed in its forward pass: output.loss, output["loss"], or the only number among what it
    put out; BadInput where there is none."""
    named = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    numbers = (
        [named] if isinstance(named, Tensor) else [t for t in tensors_in(output) if t.numel() == 1 and t.ndim == 0]
    )
    if len(numbers) != 1:
        raise BadInput(
            "no loss was given, and the model's output does not hold one (output.loss, output['loss'], or one number); "
            "give loss=, called as loss(output, targets)"
        )
    return numbers[0]


def unwrapped(model: nn.Module) -> nn.Module:
    """The module itself, where torch.compile, DataParallel or DistributedDataParallel is wrapped around it."""
    if type(model).__name__ == "OptimizedModule":  # known by its name: to import its type takes longer than a check
        return unwrapped(model.get_submodule("_orig_mod"))
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return unwrapped(model.module)
    return model


def is_sharded(module: nn.Module) -> bool:
    """True for a module that FSDP2 shards; known by its name: to import its type needs torch.distributed. Its parameters do
    not tell: they are whole while it runs."""
    return any(cls.__name__ == "FSDPModule" for cls in type(module).__mro__)


def run_model(model: nn.Module, x: Any) -> Any:
    """The model's output for a batch of inputs; BadInput when forward raises or returns no tensor."""
    _check_devices(model, x)
    try:
        output = _called(model, x)
    except GainstageError:
        raise
    except Exception as error:
        raise BadInput(
            f"the model's forward failed on inputs of shape {shape_of(x)}: {type(error).__name__}: {_one_line(error)}"
        ) from error
    if not tensors_in(output):
        raise BadInput(f"the model must return a tensor, but its forward returned {_kind(output)}; return the output")
    return output


def _called(model: nn.Module, x: Any) -> Any:
    if type(x) in (tuple, list):
        return model(*x)
    if isinstance(x, Mapping) and not _takes_whole(model, x):
        return model(**x)
    return model(x)


def _takes_whole(model: nn.Module, x: Mapping[str, Any]) -> bool:
    """True for a forward pass that has no such keywords, but one place for a dictionary."""
    signature = inspect.signature(model.forward)
    for arguments, keywords in (((), x), ((x,), {})):
        try:
            signature.bind(*arguments, **keywords)
            return bool(arguments)
        except TypeError:
            continue
    return False


def run_loss(loss: Loss, output: Any, y: Any, within: AbstractContextManager | None = None) -> Tensor:
    """The loss of a batch, one number, computed `within` a context; BadInput when it raises or is no scalar."""
    _check_class_numbers(loss, output, y)
    try:
        with within or nullcontext():
            value = loss(output, y)
    except GainstageError:
        raise
    except Exception as error:
        raise BadInput(
            f"the loss failed on outputs of shape {shape_of(output)} and targets of shape {shape_of(y)}: "
            f"{type(error).__name__}: {_one_line(error)}"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else _kind(value)
        raise BadInput(f"the loss must be one number, but it returned {what}; reduce it, for example with .mean()")
    return value.reshape(())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in a nesting of tuples (named ones and PackedSequence too), lists, mappings (a batch of transformers too)
    and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in tensors_in(item)]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    if is_dataclass(value) and not isinstance(value, type):
        return [tensor for field in fields(value) for tensor in tensors_in(getattr(value, field.name, None))]
    return []


def shape_of(value: Any) -> str:
    """Shapes of the tensors in `value`, for messages."""
    shapes = [str(tuple(tensor.shape)) for tensor in tensors_in(value)]
    return shapes[0] if len(shapes) == 1 else f"[{', '.join(shapes)}]"


def _check_devices(model: nn.Module, x: Any) -> None:
    parameter = next(model.parameters(), None)
    tensor = next(iter(tensors_in(x)), None)
    if parameter is None or tensor is None or parameter.device == tensor.device:
        return
    raise BadInput(
        f"the model is on {parameter.device} and its data on {tensor.device}; "
        f"move one of them, for example x.to('{parameter.device}')"
    )


def _check_class_numbers(loss: Loss, output: Any, y: Any) -> None:
    """Class numbers beyond the outputs crash deep inside torch, on a GPU even the whole process: say it first."""
    takes_classes = isinstance(loss, (nn.CrossEntropyLoss, nn.NLLLoss)) or loss in (
        nn.functional.cross_entropy,
        nn.functional.nll_loss,
    )
    if not (takes_classes and isinstance(output, Tensor) and isinstance(y, Tensor)) or output.ndim < 2:
        return
    if y.is_floating_point() or y.ndim != output.ndim - 1 or y.numel() == 0:
        return
    classes, ignored = output.shape[1], getattr(loss, "ignore_index", -100)
    wrong = y[((y < 0) | (y >= classes)) & (y != ignored)]
    if wrong.numel():
        raise BadInput(
            f"{wrong.numel()} labels are outside 0..{classes - 1}, for example {int(wrong[0])}: "
            f"the network has {classes} outputs; give it more outputs or number the classes from 0"
        )


def check_batch(x: Any, y: Any) -> int:
    """Number of samples in a batch; BadInput for a batch of one and for values that are not finite."""
    for what, value in (("inputs", x), ("targets", y)):
        for tensor in tensors_in(value):
            _check_finite(what, tensor)
    samples = _samples(x, y)
    if samples < 2:
        raise BadInput(
            f"a batch of {samples} sample{'s' * (samples != 1)} cannot be measured: "
            "the signal is what differs between samples; give at least two"
        )
    return samples


def _samples(x: Any, y: Any) -> int:
    """Sequences of a packed batch; tensors in a list of samples of their own sizes, as many as there are targets; else the
    length of the first tensor."""
    if isinstance(x, PackedSequence):
        return int(x.batch_sizes[0])
    first, targets = next(iter(tensors_in(x)), None), next(iter(tensors_in(y)), None)
    size = 0 if first is None or first.ndim == 0 else len(first)
    parts = [part for part in x if isinstance(part, list)] if isinstance(x, tuple) else []
    lists = targets is not None and targets.ndim and size != len(targets) and any(len(p) == len(targets) for p in parts)
    return len(targets) if lists and targets is not None else size


def _check_finite(what: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        return
    wrong = ~torch.isfinite(tensor)
    if wrong.any():
        place = ", ".join(map(str, wrong.nonzero()[0].tolist()))
        raise BadInput(
            f"the {what} hold {int(wrong.sum())} values that are NaN or infinite (the first at index [{place}] of the batch); "
            "remove or impute them"
        )
