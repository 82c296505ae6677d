"""check() from the outside: what it takes, what it gives, and how it refuses."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, TensorDataset

import gainstage as gs
from gainstage.errors import BadInput
from tests.networks import deep, normal_weights
from tests.tools import blobs, generator, normal, quiet

LOSS = nn.CrossEntropyLoss()


def sick():
    return deep(8, "logistic", normal_weights(1.0))


FORMS = {
    "tensors": lambda x, y: (x, y),
    "arrays": lambda x, y: (x.double().numpy(), y.numpy().astype(np.int32)),
    "data set": lambda x, y: TensorDataset(x, y),
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_gives_the_same_findings(form):
    checkup = gs.check(sick(), LOSS, FORMS[form](*blobs()))
    assert [f.code for f in checkup.findings] == ["I101"]
    assert checkup.ledger.samples == 256


def test_a_program_says_the_same_as_its_parts():
    parts = gs.check(sick(), LOSS, blobs())
    whole = gs.check(gs.Program(sick(), LOSS, blobs()))
    assert parts.to_dict() == whole.to_dict()


def test_the_same_seed_gives_the_same_checkup_and_another_looks_at_other_samples():
    first, again, other = (gs.check(sick(), LOSS, blobs(1000), seed=seed).to_json() for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_inputs_in_a_tuple_or_a_dictionary():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(20, 3), nn.Linear(20, 3)

        def forward(self, a, b):
            return self.left(a) + self.right(b)

    x, y = blobs()
    for inputs in ((x, x.flip(0)), {"b": x, "a": x.flip(0)}):
        assert len(gs.check(quiet(Two), LOSS, (inputs, y)).ledger) == 2


def test_select_and_ignore():
    assert gs.check(sick(), LOSS, blobs(), select=["S"]).codes == ["S102"]
    assert "I101" not in gs.check(sick(), LOSS, blobs(), ignore=["I101"]).codes


def test_a_static_check_measures_nothing_and_says_what_theory_expects():
    checkup = gs.check(sick(), LOSS, blobs(), level="static")
    assert checkup.ledger is None
    assert checkup.codes == ["I101"]
    measured = gs.check(sick(), LOSS, blobs())
    assert measured.prediction is None
    for expected, row in zip(checkup.prediction.rows[:4], measured.ledger.rows, strict=False):
        assert abs(math.log(row.signal / expected.signal)) < 3 * expected.signal_error
    assert "theory for random weights" in str(checkup)
    assert checkup.to_dict()["prediction"] == json.loads(checkup.to_json())["prediction"]


def test_json_holds_findings_and_ledger():
    document = json.loads(gs.check(sick(), LOSS, blobs()).to_json())
    assert document["findings"][0]["code"] == "I101"
    assert document["findings"][0]["consequences"][0]["code"] == "S102"
    assert len(document["ledger"]["stages"]) == 9
    assert document["ledger"]["stages"][1]["expected_gain"] > 0


def test_a_finding_shows_what_the_design_promises():
    finding = gs.check(sick(), LOSS, blobs()).findings[0]
    assert (finding.code, finding.severity) == ("I101", "error")
    assert finding.where == tuple(f"hidden{number}" for number in range(2, 9))
    assert finding.remedies[0] == "initialize-for-activation"
    assert finding.consequences
    assert str(finding).startswith("I101 initialization-does-not-fit-activation  stages hidden2 to hidden8")


def test_text_and_html_need_no_further_call():
    checkup = gs.check(sick(), LOSS, blobs())
    assert "I101" in str(checkup)
    assert "hidden6" in str(checkup)
    assert checkup._repr_html_().startswith("<pre")


def no_tensor():
    class Silent(nn.Module):
        def forward(self, x):
            return None

    return Silent(), LOSS, blobs()


def several_losses():
    return deep(1, "relu"), nn.CrossEntropyLoss(reduction="none"), blobs()


def labels_beyond():
    x, y = blobs()
    return deep(1, "relu"), LOSS, (x, y + 1)


def not_a_number():
    x, y = blobs()
    x = x.clone()
    x[17, 4] = float("nan")
    return deep(1, "relu"), LOSS, (x, y)


def frozen():
    return deep(1, "relu").requires_grad_(False), LOSS, blobs()


def on_meta():
    return tuple(tensor.to("meta") for tensor in blobs())


NO_WEIGHTS = (
    r"weights are on the meta device, .* call model.to_empty\(device='cpu'\), then gainstage.initialize\(model\)"
)
BAD = {
    "no tensor": (no_tensor, "must return a tensor"),
    "a loss that is not one number": (several_losses, "the loss must be one number"),
    "one sample": (lambda: (deep(1, "relu"), LOSS, (normal(1, 20), torch.zeros(1).long())), "give at least two"),
    "labels out of range": (labels_beyond, "labels are outside 0..2, for example 3"),
    "not a number": (not_a_number, r"1 values that are NaN or infinite \(the first at index"),
    "no samples": (lambda: (deep(1, "relu"), LOSS, (normal(0, 20), torch.zeros(0).long())), "the data set is empty"),
    "weights without values": (lambda: (deep(1, "relu").to("meta"), LOSS, blobs()), NO_WEIGHTS),
    "nothing with values": (lambda: (deep(1, "relu").to("meta"), LOSS, on_meta()), NO_WEIGHTS),
    "statistics without values": (
        lambda: (nn.Sequential(nn.BatchNorm1d(20, affine=False).to("meta"), deep(1, "relu")), LOSS, blobs()),
        NO_WEIGHTS,
    ),
    "data without values": (
        lambda: (deep(1, "relu"), LOSS, on_meta()),
        "the data are on the meta device, .*; give data",
    ),
    "targets without values": (lambda: (deep(1, "relu"), LOSS, (blobs()[0], on_meta()[1])), "the data are on the meta"),
    "all frozen": (frozen, "does not depend on any trainable parameter"),
    "wrong width": (lambda: (deep(1, "relu", inputs=21), LOSS, blobs()), "forward failed on inputs of shape"),
    "no model": (lambda: (lambda x: x, LOSS, blobs()), "must be a torch.nn.Module"),
    "no loss": (
        lambda: (deep(1, "relu"), None, blobs()),
        "no loss was given, and the model's output does not hold one",
    ),
    "half a pair": (lambda: (deep(1, "relu"), LOSS, blobs()[0]), "data must be"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("function", [gs.check, gs.fix])
def test_bad_input_gets_one_sentence_and_changes_nothing(name, function):
    build, sentence = BAD[name]
    model, loss, data = build()
    is_real = isinstance(model, nn.Module) and not any(p.is_meta for p in model.parameters())
    before = [p.clone() for p in model.parameters()] if is_real else []
    with pytest.raises(BadInput, match=sentence) as caught:
        function(model, loss, data)
    assert "\n" not in str(caught.value)
    if is_real:
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("level", ["static", "preflight", "trial"])
@pytest.mark.parametrize("name", [name for name in BAD if "without values" in name])
def test_what_has_no_values_is_refused_at_every_level(name, level):
    build, sentence = BAD[name]
    with pytest.raises(BadInput, match=sentence):
        gs.check(*build(), level=level)


def test_a_model_from_the_meta_device_can_be_checked_once_it_is_initialised():
    model = deep(2, "relu").to("meta").to_empty(device="cpu")
    gs.initialize(model, blobs(), generator=generator())
    assert gs.check(model, LOSS, blobs()).healthy


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"level": "deep"}, "no level is called 'deep'; known are: static, preflight, trial"),
        ({"select": ["Z9"]}, "no rule is called 'Z9'"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
    ],
)
def test_bad_options_get_one_sentence(options, sentence):
    with pytest.raises(BadInput, match=sentence):
        gs.check(deep(1, "relu"), LOSS, blobs(), **options)


def test_a_loss_that_is_not_finite_is_never_healthy():
    def broken(output, y):
        return torch.log(-output.abs()).mean()

    with pytest.raises(BadInput, match="the loss of finite inputs and outputs is nan"):
        gs.check(deep(1, "relu"), broken, blobs())


def test_a_selection_that_cannot_speak_at_this_level_is_refused():
    with pytest.raises(BadInput, match="none of the selected rules can speak at level 'static'"):
        gs.check(sick(), LOSS, blobs(), select=["S", "G"], level="static")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.draws
def test_a_scripted_model_is_refused_in_one_sentence():
    with pytest.raises(BadInput, match="a scripted module"):
        gs.check(torch.jit.script(nn.Linear(20, 3)), LOSS, blobs())


def test_a_lazy_model_is_measured_on_a_twin_and_stays_lazy():
    model = quiet(lambda: nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 3)))
    ledger = gs.check(model, LOSS, blobs()).ledger
    assert [row.units for row in ledger.rows] == [16, 3]
    assert all(row.gain and row.gradient for row in ledger.rows)
    assert is_lazy(model[0].weight)
    assert type(model[0]) is nn.LazyLinear
    with pytest.raises(BadInput, match="run one batch through it first"):
        gs.fix(model, LOSS, blobs())
