"""Leave no trace: a network that was checked goes on bit-identically to a twin that never was."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

import gainstage as gs
from gainstage.errors import BadInput
from gainstage.signal import measure, predict
from gainstage.signal.untouched import untouched
from tests.networks import Convolutional, Fails, deep
from tests.tools import blobs, normal, quiet, random_states, same_states

IMAGES = (normal(32, 1, 8, 8), torch.arange(32) % 3)


def snapshot(model):
    """All that a check must leave alone, by value and, where it matters, by identity."""
    return {
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "versions": [t._version for t in (*model.parameters(), *model.buffers())],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "gradient ids": [id(p.grad) for p in model.parameters() if p.grad is not None],
        "modes": [m.training for m in model.modules()],
        "hooks": [
            [list(getattr(m, kind)) for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
            for m in model.modules()
        ],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "requires grad": [p.requires_grad for p in model.parameters()],
        "random": random_states(),
        "grad mode": torch.is_grad_enabled(),
    }


def differences(before, after):
    """Names of what differs between two snapshots."""
    found = [k for k in before["state"] if not torch.equal(before["state"][k], after["state"][k])]
    for a, b in zip(before["gradients"], after["gradients"], strict=True):
        if (a is None) != (b is None) or (a is not None and not torch.equal(a, b)):
            found.append("gradients")
    found += [] if same_states(before["random"], after["random"]) else ["random"]
    keys = ("gradient ids", "modes", "hooks", "attributes", "requires grad", "grad mode")
    return found + [key for key in keys if before[key] != after[key]]


def train(model, data, steps=5):
    """A few steps whose result depends on everything a check could disturb."""
    x, y = data
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    noise = (random.random(), np.random.rand(), torch.rand(1).item())
    return [v.clone() for v in model.state_dict().values()], noise


def mixed_modes():
    model = quiet(Convolutional)
    model.norm.eval()
    return model


def with_gradients():
    model = quiet(Convolutional)
    x, y = IMAGES
    with torch.random.fork_rng(devices=[]):
        nn.functional.cross_entropy(model(x), y).backward()
    model.head.weight.grad = None
    return model


def with_hooks():
    model = quiet(Convolutional)
    model.conv.register_forward_hook(_noop)
    model.conv.register_forward_pre_hook(_noop)
    model.head.register_full_backward_hook(_noop)
    model.register_forward_hook(_noop)
    return model


def _noop(*_arguments):
    return None


def with_hidden_state():
    model = quiet(Convolutional)
    model.conv.last_output = None
    model.conv.register_forward_hook(_remember)
    return model


def _remember(module, _inputs, output):
    module.last_output = output
    module.newly_made = output


CASES = [lambda: quiet(Convolutional), mixed_modes, with_gradients, with_hooks, with_hidden_state]


@pytest.mark.parametrize("build", CASES)
@pytest.mark.parametrize("level", ["static", "preflight"])
def test_a_check_leaves_everything_as_it_was(build, level):
    model = build()
    before = snapshot(model)
    gs.check(model, nn.CrossEntropyLoss(), IMAGES, level=level)
    assert differences(before, snapshot(model)) == []


@pytest.mark.parametrize("build", CASES)
def test_a_prediction_leaves_everything_as_it_was(build):
    model = build()
    before = snapshot(model)
    predict(model, IMAGES[0])
    assert differences(before, snapshot(model)) == []


def test_the_networks_inputs_and_their_gradients_are_left_alone():
    x = normal(32, 1, 8, 8).requires_grad_()
    kept, version = x.detach().clone(), x._version
    predict(quiet(Convolutional), x)
    measure(quiet(Convolutional), nn.CrossEntropyLoss(), (x, IMAGES[1]))
    assert torch.equal(x, kept)
    assert (x.grad, x._version, x._backward_hooks) == (None, version, None)


@pytest.mark.draws
@pytest.mark.parametrize("build", [mixed_modes, with_gradients, lambda: quiet(Convolutional)])
def test_a_checked_network_trains_on_bit_identically_to_its_twin(build):
    checked = build()
    twin = copy.deepcopy(checked)
    for parameter, original in zip(twin.parameters(), checked.parameters(), strict=True):
        parameter.grad = None if original.grad is None else original.grad.clone()
    seed()
    gs.check(checked, nn.CrossEntropyLoss(), IMAGES)
    weights, noise = train(checked, IMAGES)
    seed()
    twin_weights, twin_noise = train(twin, IMAGES)
    assert noise == twin_noise
    assert all(torch.equal(a, b) for a, b in zip(weights, twin_weights, strict=True))


def seed():
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)


def test_a_forward_that_raises_half_way_leaves_everything_as_it_was():
    model = quiet(Fails)
    before = snapshot(model)
    with pytest.raises(BadInput, match="out of paper"):
        gs.check(model, nn.CrossEntropyLoss(), blobs())
    assert differences(before, snapshot(model)) == []


def test_a_loss_with_buffers_is_left_alone_too():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, output, y):
            self.calls += 1
            return nn.functional.cross_entropy(output, y)

    loss = Counting()
    gs.check(deep(1, "relu"), loss, blobs())
    assert float(loss.calls) == 0


def test_a_graph_that_the_user_still_holds_can_be_run_backward_after_a_check():
    model = mixed_modes()
    x, y = IMAGES
    with torch.random.fork_rng(devices=[]):
        loss = nn.functional.cross_entropy(model(x), y)
    gs.check(model, nn.CrossEntropyLoss(), IMAGES)
    loss.backward()
    assert model.head.weight.grad is not None


def leak_buffers(model):
    model.norm.running_mean += 1


def leak_modes(model):
    model.train()


def leak_gradients(model):
    model.conv.weight.grad = torch.zeros_like(model.conv.weight)


def leak_hooks(model):
    model.conv.register_forward_hook(_noop)


def leak_weights(model):
    with torch.no_grad():
        model.head.bias += 1e-7


def leak_randomness(model):
    torch.rand(1)


def leak_attributes(model):
    model.conv.memory = 1


LEAKS = [leak_buffers, leak_modes, leak_gradients, leak_hooks, leak_weights, leak_randomness, leak_attributes]


@pytest.mark.draws
@pytest.mark.parametrize("leak", LEAKS)
def test_the_helper_of_these_tests_notices_a_leaky_check(leak):
    model = mixed_modes()
    before = snapshot(model)
    leak(model)
    assert differences(before, snapshot(model)) != []


@pytest.mark.draws
@pytest.mark.parametrize("leak", [leak_buffers, leak_modes, leak_gradients, leak_randomness, leak_attributes])
def test_untouched_undoes_what_happens_inside(leak):
    model = mixed_modes()
    before = snapshot(model)
    with untouched(model):
        leak(model)
    assert differences(before, snapshot(model)) == []


class Remembering(nn.Module):
    """Keeps a list, a dictionary and a plain tensor that each forward pass writes to; its embedding renormalises itself."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(10, 8, max_norm=1.0), nn.Linear(8, 3)
        self.seen, self.cache, self.total = [1], {"a": 1}, torch.zeros(3)

    def forward(self, x):
        output = self.head(self.words(x).mean(1))
        self.seen.append(2)
        self.cache["b"] = 2
        self.total += output.detach().sum(0)
        self.extra = nn.Linear(1, 1) if not hasattr(self, "extra") else self.extra
        return output


@pytest.mark.draws
def test_containers_plain_tensors_and_renormalised_embeddings_are_restored():
    model = Remembering()
    weight = model.words.weight.detach().clone()
    gs.check(model, nn.CrossEntropyLoss(), (torch.arange(60).reshape(20, 3) % 10, torch.arange(20) % 3))
    assert (model.seen, model.cache, model.total.tolist()) == ([1], {"a": 1}, [0.0] * 3)
    assert torch.equal(model.words.weight, weight)
    assert not hasattr(model, "extra")


def test_an_in_place_first_module_does_not_write_to_the_users_data():
    x, y = blobs()
    kept = x.clone()
    model = nn.Sequential(nn.ReLU(inplace=True), deep(1, "relu"))
    gs.check(model, nn.CrossEntropyLoss(), (x, y))
    gs.fit(model, nn.CrossEntropyLoss(), (x, y), (x, y), epochs=1, progress=False)
    assert torch.equal(x, kept)
