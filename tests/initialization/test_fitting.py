"""Weights scaled to the data in one forward pass."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gainstage as gs
from gainstage.errors import BadInput
from tests.initialization.test_computed_weights import SPECTRAL_NORMS, WEIGHT_NORMS, dense
from tests.networks import Convolutional, deep, residual
from tests.tools import generator, normal, quiet


def pre_activations(model, x, first=False):
    """Standard deviation of each layer's output in a plain forward pass, the last or the first where it runs twice."""
    found, handles = {}, []

    def note(name, output):
        if not (first and name in found):
            found[name] = output.detach().float()

    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            handles.append(module.register_forward_hook(lambda m, i, o, n=name: note(n, o.clone())))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model(x)
    for handle in handles:
        handle.remove()
    return {name: float(z.flatten(1).var(0).mean().sqrt()) for name, z in found.items()}


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu", "logistic"])
def test_every_pre_activation_has_unit_variance_on_the_batch(activation):
    model, x = deep(10, activation), 50 * normal(256, 20) + 3
    gs.initialize(model, x, scheme="data", generator=generator())
    stds = list(pre_activations(model, x).values())
    assert stds[:-1] == pytest.approx([1.0] * 10, rel=1e-3)
    assert stds[-1] == pytest.approx(0.1, rel=1e-3)


def test_without_the_fit_they_would_not():
    model, x = deep(10, "gelu"), 50 * normal(256, 20) + 3
    gs.initialize(model, x, scheme="exact", generator=generator())
    assert max(list(pre_activations(model, x).values())[:-1]) > 2


def test_it_takes_two_forward_passes_whatever_the_depth():
    calls = []
    model = deep(30, "tanh")
    model.register_forward_pre_hook(lambda module, inputs: calls.append(1))
    gs.initialize(model, normal(64, 20), scheme="data", generator=generator())
    assert len(calls) == 2, "one to trace, one to fit"


def test_convolutions_and_buffers():
    model, x = quiet(lambda: Convolutional(dropout=0.0)), normal(64, 1, 8, 8)
    statistics = model.norm.running_mean.clone()
    gs.initialize(model, x, scheme="data", generator=generator())
    assert pre_activations(model, x)["conv"] == pytest.approx(1.0, rel=1e-3)
    model_fresh = quiet(lambda: Convolutional(dropout=0.0))
    assert torch.equal(statistics, model_fresh.norm.running_mean)


class Zero(nn.Module):
    def forward(self, x):
        return 0 * x


class Shared(nn.Module):
    """A layer that runs twice, and two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.twice, self.first, self.second, self.head = (nn.Linear(20, 20) for _ in range(4))
        self.second.weight = self.first.weight

    def forward(self, x):
        h = F.relu(self.twice(F.relu(self.twice(x))))
        return self.head(F.relu(self.second(F.relu(self.first(h)))))


def test_a_shared_weight_is_scaled_where_it_is_used_first():
    model, x = quiet(Shared), 50 * normal(256, 20)
    gs.initialize(model, x, scheme="data", generator=generator())
    stds = pre_activations(model, x, first=True)
    assert stds.pop("head") == pytest.approx(0.1, rel=1e-3)
    assert stds.pop("second") != pytest.approx(1.0, rel=1e-2), "the weight is the first's"
    assert list(stds.values()) == pytest.approx([1.0, 1.0], rel=1e-3)


class Text(nn.Module):
    """Layers behind an embedding, a recurrent layer and attention; the embedding is tied to the output where asked."""

    def __init__(self, tied):
        super().__init__()
        self.words, self.memory = nn.Embedding(30, 16, padding_idx=0), nn.LSTM(16, 16, batch_first=True)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.hidden, self.head = nn.Linear(16, 16), nn.Linear(16, 30)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, x):
        h = self.memory(self.words(x))[0]
        return self.head(F.relu(self.hidden(self.attention(h, h, h)[0])).mean(1))


@pytest.mark.parametrize("tied", [False, True])
def test_behind_embeddings_recurrent_layers_and_attention(tied):
    model, x = quiet(lambda: Text(tied)), torch.randint(30, (256, 5), generator=generator())
    gs.initialize(model, x, scheme="data", generator=generator())
    stds = pre_activations(model, x)
    assert stds["hidden"] == pytest.approx(1.0, rel=1e-3)
    assert (stds["head"] == pytest.approx(0.1, rel=1e-3)) != tied, "tied, its scale is the embedding's"


@pytest.mark.parametrize("norm", WEIGHT_NORMS.values(), ids=WEIGHT_NORMS)
def test_through_weight_norm(norm):
    model, x = dense(norm), 50 * normal(256, 20)
    gs.initialize(model, x, scheme="data", generator=generator())
    kept = model[0].weight.detach().clone()
    assert list(pre_activations(model, x).values()) == pytest.approx([1.0, 0.1], rel=1e-3)
    assert torch.allclose(kept, model[0].weight), "also before the pass that computes it anew"


@pytest.mark.parametrize("norm", SPECTRAL_NORMS.values(), ids=SPECTRAL_NORMS)
def test_behind_spectral_norm_the_others_are_scaled_to_what_really_comes(norm):
    model = quiet(
        lambda: nn.Sequential(norm(nn.Linear(20, 32)), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    )
    x = 50 * normal(256, 20)
    model.eval()
    gs.initialize(model, x, scheme="data", generator=generator())
    stds = pre_activations(model, x)
    assert stds.pop("0") > 5
    assert list(stds.values()) == pytest.approx([1.0, 0.1], rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model, x = deep(5, "gelu").to(dtype), (50 * normal(256, 20)).to(dtype)
    gs.initialize(model, x, scheme="data", generator=generator())
    stds = list(pre_activations(model, x).values())
    rounding = 5 * torch.finfo(dtype).eps  # of the weight, once a layer
    assert stds == pytest.approx([1.0] * 5 + [0.1], rel=rounding)


@pytest.mark.parametrize("training", [True, False])
def test_with_dropout_normalisation_and_convolutions(training):
    model, x = quiet(lambda: Convolutional(dropout=0.25)).train(training), 20 * normal(64, 1, 8, 8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the masks of the pass that measures below
        gs.initialize(model, x, scheme="data", generator=generator())
    assert list(pre_activations(model, x).values()) == pytest.approx([1.0, 1.0, 0.1], rel=1e-3)


def test_a_layer_that_puts_out_a_constant_keeps_its_weights():
    model = residual(gated=True)
    for block in model.blocks:
        nn.init.constant_(block[2].bias, 0.1)
    x = normal(250, 20)
    gs.initialize(model, x, scheme="data", generator=generator())
    stds = pre_activations(model, x)
    assert all(stds[f"blocks.{n}.2"] < 1e-6 for n in range(6))
    assert all(stds[f"blocks.{n}.0"] == pytest.approx(1.0, rel=1e-3) for n in range(6))


def test_the_table_tells_which_layers_could_not_be_scaled():
    unscaled = {}
    for name, model, x in (
        ("gates", residual(), normal(250, 20)),
        ("tied", quiet(lambda: Text(True)), torch.randint(30, (64, 5), generator=generator())),
        ("constant", quiet(lambda: nn.Sequential(Zero(), nn.Linear(20, 3))), normal(64, 20)),
    ):
        table = gs.initialize(model, x, scheme="data", generator=generator())
        unscaled[name] = [row.stage for row in table.rows if "not scaled" in row.reason]
    assert unscaled == {"gates": [], "tied": ["head"], "constant": ["1"]}


def test_it_needs_data():
    with pytest.raises(BadInput, match="give data="):
        gs.initialize(deep(1, "relu"), scheme="data")
