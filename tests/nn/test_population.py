"""Batch normalisations corrected by the statistics of a whole training set."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from gainstage.errors import BadInput
from gainstage.nn import dense_network, population_statistics
from gainstage.nn.population import _Moments
from gainstage.randomness import seeded
from tests.networks import Convolutional
from tests.tools import generator, normal, quiet, random_states, refill, same_states


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
    return quiet(
        lambda: dense_network(
            20, [16, 16, 16], 3, "tanh", normalization="batch", normalize_inputs=True, generator=generator()
        )
    )


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


def test_the_table_is_plain_facts_and_shows_itself():
    x = 3 + normal(100, 20)
    table = population_statistics(trained(three_norms, x), labelled(x))
    assert [row["layer"] for row in json.loads(table.to_json())["rows"]] == [row.layer for row in table.rows]
    assert table.rows[0].layer == "normalization0"
    assert "normalization2" in str(table)


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


@pytest.mark.parametrize(
    "alone", [lambda x: x, lambda x: x.numpy(), lambda x: x.double().numpy()], ids=["tensor", "array", "double"]
)
@pytest.mark.parametrize(("batch_size", "sizes"), [(100, [100]), (40, [40, 40, 20])])
def test_inputs_alone_are_batched_and_give_what_they_give_with_targets(alone, batch_size, sizes):
    x = images()
    model, seen = trained(Convolutional, x), []
    twin = copy.deepcopy(model)
    rows = population_statistics(twin, labelled(x), batch_size).rows
    kept = x.clone()
    handle = model.conv.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    found = population_statistics(model, alone(x), batch_size).rows
    handle.remove()
    assert [(row.layer, row.values, row.mean.tolist()) for row in found] == [
        (row.layer, row.values, row.mean.tolist()) for row in rows
    ]
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())
    assert seen[-len(sizes) :] == sizes
    assert torch.equal(x, kept)


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
        (FailsLate(), x, r"forward failed on inputs of shape \(5, 4\): RuntimeError: out of paper"),
        (FailsLate(99), x[:1], "norm saw one value a unit"),
        (FailsLate(99), torch.where(x > 3, x, torch.nan), "the inputs of norm hold NaN"),
        (FailsLate(99), normal(10, 5), r"forward failed on inputs of shape \(5, 5\)"),
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


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "statistics are taken over a training set; give its inputs"),
        (torch.zeros(0, 4), "the data set is empty"),
        (torch.tensor(1.0), "the data set is empty"),
        (np.zeros((3, 4), dtype=object), "the inputs cannot be made a tensor"),
        ("data.csv", "data must be .*, not a str"),
        (5, "data must be .*, not a int"),
    ],
    ids=str,
)
def test_what_is_no_data_is_refused_in_one_sentence(data, message):
    with pytest.raises(BadInput, match=message):
        population_statistics(OneUnused(), data)


@pytest.mark.parametrize(
    ("model", "got"), [(None, "a NoneType"), (OneUnused, "the class OneUnused; did you mean"), (len, "a builtin")]
)
def test_what_is_no_network_is_refused_in_one_sentence(model, got):
    with pytest.raises(BadInput, match=rf"the model must be a torch\.nn\.Module, got {got}"):
        population_statistics(model, normal(10, 4))
