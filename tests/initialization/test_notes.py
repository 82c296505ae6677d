"""What the table says where no weights, or no theory, can help; and that it says nothing elsewhere."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gainstage as gs
from gainstage.initialization.notes import DEAD, MIXED, SLOPES, UNSTABLE, plain_depth
from gainstage.initialization.plans import PLANS
from gainstage.signal import trace
from gainstage.theory import KNOWN, expectation, level_keeping
from gainstage.theory.meanfield import RUNAWAY
from tests.networks import Function, deep, residual
from tests.tools import generator, normal, quiet


class Snake(nn.Module):
    """One frequency a unit."""

    def __init__(self, frequencies):
        super().__init__()
        self.a = nn.Parameter(frequencies)

    def forward(self, z):
        return z + torch.sin(self.a * z) ** 2 / self.a


def plain(depth, activation, width=20, normalization=None):
    """Layers with a module of `activation()` behind each, and one without."""

    def layers():
        for _ in range(depth):
            yield nn.Linear(width, width)
            yield from [normalization(width)] if normalization else []
            yield activation()

    return quiet(lambda: nn.Sequential(*layers(), nn.Linear(width, 3)))


def function(f):
    return lambda: Function(f)


def reasons(model, x=None, **options):
    table = gs.initialize(model, normal(16, 20) if x is None else x, generator=generator(), **options)
    assert not table.skipped
    return [row.reason for row in table.rows]


def said(note, reason):
    """Whether a note, whatever numbers it has, is part of a reason."""
    return note.split("{")[0] in reason


def silent(found):
    return not any(said(note, reason) for note in (DEAD, MIXED, SLOPES, UNSTABLE) for reason in found)


# ---------------------------------------------------------------- parameters inside an activation
@pytest.mark.parametrize("scheme", ["auto", "exact", "isometric"])
def test_an_activation_with_a_parameter_per_unit_is_named(scheme):
    first, second, output = reasons(plain(2, lambda: Snake(torch.linspace(0.5, 2, 20))), scheme=scheme)
    note = MIXED.format("mul+sin+pow+div+add")
    assert first.endswith(note)
    assert second.endswith(note)
    assert note not in output
    assert ("not known, taken for 1" in second) == ("not known, taken for 1" in output) == (scheme == "exact")


def test_scaled_to_the_data_nothing_is_taken_for_anything():
    assert silent(reasons(plain(2, lambda: Snake(torch.linspace(0.5, 2, 20))), normal(64, 20), scheme="data"))


@pytest.mark.parametrize("scheme", PLANS)
def test_parameters_that_are_alike_are_numbers(scheme):
    found = reasons(plain(2, lambda: Snake(torch.ones(20))), normal(64, 20), scheme=scheme)
    assert silent(found)
    assert not any("not known" in reason for reason in found)


def test_slopes_that_differ_are_taken_with_their_mean():
    model = plain(2, lambda: nn.PReLU(20))
    with torch.no_grad():
        model[3].weight.copy_(torch.linspace(0, 1, 20))
    assert [SLOPES in reason for reason in reasons(model)] == [False, True, False]
    half = plain(1, lambda: nn.PReLU(init=0.5))
    differing, alike = (gs.initialize(net, normal(16, 20), generator=generator()).rows for net in (model, half))
    assert differing[1].variance == pytest.approx(alike[0].variance)


def test_one_slope_computed_in_the_forward_pass_is_no_slope_per_unit():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.root = nn.Parameter(torch.tensor(0.5))

        def forward(self, z):
            return F.prelu(z, self.root.square().expand(1))

    assert silent(reasons(plain(1, Root)))


# ---------------------------------------------------------------- dead functions
class Beside(nn.Module):
    """Uses the output of its layer times a factor, added to its input where asked."""

    def __init__(self, factor, skip):
        super().__init__()
        self.layer, self.factor, self.skip = nn.Linear(20, 20), factor, skip

    def forward(self, x):
        z = self.layer(x)
        unused = z * 0  # noqa: F841
        return x + self.factor * z if self.skip else self.factor * z


@pytest.mark.parametrize("scheme", PLANS)
def test_a_function_that_does_not_depend_on_its_input_is_named(scheme):
    model = plain(1, function(lambda z: z * 0))
    assert [DEAD in reason for reason in reasons(model, normal(64, 20), scheme=scheme)] == [True, False]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("factor", "dead"), [(0.0, True), (1.0, False), (nn.Parameter(torch.zeros(1)), False)])
def test_dead_is_what_nothing_leaves_and_no_gate(skip, factor, dead):
    model = quiet(lambda: nn.Sequential(Beside(factor, skip), nn.Linear(20, 3)))
    assert [DEAD in reason for reason in reasons(model)] == [dead, False]
    assert [DEAD in reason for reason in reasons(model[0])] == [dead], "also where it is the last layer"


def test_a_layer_that_feeds_another_one_beside_a_zero_is_not_dead():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(20, 20), nn.Linear(20, 3)

        def forward(self, x):
            z = self.layer(x)
            return self.head(z), z * 0

    assert silent(reasons(quiet(Two)))


def test_behind_a_constant_the_table_does_not_claim_a_scale():
    *_, behind = reasons(plain(1, function(lambda z: z * 0 + 1)), normal(64, 20), scheme="data")
    assert behind.endswith("not scaled: on the data it puts out a constant, or its weight has run before")


# ---------------------------------------------------------------- unstable levels
UNBOUNDED = {"square": lambda z: z**2 - 1, "squared relu": lambda z: F.relu(z) ** 2, "sinh": torch.sinh}


def levels(model, x):
    """Mean square of each layer's output."""
    found = []
    with torch.no_grad():
        for module in model:
            x = module(x)
            if isinstance(module, nn.Linear):
                found.append(float(x.double().square().mean()))
    return found


@pytest.mark.parametrize("f", UNBOUNDED.values(), ids=UNBOUNDED)
def test_weights_that_keep_an_unstable_level_say_so(f):
    found = reasons(plain(3, function(f)), scheme="exact")
    assert [said(UNSTABLE, reason) for reason in found] == [True, True, True, False]
    assert "unstable through 3 layers" in found[0]


def test_the_growth_that_is_told_is_that_of_the_level_map():
    def after(q):
        return expectation(lambda z: (z**2 - 1) ** 2, q) / expectation(lambda z: (z**2 - 1) ** 2)

    percent = (after(1.01) - 1) * 100
    (reason, *_) = reasons(plain(3, function(UNBOUNDED["square"])), scheme="exact")
    assert f"a level 1 % too high is {percent:.0f} % too high one layer on" in reason


def test_what_is_called_unstable_runs_away_and_what_is_not_stays():
    x = normal(256, 100)
    for activation, runs in ((function(UNBOUNDED["square"]), True), (nn.GELU, False), (nn.Tanh, False)):
        model = plain(8, activation, width=100)
        assert any(said(UNSTABLE, reason) for reason in reasons(model, x, scheme="exact")) == runs
        grown = levels(model, x)[-2]
        assert (not grown < math.exp(RUNAWAY)) == runs


def test_a_stable_level_is_silent_whatever_the_function_does_far_away():
    found = reasons(plain(3, function(lambda z: torch.tanh(z) + F.relu(z.abs() - 8) ** 2)), scheme="exact")
    assert silent(found)


@pytest.mark.parametrize("options", [{"scheme": "auto"}, {"scheme": "exact", "keep": "gradient"}, {"scheme": "data"}])
def test_only_where_the_level_is_to_be_kept(options):
    assert silent(reasons(plain(3, function(UNBOUNDED["square"])), normal(64, 20), **options))


def test_one_layer_and_layers_with_a_normalisation_have_no_level_to_run_away():
    assert silent(reasons(plain(1, function(UNBOUNDED["square"])), scheme="exact"))
    model = plain(5, function(UNBOUNDED["square"]), normalization=nn.BatchNorm1d)
    assert silent(reasons(model, scheme="exact"))


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("depth", [2, 30])
def test_every_known_activation_is_silent(name, depth):
    found = reasons(plain(depth, function(KNOWN[name].function)), scheme="exact")
    assert silent(found)
    assert len(found) == depth + 1


@pytest.mark.parametrize("name", ["gelu", "silu", "mish", "hardswish"])
def test_an_unstable_level_that_grows_by_a_factor_is_named_where_the_depth_makes_it_run_away(name):
    rate = math.log(level_keeping(KNOWN[name], 1.0)[0] / 2)  # half of the units' slopes are 1 far from 0, half are 0
    limit = RUNAWAY / rate
    for depth, unstable in ((math.floor(limit), False), (math.ceil(limit), True)):
        found = reasons(plain(depth, function(KNOWN[name].function), width=20), scheme="exact")
        assert [said(UNSTABLE, reason) for reason in found] == [unstable] * depth + [False]


def test_the_plain_depth_counts_activations_in_a_row():
    assert plain_depth(trace(deep(4, "tanh"), normal(4, 20))) == 4
    assert plain_depth(trace(plain(4, nn.Tanh, normalization=nn.BatchNorm1d), normal(4, 20))) == 1
    assert plain_depth(trace(residual(), normal(4, 20))) == 1
