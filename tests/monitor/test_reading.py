"""What was measured at a step, and how much of it is kept."""

from array import array
from itertools import pairwise

import torch
from torch.nn import functional as F

from gainstage.monitor.fuses import Fuses
from gainstage.monitor.reading import MOST, Measured, remember
from gainstage.monitor.recording import Recording
from gainstage.monitor.scaling import Scaling
from tests.networks import deep
from tests.tools import blobs


def measured(seed=0):
    model, (x, y) = deep(2, "tanh"), blobs(32, seed=seed)
    recording = Recording(model, ((x,), {}), Fuses())
    output = model(x)
    recording.forward_done(output)
    F.cross_entropy(output, y).backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recording.before_step(optimizer, Scaling())
    optimizer.step()
    recording.stepped()
    return recording.result()


def test_a_ledger_without_theory_has_the_same_measured_columns():
    numbers = measured()
    plain, whole = numbers.ledger(theory=False), numbers.ledger(theory=True)
    for bare, full in zip(plain.rows, whole.rows, strict=True):
        assert bare.expected_gain is bare.expected_backward_gain is bare.gain_error is None
        assert full.expected_gain > 0
        assert (bare.signal, bare.gain, bare.gradient, bare.update) == (
            full.signal,
            full.gain,
            full.gradient,
            full.update,
        )


def small(number):
    return Measured(None, (("signal", 0),), array("d", [number]), {0: 1}, 8)


def test_readings_share_what_never_changes():
    history = []
    one, two = (remember(history, step, measured(step)) for step in range(2))
    assert one.measured.keys is two.measured.keys
    assert one.measured.units is two.measured.units
    assert one.measured.readings != two.measured.readings


def test_a_long_history_is_thinned_out_and_keeps_its_ends():
    history = []
    for step in range(20 * MOST):
        remember(history, step, small(step))
        assert len(history) <= MOST
        assert (history[0].step, history[-1].step) == (0, step)
    steps = [reading.step for reading in history]
    assert steps == sorted(set(steps))
    assert len(history) > MOST / 4
    assert all(reading.measured.readings == {("signal", 0): reading.step} for reading in history)
    apart = [b - a for a, b in pairwise(steps)]
    assert max(apart) < 20 * MOST / 32, "the beginning is not forgotten"


def test_a_reading_makes_its_ledger_once():
    reading = remember([], 3, measured())
    assert reading.ledger is reading.ledger
    assert reading.step == 3
