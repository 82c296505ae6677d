"""What others do at a training step. Each peer makes of a training the action that is timed; where it cannot run, it raises."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.networks import Training


def naive_hooks(training: Training) -> Callable[[], None]:
    """Module hooks as they are usually written: mean and standard deviation of every leaf's output and of its gradient."""
    seen: dict[tuple[str, str], tuple[float, float]] = {}

    def note(kind: str, name: str, tensor: Tensor) -> None:
        seen[kind, name] = tensor.mean().item(), tensor.std().item()

    for name, module in training.model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _m, _x, out, name=name: note("output", name, out.detach()))
            module.register_full_backward_hook(lambda _m, _x, grads, name=name: note("gradient", name, grads[0]))
    return training.step


def skorch_doctor(training: Training) -> Callable[[], object]:
    """skorch's SkorchDoctor, fitted on one batch for one epoch: it records each activation and gradient whole."""
    from skorch import NeuralNet
    from skorch.helper import SkorchDoctor

    net = NeuralNet(
        training.model,
        criterion=type(training.loss),
        optimizer=torch.optim.SGD,
        lr=1e-6,
        max_epochs=1,
        batch_size=len(training.x),
        train_split=None,
        callbacks="disable",
        verbose=0,
        device=str(training.x.device),
    ).initialize()
    return lambda: SkorchDoctor(net).fit(training.x, training.y)


def cockpit(training: Training) -> Callable[[], None]:
    """Cockpit with its cheapest set of quantities ("economy"), tracked at every step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from backpack import extend
        from cockpit import Cockpit
        from cockpit.utils.configuration import configuration
    model, loss = extend(training.model), extend(nn.CrossEntropyLoss())
    tracker, steps = Cockpit(model.parameters(), quantities=configuration("economy")), count()

    def step() -> None:
        number = next(steps)
        training.optimizer.zero_grad()
        logits = model(training.x).movedim(-1, 1)
        mean = loss(logits, training.y)
        each = F.cross_entropy(logits, training.y, reduction="none").reshape(len(training.x), -1).mean(1)
        given = {"batch_size": len(each), "individual_losses": each, "loss": mean, "optimizer": training.optimizer}
        with tracker(number, info=given):
            mean.backward(create_graph=tracker.create_graph(number))
        training.optimizer.step()

    return step
