"""check(): trace, measure and judge one network; the only place, with fix() beside it, that strings these together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from gainstage.data import Batch
from gainstage.display import Displayed
from gainstage.errors import BadInput
from gainstage.initialization import materialize
from gainstage.program import Program, as_program, check_batch, tensors_in
from gainstage.rules import DEPTHS, Context, Depth, Finding, can_speak, choose, flatten, run_rules
from gainstage.signal import Graph, Ledger, Prediction, measure, predict
from gainstage.signal.noise import gradient_noise_scale
from gainstage.signal.untouched import has_lazy_layers
from gainstage.trial import Trials

SAMPLES = 256  # measured in preflight: a dead unit is then known to fire on fewer than 1.2 % of the inputs
LEVELS = DEPTHS[:3]
EMPTY = "call model.to_empty(device='cpu'), then gainstage.initialize(model) or model.load_state_dict(...)"


@dataclass(frozen=True)
class Checkup(Displayed):
    """A network's ledger and its findings, root causes first. At level "static" nothing is measured: ledger is None, and
    prediction has what theory expects of the untouched network. undecided: by the code of a rule, why it could not tell."""

    findings: tuple[Finding, ...]
    ledger: Ledger | None
    graph: Graph
    level: Depth
    prediction: Prediction | None = None
    undecided: Mapping[str, str] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        """True when no rule fired."""
        return not self.findings

    @property
    def codes(self) -> list[str]:
        """Codes of all findings, consequences included."""
        return [finding.code for finding in flatten(self.findings)]

    def to_dict(self) -> dict[str, Any]:
        return {
            "level": self.level,
            "findings": [finding.to_dict() for finding in self.findings],
            "undecided": dict(self.undecided),
            "ledger": None if self.ledger is None else self.ledger.to_dict(),
            "prediction": None if self.prediction is None else self.prediction.to_dict(),
            "coverage": self.graph.coverage,
        }


def check(
    model: Any,
    loss: Any = None,
    data: Any = None,
    *,
    optimizer: Any = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    valid: Any = None,
    level: str = "preflight",
    select: Iterable[str] | None = None,
    ignore: Iterable[str] | None = None,
    seed: int = 0,
) -> Checkup:
    """Measure one network on real data and list what is wrong with it; leaves no trace on anything.

    model: an nn.Module, or a whole Program; one wrapped by torch.compile, DataParallel or DistributedDataParallel is
    measured bare. loss: called as loss(output, targets); left out, the loss that the forward pass has computed itself:
    output.loss, output["loss"], or the only number it puts out. data: (x, y) tensors or arrays, a dictionary with the
    inputs and their "labels", a Dataset or a DataLoader. level: "static" (graph and weights), "preflight" (one
    batch forward and backward) or "trial".
    select, ignore: rules by code, prefix or name. seed: which samples are measured. The modules are measured in the
    train or eval mode they are in.
    Raises BadInput, in one sentence, when something handed in cannot be used.
    """
    program = as_program(model, loss, data, optimizer=optimizer, batch_size=batch_size, epochs=epochs, valid=valid)
    return check_program(program, level=level, select=select, ignore=ignore, seed=seed)


def check_program(
    program: Program,
    *,
    level: str = "preflight",
    select: Iterable[str] | None = None,
    ignore: Iterable[str] | None = None,
    seed: int = 0,
) -> Checkup:
    """The same for a Program."""
    program = program.bare()
    depth = _depth(level)
    rules = choose(select, ignore)
    if select is not None and not any(can_speak(rule, depth) for rule in rules):
        raise BadInput(f"none of the selected rules can speak at level {depth!r}; use level='preflight'")
    _check_values("the model's weights", (*program.model.parameters(), *program.model.buffers()), EMPTY)
    batch = program.source.sample(max(SAMPLES, program.batch_size or 0), seed)
    _check_values("the data", tensors_in(batch), "give data that hold values")
    if has_lazy_layers(program.model):
        program = _with_shapes(program, batch[0])
    context, prediction = _look(program, batch, depth, seed)
    verdict = run_rules(rules, context, depth)
    if not verdict.findings:
        _check_loss(context.ledger)
    return Checkup(verdict.findings, context.ledger, context.graph, depth, prediction, verdict.undecided)


def _look(program: Program, batch: Batch, depth: Depth, seed: int) -> tuple[Context, Prediction | None]:
    """What the rules may look at, and at level "static" the prediction."""
    if depth == "static":
        check_batch(*batch)
        graph, prediction = predict(program.model, batch[0])
        return Context(program.model, graph, None, program, batch), prediction
    outputs: list[Any] = []
    graph, ledger = measure(program.model, program.loss, batch, lambda output: outputs.append(_detached(output)))
    if depth == "trial":
        ledger = replace(ledger, noise_scale=gradient_noise_scale(program.model, program.loss, batch))
    trials = Trials(program, seed) if depth == "trial" else None
    return Context(program.model, graph, ledger, program, batch, outputs[0], trials), None


def _detached(output: Any) -> Any:
    return output.detach() if isinstance(output, Tensor) else output


def _check_loss(ledger: Ledger | None) -> None:
    """BadInput for a loss that is not finite where no rule has found anything."""
    if ledger is None or ledger.loss is None or math.isfinite(ledger.loss):
        return
    first = "look for a log, a root or a division in it" if ledger.non_finite is None else f"see {ledger.non_finite}"
    raise BadInput(f"the loss of finite inputs and outputs is {ledger.loss}; {first}")


def _check_values(what: str, tensors: Iterable[Tensor], remedy: str) -> None:
    if any(tensor.is_meta for tensor in tensors):
        raise BadInput(f"{what} are on the meta device, where tensors have no values to measure; {remedy}")


def _with_shapes(program: Program, x: Any) -> Program:
    """A twin whose lazy layers have taken their shapes from the inputs; the user's own stay as they are."""
    twin = program.copy()
    materialize(twin.model, x)
    return twin


def _depth(level: str) -> Depth:
    for known in LEVELS:
        if level == known:
            return known
    raise BadInput(f"no level is called {level!r}; known are: {', '.join(LEVELS)}")
