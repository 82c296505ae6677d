"""One step under observation."""

import pytest
import torch
from torch.nn import functional as F

from gainstage.monitor.fuses import Fuses
from gainstage.monitor.recording import GuardedProbes, Recording, power
from gainstage.monitor.scaling import Scaling
from tests.networks import TwoInputs, deep
from tests.tools import blobs, normal, quiet


def test_forward_backward_and_update_are_seen():
    model, (x, y) = deep(2, "tanh"), blobs()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = Recording(model, ((x,), {}), Fuses())
    output = model(x)
    recording.forward_done(output)
    F.cross_entropy(output, y).backward()
    before = model.hidden1.weight.detach().clone()
    recording.before_step(optimizer, Scaling())
    optimizer.step()
    recording.stepped()
    graph, ledger = recording.result()
    change = (model.hidden1.weight.detach() - before).norm() / before.norm()
    assert len(graph.stages) == len(ledger) == 3
    assert ledger.samples == 256
    assert ledger.rows[0].update == pytest.approx(float(change), rel=1e-3)


def test_a_second_input_is_measured_as_such():
    model, x = quiet(TwoInputs), (normal(16, 20), 5 * normal(16, 12, seed=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording = Recording(model, (x, {}), Fuses())
    output = model(*x)
    recording.forward_done(output)
    F.cross_entropy(output, torch.arange(16) % 3).backward()
    recording.before_step(optimizer, Scaling())
    optimizer.step()
    recording.stepped()
    _, ledger = recording.result()
    assert ledger.row("right").gain == pytest.approx(
        ledger.row("right").signal / float(x[1].var(0).mean().sqrt()), rel=1e-4
    )
    assert ledger.row("right").expected_gain > 0


def test_a_step_whose_forward_was_not_seen_says_so():
    recording = Recording(deep(1, "relu"), ((normal(4, 20),), {}), Fuses())
    with pytest.raises(RuntimeError, match="was not seen"):
        recording.result()


def test_an_error_of_a_probe_is_told_and_leaves_the_others_alone():
    fuses = Fuses()
    probes = GuardedProbes(fuses)
    probes.stage_output(0, 0, torch.eye(4).to_sparse())
    probes.stage_output(1, 1, normal(4, 3))
    with pytest.warns(RuntimeWarning, match="probe of outputs off"):
        fuses.tell()
    assert ("signal", 1) in probes.values


def test_the_part_of_a_weight_may_be_empty():
    assert power(torch.empty(0, 3)) == 0.0
    assert power(torch.full((2, 3), 2.0)) == 4.0
