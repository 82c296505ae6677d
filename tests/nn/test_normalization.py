"""Batch normalisation made to fit a layer, put into a network, and corrected by the statistics of a whole training set."""

import copy
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from gainstage.errors import BadInput
from gainstage.nn import batch_norm_after, dense_network, insert_batch_norm, keras_momentum, population_statistics
from gainstage.nn.normalization import _Moments
from gainstage.randomness import seeded
from tests.networks import Convolutional
from tests.tools import generator, normal, quiet, random_states, refill, same_states

LAYERS = [
    (lambda: nn.Linear(3, 5), (), nn.BatchNorm1d),
    (lambda: nn.Conv1d(3, 5, 1), (7,), nn.BatchNorm1d),
    (lambda: nn.ConvTranspose1d(3, 5, 1), (7,), nn.BatchNorm1d),
    (lambda: nn.Conv2d(3, 5, 1), (7, 6), nn.BatchNorm2d),
    (lambda: nn.ConvTranspose2d(3, 5, 1), (7, 6), nn.BatchNorm2d),
    (lambda: nn.Conv3d(3, 5, 1), (4, 3, 2), nn.BatchNorm3d),
    (lambda: nn.ConvTranspose3d(3, 5, 1), (4, 3, 2), nn.BatchNorm3d),
]


@pytest.mark.parametrize(("build", "places", "kind"), LAYERS)
def test_the_output_of_the_layer_is_normalised_unit_by_unit(build, places, kind):
    layer = quiet(build)
    norm = batch_norm_after(layer)
    assert type(norm) is kind
    output = norm(layer(3 + 2 * normal(64, 3, *places))).detach().transpose(0, 1).flatten(1)
    assert torch.allclose(output.mean(1), torch.zeros(5), atol=1e-5)
    assert torch.allclose(output.std(1, unbiased=False), torch.ones(5), atol=1e-3)


@pytest.mark.parametrize("settings", [{"dtype": torch.float64}, {"device": "meta"}], ids=str)
def test_dtype_and_device_are_the_layers(settings):
    layer = quiet(lambda: nn.Linear(3, 5, **settings))
    norm = batch_norm_after(layer)
    assert (norm.weight.dtype, norm.weight.device) == (layer.weight.dtype, layer.weight.device)
    assert norm.running_mean.device == layer.weight.device


@pytest.mark.parametrize("build", [nn.ReLU, lambda: nn.LSTM(3, 4), lambda: nn.Embedding(3, 4)])
def test_a_layer_without_channels_is_refused(build):
    layer = quiet(build)
    with pytest.raises(BadInput, match=f"batch normalisation does not fit behind a {type(layer).__name__}"):
        batch_norm_after(layer)


def dense(hidden, activation="relu"):
    return quiet(lambda: dense_network(20, hidden, 3, activation, generator=generator()))


# momentum


def test_keras_gives_the_weight_of_the_old_average_and_pytorch_that_of_the_new_batch():
    assert keras_momentum(0.99) == pytest.approx(0.01)
    assert keras_momentum(keras_momentum(0.7)) == pytest.approx(0.7)


def layer_of_five():
    return quiet(lambda: nn.Linear(3, 5))


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({}, 0.1),
        ({"convention": "keras"}, 0.1),
        ({"momentum": 0.3}, 0.3),
        ({"momentum": 0.9, "convention": "keras"}, 0.1),
        ({"momentum": 0.99, "convention": "keras"}, 0.01),
    ],
    ids=str,
)
def test_the_first_batch_enters_the_moving_mean_with_the_share_that_the_convention_says(settings, share):
    norm = batch_norm_after(layer_of_five(), **settings)
    x = 4 + normal(64, 5)
    norm(x)
    assert norm.momentum == pytest.approx(share)
    assert torch.allclose(norm.running_mean, share * x.mean(0), rtol=1e-5)


@pytest.mark.parametrize("convention", ["torch", "keras"])
@pytest.mark.parametrize("momentum", [0, 1, -0.1, 1.5, 99, math.nan, "0.9", True])
def test_a_momentum_outside_0_and_1_is_refused_in_either_convention(momentum, convention):
    with pytest.raises(BadInput, match="in PyTorch it is the weight of the new batch"):
        batch_norm_after(layer_of_five(), momentum, convention)
    with pytest.raises(BadInput, match="must lie between 0 and 1"):
        keras_momentum(momentum)


@pytest.mark.parametrize("momentum", [None, 0.1])
def test_an_unknown_convention_is_refused_also_where_it_would_not_matter(momentum):
    with pytest.raises(BadInput, match="no momentum convention is called 'tensorflow'; known are: torch, keras"):
        batch_norm_after(layer_of_five(), momentum, "tensorflow")


# the statistics of the training set


def trained(build, x, steps: int = 6):
    """A network whose moving averages are some way behind: a few batches, and weights that moved meanwhile."""
    model = refill(quiet(build))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for i in range(steps):
        optimizer.zero_grad()
        with torch.random.fork_rng(devices=[]):  # dropout draws
            model(x[16 * i : 16 * (i + 1)]).square().mean().backward()
        optimizer.step()
    return model


def images(samples: int = 100):
    return 1 + 2 * normal(samples, 1, 8, 8)


def three_norms():
    return insert_batch_norm(dense([16, 16, 16], "tanh"), first=True)


NETWORKS = [
    (three_norms, lambda: 3 + normal(100, 20)),
    (Convolutional, images),
    (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4)),
        lambda: normal(100, 2, 9),
    ),
]
networks = pytest.mark.parametrize(("build", "data"), NETWORKS, ids=["dense", "images", "series"])


def full_batch(model, x):
    """The slow twin: every normalisation in training mode on the whole set as one batch, the rest in evaluation mode."""
    model = copy.deepcopy(model).eval()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        output = model(x)
    return output, norms


def labelled(x):
    return x, torch.zeros(len(x), dtype=torch.long)


@networks
@pytest.mark.parametrize("batch_size", [100, 32, 7, 1])
def test_the_statistics_are_those_of_the_whole_set_as_one_batch_and_divide_by_n(build, data, batch_size):
    x = data()
    model = trained(build, x)
    output, norms = full_batch(model, x)
    table = population_statistics(model, labelled(x), batch_size)
    written = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for row, twin, norm in zip(table.rows, norms, written, strict=True):
        assert torch.allclose(row.mean.float(), twin.running_mean, rtol=1e-4, atol=1e-5)
        unbiased = row.variance.float() * row.values / (row.values - 1)
        assert torch.allclose(unbiased, twin.running_var, rtol=1e-5)
        assert torch.equal(norm.running_mean, row.mean.float())
        assert torch.equal(norm.running_var, row.variance.float())
    with torch.no_grad():
        assert torch.allclose(model.eval()(x), output, atol=1e-5)


def test_the_mutant_that_divides_by_n_less_one_is_seen():
    x = 3 + normal(20, 20)
    model = trained(three_norms, x, steps=1)
    output, _ = full_batch(model, x)
    population_statistics(model, labelled(x))
    with torch.no_grad():
        assert torch.allclose(model.eval()(x), output, atol=1e-5)
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm1d):
                norm.running_var.mul_(20 / 19)
        assert not torch.allclose(model(x), output, atol=1e-5)


def test_the_mutant_that_leaves_the_layers_below_uncorrected_is_seen():
    x = 3 + normal(100, 20)
    model = trained(three_norms, x)
    seen = []
    handles = [
        m.register_forward_pre_hook(lambda m, args: seen.append(args[0].mean(0)))
        for m in model.modules()
        if isinstance(m, nn.BatchNorm1d)
    ]
    with torch.no_grad():
        model.eval()(x)
    for handle in handles:
        handle.remove()
    rows = population_statistics(model, labelled(x)).rows
    assert torch.allclose(rows[0].mean.float(), seen[0], atol=1e-5), "nothing is below the first"
    assert all(
        not torch.allclose(row.mean.float(), mean, atol=1e-2) for row, mean in zip(rows[1:], seen[1:], strict=True)
    )


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(1, 59), unique=True, max_size=8), offset=st.sampled_from([0.0, 5.0, 1e3]))
def test_moments_do_not_depend_on_how_the_data_are_cut_into_batches(cuts, offset):
    x = (offset + normal(60, 3, 4)).double()
    moments = _Moments()
    for part in x.tensor_split(sorted(cuts)):
        moments.add(part)
    flat = x.transpose(0, 1).flatten(1)
    assert moments.count == 240
    assert torch.allclose(moments.mean, flat.mean(1), rtol=1e-12)
    assert torch.allclose(moments.variance, flat.var(1, correction=0), rtol=1e-9)


def test_the_moving_averages_stand_beside_the_population_in_decibels_and_standard_deviations():
    norm = nn.BatchNorm1d(2, eps=0.0)
    x = torch.tensor([[-1.0, 8.0], [1.0, 12.0]])  # means 0 and 10, variances 1 and 4
    norm.running_mean.copy_(torch.tensor([3.0, 9.0]))
    norm.running_var.copy_(torch.tensor([100.0, 4.0]))
    (row,) = population_statistics(norm, labelled(x)).rows
    assert row.std_db.tolist() == pytest.approx([20.0, 0.0])
    assert row.mean_shift.tolist() == pytest.approx([3.0, -0.5])
    assert row.to_dict() == pytest.approx(
        {
            "layer": "", "units": 2, "values": 2, "std_db": 10.0, "std_db_worst": 20.0,
            "mean_shift": math.sqrt(9.25 / 2), "mean_shift_worst": 3.0,
        }
    )  # fmt: skip
    assert norm.running_var.tolist() == [1.0, 4.0]


def test_a_unit_that_never_changes_has_finite_numbers():
    norm = nn.BatchNorm1d(2)
    (row,) = population_statistics(norm, labelled(torch.tensor([[0.0, 1.0], [0.0, 2.0]]))).rows
    assert row.std_db.isfinite().all()
    assert row.std_db[0] == pytest.approx(10 * math.log10((1 + 1e-5) / 1e-5))


def test_the_table_shows_itself_as_text_html_and_json(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    x = 3 + normal(100, 20)
    table = population_statistics(trained(three_norms, x), labelled(x))
    text = str(table)
    assert "activation2_normalization" in text
    assert "std, dB" in text
    assert "activation2_normalization" in table._repr_html_()
    assert [row["layer"] for row in json.loads(table.to_json())["rows"]] == [row.layer for row in table.rows]
    assert table.rows[0].layer == "input_normalization"


class OneUnused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.stateless = nn.BatchNorm1d(4, track_running_stats=False)

    def forward(self, x):
        return self.stateless(self.used(x))


def test_a_layer_that_never_runs_keeps_its_averages_and_is_named():
    model = OneUnused()
    table = population_statistics(model, labelled(3 + normal(10, 4)))
    assert ([row.layer for row in table.rows], table.skipped) == (["used"], ("unused",))
    assert "never ran: unused" in str(table)
    assert model.unused.running_mean.tolist() == [0.0] * 4


@pytest.mark.parametrize("batch_size", [100, 32])
def test_nothing_but_the_running_statistics_changes(batch_size):
    x = images()
    model = trained(Convolutional, x)
    model.train()
    model.norm.eval()
    state = {k: v.clone() for k, v in model.state_dict().items() if "running" not in k}
    modes = [m.training for m in model.modules()]
    gradients = [p.grad.clone() for p in model.parameters()]
    before = random_states()
    population_statistics(model, labelled(x), batch_size)
    assert same_states(random_states(), before)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())
    assert not any(m._forward_pre_hooks for m in model.modules())


class Noisy(Dataset):
    """Draws from the process's random state, as augmentations do."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] + torch.randn(self.x.shape[1]), 0


@pytest.mark.parametrize("own", [True, False], ids=["own generator", "the process's"])
def test_a_loader_that_shuffles_drops_and_draws_gives_every_layer_the_same_inputs_and_keeps_its_order(own):
    x = 3 + normal(100, 20)
    draw = generator(3) if own else None
    loader = DataLoader(Noisy(x), 32, shuffle=True, drop_last=True, generator=draw)
    model = trained(three_norms, x)
    before = None if draw is None else draw.get_state()
    with seeded(0):  # what each pass is seeded with
        kept = torch.cat([batch for batch, _ in loader])
    if draw is not None:
        draw.set_state(before)
    output, _ = full_batch(model, kept)
    population_statistics(model, loader)
    assert draw is None or torch.equal(draw.get_state(), before)
    with torch.no_grad():
        assert torch.allclose(model.eval()(kept), output, atol=1e-5)


@pytest.mark.parametrize(("batch_size", "passes"), [(100, [1, 1, 1, 1]), (25, [13, 9, 5, 1])])
def test_the_cost_is_one_pass_for_one_batch_and_one_shortened_pass_a_layer_for_more(batch_size, passes):
    x = 3 + normal(100, 20)
    model = trained(three_norms, x)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
    ran = [0] * 4
    handles = [
        norm.register_forward_hook(lambda *_, i=i: ran.__setitem__(i, ran[i] + 1)) for i, norm in enumerate(norms)
    ]
    population_statistics(model, labelled(x), batch_size)
    assert ran == passes
    for handle in handles:
        handle.remove()


class TakesMore(nn.Module):
    """Two inputs, by position or by name; its layer is called by keyword."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, a, b):
        return self.norm(input=a + b)


def test_inputs_may_be_tuples_and_dictionaries():
    a, b = normal(10, 4), 3 + normal(10, 4, seed=1)
    for x in ((a, b), {"b": b, "a": a}):
        (row,) = population_statistics(TakesMore(), (x, torch.zeros(10)), 4).rows
        assert torch.allclose(row.mean.float(), (a + b).mean(0), atol=1e-6)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(F.relu(self.norm(x)))


class FailsLate(nn.Module):
    """Runs the first batches, then raises."""

    def __init__(self, batches: int = 3):
        super().__init__()
        self.norm, self.other, self.left = nn.BatchNorm1d(4), nn.BatchNorm1d(4), batches

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out\nof paper")
        return self.other(self.norm(x))


def refused():
    x = 3 + normal(10, 4)
    return [
        (nn.Linear(4, 4), x, "no batch normalisation with moving averages"),
        (nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)), x, "no batch normalisation with moving averages"),
        (Twice(), x, "norm runs several times in a forward pass"),
        (FailsLate(), x, "forward failed on a batch of the data: RuntimeError: out of paper"),
        (FailsLate(99), x[:1], "norm saw one value a unit"),
        (FailsLate(99), torch.where(x > 3, x, torch.nan), "the inputs of norm hold NaN"),
        (FailsLate(99), normal(10, 5), "forward failed on a batch"),
    ]


@pytest.mark.parametrize("case", range(7))
def test_what_cannot_be_corrected_is_refused_and_the_averages_stay(case):
    model, x, message = quiet(refused)[case]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(BadInput, match=message):
        population_statistics(model, labelled(x), 5)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())
    assert all(m.training for m in model.modules())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_layers_that_do_not_run_batches_that_are_none_and_wrong_sizes_are_refused():
    model = OneUnused()
    model.forward = lambda x: x
    with pytest.raises(BadInput, match=r"no batch normalisation ran in forward; .* before torch.compile"):
        population_statistics(model, labelled(normal(10, 4)))
    loader = DataLoader(TensorDataset(*labelled(normal(10, 4))), 32, drop_last=True)
    with pytest.raises(BadInput, match="yields no batch"):
        population_statistics(OneUnused(), loader)
    with pytest.raises(BadInput, match="batch_size must be a whole number of at least 1, got 0"):
        population_statistics(OneUnused(), labelled(normal(10, 4)), 0)


# putting it into a network


def kinds(model):
    return [type(m).__name__ for m in model.modules() if not isinstance(m, nn.Sequential)]


def test_before_it_stands_between_layer_and_activation_and_the_useless_bias_goes():
    model = dense([16, 16])
    names = set(model.state_dict())
    assert insert_batch_norm(model) is model
    assert kinds(model) == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert model.hidden1.bias is None
    assert model.hidden2.bias is None
    assert model.output.bias is not None
    assert names - set(model.state_dict()) == {"hidden1.bias", "hidden2.bias"}, "no parameter is renamed"


def test_after_it_follows_the_activation_and_the_biases_stay():
    model = insert_batch_norm(dense([16, 8]), "after")
    assert kinds(model) == ["Linear", "ReLU", "BatchNorm1d", "Linear", "ReLU", "BatchNorm1d", "Linear"]
    assert [m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm1d)] == [16, 8]
    assert model.hidden1.bias is not None
    assert model(normal(10, 20)).shape == (10, 3)


def test_the_removed_bias_made_no_difference():
    x, layer = normal(64, 20), quiet(lambda: nn.Linear(20, 16))
    norm = batch_norm_after(layer)
    assert torch.allclose(norm(layer(x)), norm(F.linear(x, layer.weight)), atol=1e-5)


def test_first_takes_the_place_of_standardised_inputs():
    x = normal(64, 20)
    raw = 50 + 300 * x
    model = insert_batch_norm(dense([16]), first=True)
    assert kinds(model)[:2] == ["BatchNorm1d", "Linear"]
    assert torch.allclose(model(raw), model((raw - raw.mean(0)) / raw.std(0)), atol=1e-3)
    plain = insert_batch_norm(dense([16], "tanh"), "after")
    assert not torch.allclose(plain(raw), plain(x), atol=1e-1), "or this test could not fail"


def convolutions():
    block = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Dropout(0.1))
    twice = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Identity(), nn.GELU())
    return nn.Sequential(block, twice, nn.Flatten(), nn.Linear(24, 8), nn.PReLU(), nn.Linear(8, 3), nn.Softmax(1))


def test_nested_sequentials_pooling_and_names_that_are_numbers():
    model = quiet(convolutions)
    insert_batch_norm(model, first=True)
    assert kinds(model) == [
        "BatchNorm2d", "Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU", "Dropout", "Conv2d", "Identity", "BatchNorm2d",
        "GELU", "Flatten", "Linear", "BatchNorm1d", "PReLU", "Linear", "Softmax",
    ]  # fmt: skip
    assert model.get_submodule("0.2_normalization").num_features == 4
    assert model.get_submodule("0.0").bias is not None, "behind pooling it stays"
    assert model.get_submodule("1.0").bias is None
    assert model.get_submodule("3").bias is None
    with torch.random.fork_rng(devices=[]):
        assert model(images(10)).shape == (10, 3)


@pytest.mark.parametrize("position", ["before", "after"])
def test_what_is_normalised_already_is_left_alone_and_a_second_time_there_is_nothing_to_do(position):
    model = quiet(
        lambda: nn.Sequential(
            *(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()),
            *(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(0.1), nn.LayerNorm(4)),
            *(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
        )
    )
    insert_batch_norm(model, position, first=True)
    assert sum(isinstance(m, nn.BatchNorm1d) for m in model) == 3
    with pytest.raises(BadInput, match="there is nothing to normalise"):
        insert_batch_norm(model, position, first=True)


def test_a_layer_that_is_used_again_keeps_its_bias_and_a_shared_block_gets_one():
    def build():
        shared, block = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        return nn.Sequential(shared, nn.ReLU(), shared, block, block, nn.Linear(4, 2))

    model = insert_batch_norm(quiet(build))
    assert model.get_submodule("0").bias is not None
    assert kinds(model[4])[:3] == ["Linear", "BatchNorm1d", "Tanh"]
    assert len(model[4]) == 3
    assert model(normal(10, 4)).shape == (10, 2)


def test_mode_device_and_dtype_are_the_networks():
    model = nn.Sequential(
        nn.Linear(4, 4, device="meta", dtype=torch.float64), nn.ReLU(), nn.Linear(4, 2, device="meta")
    )
    insert_batch_norm(model.eval(), first=True)
    for norm in (model[0], model[2]):
        assert (norm.weight.device.type, norm.weight.dtype, norm.training) == ("meta", torch.float64, False)


class Reversed(nn.Sequential):
    def forward(self, x):
        return x


NOTHING = [
    (lambda: nn.Sequential(), {}, "there is nothing to normalise"),
    (lambda: nn.Sequential(nn.Linear(4, 2), nn.Softmax(1)), {}, "there is nothing to normalise"),
    (lambda: nn.Sequential(nn.Linear(4, 2), nn.Sigmoid(), nn.Flatten()), {}, "there is nothing to normalise"),
    (lambda: nn.Sequential(nn.Embedding(4, 4), nn.ReLU(), nn.Linear(4, 2)), {}, "there is nothing to normalise"),
    (lambda: nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten(), nn.ReLU(), nn.Linear(4, 2)), {}, "there is nothing"),
    (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
        {"position": "in"},
        "known are: before, after",
    ),
    (lambda: nn.Linear(4, 2), {}, "works on an nn.Sequential with layers of known size, not on a Linear"),
    (lambda: Reversed(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), {}, "works on an nn.Sequential"),
    (lambda: nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2)), {}, "layers of known size"),
    (
        lambda: nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
        {"first": True},
        "does not fit in front of a Embedding",
    ),
]


@pytest.mark.parametrize(("build", "settings", "message"), NOTHING)
def test_where_nothing_can_be_done_the_model_stays_as_it_was(build, settings, message):
    model = quiet(build)
    before = repr(model)
    with pytest.raises(BadInput, match=message):
        insert_batch_norm(model, **settings)
    assert repr(model) == before
