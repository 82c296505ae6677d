"""What a rule may look at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gainstage.data import Batch
from gainstage.errors import GainstageError
from gainstage.objective import Objective, Targets, describe, recognise
from gainstage.program import Program
from gainstage.signal import Graph, Ledger
from gainstage.trial import Trials


class NotEnoughEvidence(GainstageError):
    """A rule cannot tell: the message says, in one sentence, what it has and what it needs."""


@dataclass(frozen=True)
class Context:
    """What is known of a network. Each part is None where it is not.

    ledger: at depth `static` nothing is measured. program: inside a user's own training loop there is none. batch: the
    measured inputs and targets; output: what the network made of them, in the mode that it is in. trials: short trainings of
    copies, from depth `trial` on; each is run when a rule first looks at it.
    """

    model: nn.Module
    graph: Graph
    ledger: Ledger | None
    program: Program | None = None
    batch: Batch | None = None
    output: Any = None
    trials: Trials | None = None

    @cached_property
    def objective(self) -> Objective | None:
        """Which loss the program lowers."""
        if self.program is None or self.batch is None or self.output is None:
            return None
        return recognise(self.program.loss, self.output, self.batch[1])

    @cached_property
    def survey(self) -> Batch | None:
        """Inputs and targets of more samples than were measured, up to 10,000, where they lie in memory; else the batch."""
        return None if self.program is None or self.batch is None else self.program.source.survey(self.batch)

    @cached_property
    def targets(self) -> Targets | None:
        """What kind of targets the training data have."""
        return None if self.survey is None else describe(self.survey[1])

    @cached_property
    def optimizer(self) -> Optimizer | None:
        """The program's optimiser, or one as it would be made for it; None where none was given."""
        if self.program is None or self.program.optimizer is None:
            return None
        return self.program.make_optimizer()

    @property
    def logits(self) -> Tensor | None:
        """The output, where it is one tensor with a row a sample."""
        return self.output if isinstance(self.output, Tensor) and self.output.ndim > 0 else None
