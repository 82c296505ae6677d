"""gs.initialize refuses in one sentence, before anything has changed."""

import pytest
import torch
from torch import nn

import gainstage as gs
from gainstage.errors import BadInput
from tests.networks import Function, deep
from tests.tools import normal, quiet


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scheme": "magic"}, "no scheme is called 'magic'; known are: auto, exact, isometric, data"),
        ({"scheme": ["auto"]}, r"no scheme is called \['auto'\]; known are: auto"),
        ({"keep": "everything"}, "keep must be one of signal, gradient, both"),
        ({"keep": ["signal"]}, "keep must be one of signal, gradient, both"),
        ({"distribution": "cauchy"}, "no distribution is called 'cauchy'; known are: normal"),
    ],
)
def test_unknown_names_list_the_known_ones(options, sentence):
    with pytest.raises(BadInput, match=sentence):
        gs.initialize(deep(1, "relu"), **options)


def test_a_network_whose_input_cannot_be_guessed_asks_for_data():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x):
            return self.layer(x.reshape(len(x), 5, 4))

    with pytest.raises(BadInput, match="give data="):
        gs.initialize(quiet(Odd))


def signs():
    return nn.Sequential(nn.Linear(20, 20), Function(torch.sign), nn.Linear(20, 3))


def nan_slope():
    model = quiet(lambda: nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3), nn.PReLU()))
    nn.init.constant_(model[3].weight, float("nan"))
    return model


@pytest.mark.parametrize(
    ("build", "data", "options", "sentence"),
    [
        (
            lambda: deep(2, "tanh"),
            None,
            {"output_bias": torch.zeros(2)},
            "has 2 values, but .* last layer has 3 biases",
        ),
        (lambda: deep(2, "tanh"), None, {"output_bias": [0.0, float("nan"), 0.0]}, "output_bias holds values that are"),
        (lambda: nn.Linear(20, 3, bias=False), None, {"output_bias": torch.zeros(3)}, "last layer has no bias"),
        (lambda: deep(2, "tanh"), None, {"generator": 3}, "give a torch.Generator, such as .*, not 3"),
        (lambda: deep(2, "tanh"), None, {"scheme": "isometric", "generator": 3}, "give a torch.Generator"),
        (lambda: deep(2, "tanh"), None, {"distribution": None}, "no distribution is called None; known are: normal"),
        (lambda: deep(2, "logistic"), None, {"scheme": "isometric"}, "no weights keep both"),
        (lambda: deep(2, "tanh"), normal(8, 19), {}, "the model's forward failed on inputs of shape"),
        (lambda: deep(2, "tanh"), normal(1, 20), {"scheme": "data"}, "a batch of 1 sample cannot be measured"),
        (lambda: deep(2, "tanh"), normal(8, 20) / 0, {"scheme": "data"}, "the inputs hold 160 values that are NaN"),
        (nan_slope, None, {}, "must be positive and finite, got nan"),
        (signs, None, {"scheme": "exact", "keep": "gradient"}, "slope of sign behind 0 is zero .* use keep='signal'"),
        (signs, None, {"scheme": "exact", "keep": "both"}, "no weights keep its gradient"),
    ],
)
def test_bad_input_gets_one_sentence_and_changes_nothing(build, data, options, sentence):
    model = quiet(build)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(BadInput, match=sentence):
        gs.initialize(model, data, **options)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) or value.isnan().any() for name, value in before.items())


@pytest.mark.parametrize(
    ("model", "what"), [("network", "a str"), (None, "a NoneType"), (nn.Linear, "the class Linear")]
)
def test_what_is_no_module_is_refused(model, what):
    with pytest.raises(BadInput, match=f"must be a torch.nn.Module, got {what}"):
        gs.initialize(model)
