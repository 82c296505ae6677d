"""The process's random states: seeded inside, as before afterwards."""

import random

import numpy as np
import pytest
import torch

from gainstage.randomness import preserved, seeded
from tests.tools import random_states, same_states


def draw():
    """One number of each of the process's generators."""
    return random.random(), float(np.random.rand()), float(torch.rand(()))


DRAWS = [random.random, np.random.rand, lambda: torch.rand(())]


@pytest.mark.parametrize("context", [preserved, lambda: seeded(3)], ids=["preserved", "seeded"])
@pytest.mark.parametrize("draw_one", DRAWS, ids=["python", "numpy", "torch"])
def test_states_are_afterwards_as_before(context, draw_one):
    before = random_states()
    with context():
        draw_one()
        assert not same_states(random_states(), before), "inside, numbers are really drawn"
    assert same_states(random_states(), before)


@pytest.mark.parametrize("context", [preserved, lambda: seeded(3)], ids=["preserved", "seeded"])
def test_states_are_as_before_after_an_error_as_well(context):
    def fail():
        with context():
            raise KeyError(draw())

    before = random_states()
    with pytest.raises(KeyError):
        fail()
    assert same_states(random_states(), before)


def test_preserved_goes_on_from_the_states_that_it_finds():
    with seeded(1):
        expected = draw()
    with seeded(1), preserved():
        assert draw() == expected


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 7, -1])
def test_the_seed_decides_every_draw(seed):
    with seeded(seed):
        first = draw()
    with seeded(seed):
        again = draw()
    with seeded(seed + 1):
        other = draw()
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_seeds_can_be_nested():
    with seeded(1):
        one, two = draw(), draw()
    with seeded(1):
        assert draw() == one
        with seeded(2):
            draw()
        assert draw() == two


def test_every_device_in_use_is_put_back(monkeypatch):
    states = ["first device", "second device"]
    put_back = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: list(states))
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", put_back.append)
    with preserved():
        pass
    assert put_back == [states]


def test_devices_not_in_use_are_not_woken(monkeypatch):
    def wake():
        raise AssertionError("asking for its state starts a device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", wake)
    with preserved():
        pass
