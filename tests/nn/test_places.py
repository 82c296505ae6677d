"""Where normalisation can be put, and what is refused with one clear sentence."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gainstage.errors import BadInput
from gainstage.nn.flow import flow_of
from gainstage.nn.places import Entry, Places, hidden_activations
from tests.networks import Function, Images
from tests.nn.test_insertion_refused import identity
from tests.tools import normal, quiet


def hidden(model, x):
    """(path of the layer, name of the activation, path of its module) of each."""
    found = hidden_activations(flow_of(quiet(model), x))
    return [(each.layer.module, each.name, each.activation[0].module) for each in found]


def test_each_activation_is_found_with_every_layer_that_leads_to_it():
    assert hidden(lambda: Images(activations="modules"), normal(4, 3, 7, 7)) == [
        ("stem", "relu", "act1"),
        ("branch1", "relu", "act2"),
        ("branch2", "relu", "act3"),
        ("up", "relu", "act4"),
    ]


def leaky(h):
    return torch.where(h > 0, h, 0.1 * h)


def swish(h):
    return h * torch.sigmoid(h)


def sine(h):
    return torch.sin(3 * h)


def chain(*layers):
    return lambda: nn.Sequential(nn.Linear(4, 4), *layers, nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (chain(nn.ReLU()), 1),
        (chain(nn.Dropout(0.0), nn.Identity(), nn.Hardshrink()), 1),
        (chain(nn.PReLU(), nn.Dropout(0.0)), 1),
        (chain(nn.BatchNorm1d(4), nn.ReLU()), 0),
        (chain(nn.ReLU(), nn.Dropout(0.0), nn.LayerNorm(4)), 0),
        (chain(nn.Unflatten(1, (2, 2)), nn.ReLU(), nn.Flatten()), 0),
        (chain(nn.Softmax(1)), 0),
        (chain(nn.Linear(4, 4)), 0),
        (chain(Function(leaky), nn.Dropout(0.0)), 1),
        (chain(Function(swish)), 1),
        (chain(nn.ReLU(), Function(leaky)), 1),
        (chain(nn.BatchNorm1d(4), Function(leaky)), 0),
        (chain(Function(leaky), nn.Dropout(0.0), nn.LayerNorm(4)), 0),
        (chain(Function(swish), nn.BatchNorm1d(4)), 0),
        (chain(Function(lambda h: torch.exp(h))), 0),
        (chain(Function(lambda h: 2 * h)), 0),
    ],
)
def test_hidden_is_an_activation_right_behind_a_layer_and_without_normalisation(build, count):
    assert len(hidden(build, normal(4, 4))) == count


def test_an_activation_of_other_dimensions_than_the_layer_is_not_its_activation():
    class Averaged(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(torch.relu(self.conv(x).mean((2, 3))))

    assert hidden(Averaged, normal(4, 3, 7, 7)) == []


def test_an_output_activation_is_not_hidden_also_beside_another_output():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            h = torch.relu(self.body(x))
            return torch.sigmoid(self.a(h)), self.c(torch.tanh(self.b(h)))

    assert hidden(Heads, normal(4, 4)) == [("body", "relu", ""), ("b", "tanh", "")]


def planned(model, x, position="before"):
    model = quiet(model)
    found = Places(model, flow_of(model, x)).at_activations(position)
    paths = {id(module): path for path, module in model.named_modules()}
    return [(paths[id(each.module)], each.behind, each.biased is not None) for each in found]


@pytest.mark.parametrize(
    ("activations", "position", "expected"),
    [
        (
            "functions",
            "before",
            [("stem", True, True), ("branch1", True, True), ("branch2", True, True), ("up", True, True)],
        ),
        (
            "modules",
            "before",
            [("act1", False, True), ("act2", False, True), ("branch2", True, True), ("act4", False, True)],
        ),
        (
            "modules",
            "after",
            [("act1", True, False), ("act2", True, False), ("act3", True, False), ("act4", True, False)],
        ),
    ],
)
def test_the_place_is_the_activation_where_it_can_be_and_else_the_layer(activations, position, expected):
    assert planned(lambda: Images(activations=activations), normal(4, 3, 7, 7), position) == expected


class AlsoAtTheEnd(nn.Module):
    """Its activation module is hidden the first time, and puts out the second time."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 2), nn.ReLU()

    def forward(self, x):
        return self.act(self.b(self.act(self.a(x))))


def test_an_activation_module_that_also_puts_out_is_not_the_place():
    assert planned(AlsoAtTheEnd, normal(4, 4)) == [("a", True, True)]
    with pytest.raises(BadInput, match="act runs behind several layers"):
        planned(AlsoAtTheEnd, normal(4, 4), "after")


def test_one_activation_module_in_two_blocks_is_known_by_its_layer():
    def build():
        act = nn.ReLU()
        blocks = [nn.Sequential(nn.Linear(4, 4), act) for _ in range(2)]
        return nn.Sequential(*blocks, nn.Linear(4, 2))

    model = quiet(build)
    found = Places(model, flow_of(model, normal(4, 4))).at_activations("before")
    assert [each.entry for each in found] == [Entry(model[0], "1"), Entry(model[1], "1")]


class Written(nn.Module):
    """A convolution, pooling, a dense layer, with an activation that is written out: in a module of its own, or in forward."""

    def __init__(self, function, module):
        super().__init__()
        self.conv, self.pool, self.dense, self.head = (
            nn.Conv1d(2, 6, 3),
            nn.MaxPool1d(2),
            nn.Linear(6, 5),
            nn.Linear(5, 2),
        )
        self.act1, self.act2 = (Function(function), Function(function)) if module else (function, function)

    def forward(self, x):
        return self.head(self.act2(self.dense(self.act1(self.pool(self.conv(x))).mean(-1))))


@pytest.mark.parametrize(
    ("function", "module", "expected"),
    [
        (leaky, True, [("act1", False, False), ("act2", False, True)]),
        (sine, True, [("act1", False, False), ("act2", False, True)]),
        (leaky, False, [("conv", True, True), ("dense", True, True)]),
        (sine, False, [("conv", True, True), ("dense", True, True)]),
        (swish, False, [("conv", True, True), ("dense", True, True)]),
        (swish, True, [("conv", True, True), ("dense", True, True)]),  # as ever
        (torch.sigmoid, True, [("act1", False, False), ("act2", False, True)]),
    ],
)
def test_the_place_before_a_function_that_is_written_out_is_its_module_or_else_the_layer(function, module, expected):
    assert planned(lambda: Written(function, module), normal(4, 2, 11)) == expected


@pytest.mark.parametrize("function", [leaky, sine, swish])
def test_the_place_after_it_is_behind_its_module(function):
    found = planned(lambda: Written(function, True), normal(4, 2, 11), "after")
    assert found == [("act1", True, False), ("act2", True, False)]


@pytest.mark.parametrize(("function", "name"), [(leaky, "gt+mul+where"), (sine, "mul+sin"), (swish, "sigmoid+mul")])
def test_behind_one_that_a_forward_writes_out_it_says_what_to_write(function, name):
    message = (
        f"the {name} behind conv is written out in Written.forward, and nothing can be put behind it from outside; write "
        f"self.normalization = nn.BatchNorm1d(6) and call it on what {name} puts out"
    )
    with pytest.raises(BadInput, match=re.escape(message)):
        planned(lambda: Written(function, False), normal(4, 2, 11), "after")


class AndMore(nn.Module):
    """An activation that is written out, in a module that does more."""

    def __init__(self, more):
        super().__init__()
        self.more = more

    def forward(self, x):
        return self.more(leaky(x))


@pytest.mark.parametrize("more", [lambda h: F.dropout(h, 0.0), nn.Identity()], ids=["an operation", "a child"])
def test_a_module_that_does_more_is_not_the_place(more):
    def build():
        return nn.Sequential(nn.Linear(4, 4), AndMore(more), nn.Linear(4, 2))

    assert planned(build, normal(4, 4)) == [("0", True, True)]
    with pytest.raises(BadInput, match=r"the gt\+mul\+where behind 0 is written out in AndMore.forward \(module 1\)"):
        planned(build, normal(4, 4), "after")


def test_a_module_that_runs_twice_is_known_by_its_entries_and_else_by_the_layers():
    def build():
        act = Function(leaky)
        return nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act, nn.Linear(4, 2))

    model = quiet(build)
    for position in ("before", "after"):
        found = Places(model, flow_of(model, normal(4, 4))).at_activations(position)
        assert [each.entry for each in found] == [Entry(model, "1"), Entry(model, "3")]

    def shared():
        model = Written(leaky, True)
        model.act2 = model.act1
        return model

    assert planned(shared, normal(4, 2, 11)) == [("conv", True, True), ("dense", True, True)]
    with pytest.raises(BadInput, match="act1 runs behind several layers; give each of them one of its own"):
        planned(shared, normal(4, 2, 11), "after")


def test_where_the_sum_of_layers_is_activated_each_gets_its_own():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.act, self.head = nn.Linear(4, 4), nn.Linear(4, 4), Function(leaky), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.act(self.a(x) + self.b(x)))

    assert planned(Sum, normal(4, 4)) == [("a", True, True), ("b", True, True)]


def test_a_first_layer_that_runs_again_gets_its_normalisation_at_the_networks_input():
    def build():
        layer = nn.Linear(4, 4)
        return nn.Sequential(nn.Flatten(), nn.Sequential(layer), layer)

    model = quiet(build)
    found = Places(model, flow_of(model, normal(4, 4))).in_front(normal(4, 4))
    assert (found.module, found.entry, found.behind) == (model, Entry(model, "0"), False)


def test_an_entry_of_an_nn_sequential_that_runs_as_a_whole_is_known():
    model = quiet(lambda: nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2)))
    (found,) = Places(model, flow_of(model, normal(4, 4))).at_activations("before")
    assert found.entry == Entry(model[0], "1")
    assert found.name == "1_normalization"
    assert found.biased is model[0][0]


def test_finding_places_changes_nothing():
    model = quiet(Images)
    before = identity(model)
    places = Places(model, flow_of(model, normal(4, 3, 7, 7)))
    assert len(places.at_activations("before")) == 4
    assert places.in_front(normal(4, 3, 7, 7)).norm.num_features == 3
    assert identity(model) == before
