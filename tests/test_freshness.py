"""Fresh draws of every common initialiser are recognised, and trained networks are not taken for fresh ones."""

import copy

import pytest
import torch
from torch import nn

import gainstage as gs
from gainstage import freshness
from gainstage.freshness import is_untrained, looks_drawn
from gainstage.signal import trace
from tests.networks import deep
from tests.tools import blobs, generator, quiet

SHAPES = [(8, 8), (64, 64), (10, 300), (300, 10), (512, 64)]
INITIALIZERS = {
    "normal": lambda w, g: nn.init.normal_(w, 0, 0.3, generator=g),
    "uniform": lambda w, g: nn.init.uniform_(w, -1, 1, generator=g),
    "truncated": lambda w, g: nn.init.trunc_normal_(w, generator=g),
    "positive": lambda w, g: nn.init.uniform_(w, 0, 1, generator=g),
    "orthogonal": lambda w, g: nn.init.orthogonal_(w, generator=g),
    "zeros": lambda w, g: nn.init.zeros_(w),
    "constant": lambda w, g: nn.init.constant_(w, 0.5),
    "sparse": lambda w, g: nn.init.normal_(w, generator=g).mul_(torch.rand(w.shape, generator=g) < 0.2),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", INITIALIZERS)
def test_fresh_draws_are_recognised(name, shape):
    for seed in range(20):
        with torch.no_grad():
            weight = INITIALIZERS[name](torch.empty(shape), generator(seed))
        assert looks_drawn(weight)


def test_one_learned_direction_stands_out():
    weight = torch.randn(64, 64, generator=generator()) / 8
    learned = 3 * torch.outer(*(torch.randn(64, generator=generator(s)) / 8 for s in (1, 2)))
    assert not looks_drawn(weight + learned)


def test_uneven_rows_stand_out():
    weight = torch.randn(64, 64, generator=generator())
    weight[:4] *= 3
    assert not looks_drawn(weight)


def test_a_direction_that_all_rows_and_columns_share_alike_stands_out_by_its_strength_alone():
    weight = torch.randn(64, 64, generator=generator()) / 8
    signs = [torch.randn(64, generator=generator(s)).sign() / 8 for s in (1, 2)]
    learned = weight + 3 * torch.outer(*signs)
    assert freshness._even(learned - learned.mean())
    assert not looks_drawn(learned)


def test_rows_of_uneven_strength_stand_out_though_no_direction_does():
    weight = torch.randn(64, 256, generator=generator())
    weight[:32] *= 1.2
    assert freshness._edge_kept(weight - weight.mean())
    assert not looks_drawn(weight)


def untrained(model, x):
    return is_untrained(model, trace(model, x))


@pytest.mark.parametrize("depth", [1, 6])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_trained_network_is_recognised_by_its_weights_or_biases(depth, optimizer):
    model, (x, y) = deep(depth, "relu"), blobs()
    assert untrained(model, x)
    gs.fit(model, nn.CrossEntropyLoss(), (x, y), optimizer=optimizer, epochs=5, progress=False)
    assert not untrained(model, x)


def test_torchs_default_biases_count_as_fresh_and_as_trained_after_training():
    x, y = blobs()
    model = quiet(lambda: nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3)))
    trained = copy.deepcopy(model)
    assert untrained(model, x)
    gs.fit(trained, nn.CrossEntropyLoss(), (x, y), optimizer="adam", epochs=30, progress=False)
    assert not untrained(trained, x)


def test_without_biases_the_learned_directions_give_it_away():
    x, y = blobs()
    model = quiet(lambda: nn.Sequential(nn.Linear(20, 64, bias=False), nn.ReLU(), nn.Linear(64, 8, bias=False)))
    assert untrained(model, x)
    gs.fit(model, nn.CrossEntropyLoss(), (x, y), optimizer="adam", epochs=60, progress=False)
    assert not untrained(model, x)


def test_a_network_without_biases_is_given_away_by_its_normalisation():
    x, y = blobs()

    def network():
        return nn.Sequential(nn.Linear(20, 64, bias=False), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 8, bias=False))

    model = quiet(network)
    assert untrained(model, x)
    gs.fit(model, nn.CrossEntropyLoss(), (x, y), optimizer="adam", epochs=2, progress=False)
    assert not untrained(model, x)


def test_sharded_weights_are_not_taken_for_fresh_ones():
    model = deep(2, "relu")
    graph = trace(model, blobs()[0])
    assert is_untrained(model, graph)
    model.hidden1.weight.to_local = lambda: None  # as a DTensor has it
    assert not is_untrained(model, graph)
