"""One step under observation."""

import math

import pytest
import torch
from torch.nn import functional as F

from gainstage.monitor.fuses import Fuses
from gainstage.monitor.recording import MOST_READ, GuardedProbes, Recording
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
    ledger = recording.result().ledger(theory=True)
    change = (model.hidden1.weight.detach() - before).norm() / before.norm()
    assert len(recording.graph.stages) == len(ledger) == 3
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
    ledger = recording.result().ledger(theory=True)
    assert ledger.row("right").gain == pytest.approx(
        ledger.row("right").signal / float(x[1].var(0).mean().sqrt()), rel=1e-4
    )
    assert ledger.row("right").expected_gain > 0


def test_a_step_whose_forward_was_not_seen_says_so():
    recording = Recording(deep(1, "relu"), ((normal(4, 20),), {}), Fuses())
    with pytest.raises(RuntimeError, match="was not seen"):
        recording.result()


def run(recording, model, x, y):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    output = model(x)
    seen = recording.forward_done(output)
    F.cross_entropy(output, y).backward()
    recording.before_step(optimizer, Scaling())
    optimizer.step()
    recording.stepped()
    optimizer.zero_grad()
    return recording.result() if seen else None


def test_a_step_by_the_script_of_an_earlier_one_reads_the_same():
    model, twin, (x, y) = deep(3, "tanh"), deep(3, "tanh"), blobs(32)
    first = Recording(model, ((x,), {}), Fuses())
    run(first, model, x, y)
    run(Recording(twin, ((x,), {}), Fuses()), twin, x, y)
    by_script = run(Recording(model, ((x,), {}), Fuses(), first.script), model, x, y)
    traced = run(Recording(twin, ((x,), {}), Fuses()), twin, x, y)
    assert by_script.readings == pytest.approx(traced.readings, rel=1e-6, nan_ok=True)
    assert by_script.units == traced.units
    assert by_script.graph is first.graph


def test_a_script_that_does_not_fit_is_let_go():
    model, (x, y) = deep(1, "tanh"), blobs(32)
    first = Recording(model, ((x,), {}), Fuses())
    run(first, model, x, y)
    shorter = Recording(model, ((x[:8],), {}), Fuses(), first.script)
    assert run(shorter, model, x[:8], y[:8]).samples == 8
    assert shorter.script is not first.script
    model.activation1 = torch.nn.ReLU()
    other = Recording(model, ((x,), {}), Fuses(), first.script)
    assert run(other, model, x, y) is None
    assert other.script is None


def test_by_a_script_large_tensors_are_read_in_part():
    """Rows of a weight, samples of an output; the trace reads all."""
    model, (x, y) = deep(1, "tanh", width=2048), blobs(128)
    first = Recording(model, ((x,), {}), Fuses())
    exact = run(first, model, x, y).readings
    before = model.hidden1.weight.detach().clone()
    measured = run(Recording(model, ((x,), {}), Fuses(), first.script), model, x, y).readings
    changed = (model.hidden1.weight.detach() - before).double()
    step = math.ceil(changed.numel() / MOST_READ)
    assert step > 1
    assert measured["update", 0] == pytest.approx(float(changed[::step].square().mean()), rel=1e-4)
    hidden = model.activation1(torch.nn.functional.linear(x, before, model.hidden1.bias)).detach()
    place = first.graph.leaving(0)
    # the bias has moved a little since
    assert measured["signal", place] == pytest.approx(float(hidden[::4].var(0).mean()), rel=0.02)
    assert measured["signal", place] == pytest.approx(exact["signal", place], rel=0.1)
    assert measured.keys() == exact.keys()


def test_an_error_of_a_probe_is_told_and_leaves_the_others_alone():
    fuses = Fuses()
    probes = GuardedProbes(fuses)
    probes.stage_output(0, 0, torch.eye(4).to_sparse())
    probes.stage_output(1, 1, normal(4, 3))
    values = probes.read()
    with pytest.warns(RuntimeWarning, match="switched the probe of .* off"):
        fuses.tell()
    assert ("signal", 1) in values
