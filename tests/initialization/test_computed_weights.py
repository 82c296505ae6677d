"""Weights that are computed from others: weight norm takes what was drawn, of either kind; spectral norm is left alone."""

import pytest
import torch
from torch import nn

import gainstage as gs
from tests.nn.test_blocks import old, pruned, symmetric
from tests.tools import generator, normal, quiet

WEIGHT_NORMS = {"parametrised": nn.utils.parametrizations.weight_norm, "old": old(nn.utils.weight_norm)}
SPECTRAL_NORMS = {"parametrised": nn.utils.parametrizations.spectral_norm, "old": old(nn.utils.spectral_norm)}
weight_norms = pytest.mark.parametrize("norm", WEIGHT_NORMS.values(), ids=WEIGHT_NORMS)
spectral_norms = pytest.mark.parametrize("norm", SPECTRAL_NORMS.values(), ids=SPECTRAL_NORMS)


def dense(wrap=lambda layer: layer):
    return quiet(lambda: nn.Sequential(wrap(nn.Linear(20, 64)), nn.ReLU(), wrap(nn.Linear(64, 3))))


def images(wrap=lambda layer: layer):
    return quiet(
        lambda: nn.Sequential(
            wrap(nn.Conv2d(2, 8, 3)), nn.ELU(), wrap(nn.ConvTranspose2d(8, 4, 2, groups=2)), nn.Flatten()
        )
    )


class Text(nn.Module):
    """An embedding, a recurrent layer with its recurrent weights wrapped, and an output."""

    def __init__(self, wrap=lambda layer, name="weight": layer):
        super().__init__()
        self.words = wrap(nn.Embedding(50, 16))
        self.memory = wrap(nn.LSTM(16, 8, batch_first=True), "weight_hh_l0")
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.memory(self.words(x))[0][:, -1])


NETWORKS = {
    "dense": (dense, normal(8, 20)),
    "images": (images, normal(8, 2, 8, 8)),
    "text": (lambda *wrap: quiet(lambda: Text(*wrap)), torch.arange(40).reshape(8, 5)),
}
networks = pytest.mark.parametrize(("build", "x"), NETWORKS.values(), ids=NETWORKS)


def weights(model, x):
    with torch.no_grad():
        model(x)  # weight norm computes the weight anew
    names = ("weight", "weight_ih_l0", "weight_hh_l0")
    found = {(path, name): getattr(m, name, None) for path, m in model.named_modules() for name in names}
    return {key: value.detach() for key, value in found.items() if value is not None and "parametriz" not in key[0]}


@weight_norms
@networks
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_under_weight_norm_the_computed_weight_is_the_one_drawn(build, x, norm, dtype):
    plain, normed = build().to(dtype), build(norm).to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    rows = gs.initialize(plain, x, generator=generator()).rows
    table = gs.initialize(normed, x, generator=generator())
    assert (table.rows, table.skipped) == (rows, ())
    expected, found = weights(plain, x), weights(normed, x)
    assert found.keys() == expected.keys()
    rounding = 4 * torch.finfo(dtype).eps
    assert all(torch.allclose(found[key], expected[key], rtol=rounding, atol=rounding / 100) for key in expected)


@weight_norms
def test_weight_norm_is_kept(norm):
    model = dense(norm)
    names = [name for name, _ in model.named_parameters()]
    gs.initialize(model, normal(8, 20), generator=generator())
    assert [name for name, _ in model.named_parameters()] == names
    model(normal(8, 20)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@spectral_norms
@networks
def test_spectral_norm_is_left_alone_and_named(build, x, norm):
    model = build(norm)
    wrapped = [path for path, _ in model.named_modules() if path in ("0", "2", "words", "memory")]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for scheme in ("auto", "isometric", "data"):
        table = gs.initialize(model, x, scheme=scheme, generator=generator())
        assert [name.split(".")[0] for name in table.skipped] == wrapped
        after = model.state_dict()
        kept = [name for name in before if "orig" in name or name.endswith(("_u", "_v"))]
        assert len(kept) >= 3 * len(wrapped)
        assert all(torch.equal(before[name], after[name]) for name in kept)


@pytest.mark.parametrize("wrap", [symmetric, pruned])
def test_weights_that_cannot_be_set_are_left_alone_and_named(wrap):
    model = quiet(lambda: nn.Sequential(wrap(nn.Linear(20, 20)), nn.ReLU(), nn.Linear(20, 3)))
    before = {name: value.clone() for name, value in model[0].state_dict().items()}
    table = gs.initialize(model, normal(8, 20), generator=generator())
    assert table.skipped == ("0",)
    assert all(torch.equal(before[name], value) for name, value in model[0].state_dict().items())
