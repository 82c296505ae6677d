"""Programs: what can be handed over, what is refused in one sentence, and how model and loss are called."""

import threading
from collections import UserDict
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, TensorDataset

from gainstage.data.sources import FromDataset, FromLoader, InMemory
from gainstage.errors import BadInput, MissingExtra
from gainstage.program import Program, as_program, check_batch, loss_inside, run_loss, run_model, shape_of, tensors_in
from tests.tools import blobs, normal, quiet

X, Y = blobs(samples=6, features=4, classes=3)
CROSS_ENTROPY = nn.CrossEntropyLoss()


def layer(**options):
    return quiet(lambda: nn.Linear(4, 3, **options))


def program(**settings):
    return Program(**{"model": layer(), "loss": CROSS_ENTROPY, "data": (X, Y), **settings})


def refusal(call, *arguments, **settings):
    """The message of the BadInput that a call raises: one line, one sentence."""
    with pytest.raises(BadInput) as caught:
        call(*arguments, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    return message


class Forward(nn.Module):
    """A model made of a function."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def raising(error):
    def raise_it(*arguments):
        raise error

    return raise_it


@pytest.mark.parametrize(
    ("data", "kind"),
    [((X, Y), InMemory), (TensorDataset(X, Y), FromDataset), (DataLoader(TensorDataset(X, Y)), FromLoader)],
)
def test_data_of_every_kind_becomes_a_source(data, kind):
    made = program(data=data, valid=data)
    assert isinstance(made.source, kind)
    assert isinstance(made.valid, kind)


def test_one_is_a_batch_size_and_a_number_of_epochs():
    made = program(batch_size=1, epochs=1)
    assert (made.batch_size, made.epochs) == (1, 1)


def test_what_is_not_given_stays_open():
    made = program()
    assert (made.optimizer, made.batch_size, made.epochs, made.valid) == (None, None, None, None)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"model": "resnet"}, ["model must be a torch.nn.Module", "a str"]),
        ({"model": nn.Linear}, ["model must be a torch.nn.Module", "the class Linear"]),
        ({"model": torch.relu}, ["model must be a torch.nn.Module"]),
        ({"loss": "mse"}, ["loss must be callable as loss(output, targets)", "a str"]),
        ({"batch_size": 0}, ["batch_size must be a whole number of at least 1", "0"]),
        ({"batch_size": 2.0}, ["batch_size must be a whole number", "2.0"]),
        ({"epochs": -3}, ["epochs must be a whole number of at least 1", "-3"]),
        ({"data": (X, Y[:2])}, ["inputs and targets differ in length (6 and 2)"]),
        ({"data": (X[:0], Y[:0])}, ["is empty"]),
        ({"data": X.tolist()}, ["data must be (x, y) arrays", "a list of 6"]),
        ({"valid": (X, Y[:2])}, ["inputs and targets differ in length (6 and 2)"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_part_that_cannot_be_used_is_refused(settings, parts):
    message = refusal(program, **settings)
    assert all(part in message for part in parts), message


def test_a_program_is_made_of_its_parts():
    model = layer()
    made = as_program(model, CROSS_ENTROPY, (X, Y), batch_size=4, epochs=None, optimizer="sgd")
    assert made.model is model
    assert (made.loss, made.batch_size, made.epochs, made.optimizer) == (CROSS_ENTROPY, 4, None, "sgd")


def test_a_whole_program_is_taken_as_it_is():
    whole = program()
    assert as_program(whole, batch_size=None, optimizer=None) is whole


def test_settings_come_on_top_of_a_whole_program_without_changing_it():
    whole = program(batch_size=4, optimizer="sgd")
    changed = as_program(whole, batch_size=2, optimizer=None)
    assert (changed.batch_size, changed.optimizer) == (2, "sgd")
    assert changed.model is whole.model
    assert whole.batch_size == 4


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((layer(),), "give model, loss and data, or a Program"),
        ((layer(), CROSS_ENTROPY), "give model, loss and data, or a Program"),
        ((layer(), None, None), "give model, loss and data, or a Program"),
        ((program(), CROSS_ENTROPY), "give either a Program or model, loss and data, not both"),
        ((program(), None, (X, Y)), "give either a Program or model, loss and data, not both"),
    ],
)
def test_too_little_and_too_much_are_refused(arguments, expected):
    assert expected in refusal(as_program, *arguments)


def test_a_copy_shares_only_its_data():
    original = program(batch_size=3)
    original.optimizer = torch.optim.SGD(original.model.parameters(), lr=0.5)
    twin = original.copy()
    assert twin.source is original.source
    assert (twin.model is original.model, twin.batch_size) == (False, 3)
    before = original.model.weight.detach().clone()
    run_loss(twin.loss, run_model(twin.model, X), Y).backward()
    twin.make_optimizer().step()
    assert torch.equal(original.model.weight, before)
    assert original.model.weight.grad is None
    assert not torch.equal(twin.model.weight, before), "the twin's optimiser moves the twin"


def test_a_model_that_cannot_be_copied_is_named():
    model = layer()
    model.lock = threading.Lock()
    message = refusal(program(model=model).copy)
    assert "the model cannot be copied for a trial" in message
    assert "use level='preflight'" in message


def test_the_optimiser_is_made_for_the_model():
    made = program(optimizer="momentum")
    optimizer = made.make_optimizer()
    assert optimizer.defaults["momentum"] == 0.9
    assert optimizer.param_groups[0]["params"][0] is made.model.weight


@pytest.mark.parametrize(
    "x", [(torch.ones(2), torch.zeros(2)), {"second": torch.zeros(2), "first": torch.ones(2)}], ids=["tuple", "dict"]
)
def test_inputs_in_parts_become_arguments(x):
    model = Forward(lambda first, second: first - second)
    assert run_model(model, x).tolist() == [1, 1]


def test_a_packed_sequence_is_one_input():
    model = quiet(lambda: nn.RNN(3, 4))
    output, _ = run_model(model, pack_sequence([torch.zeros(2, 3), torch.zeros(1, 3)]))
    assert output.data.shape == (3, 4)


class Batch(UserDict):
    """A mapping that is no dict, as transformers' tokenisers put them out."""


@pytest.mark.parametrize("kind", [dict, Batch])
def test_a_forward_pass_that_takes_one_dictionary_gets_it_whole(kind):
    x = kind({"first": torch.ones(2), "second": torch.zeros(2)})
    assert run_model(Forward(lambda batch: batch["first"] - batch["second"]), x).tolist() == [1, 1]
    assert run_model(Forward(lambda first, second: first - second), x).tolist() == [1, 1]
    assert run_model(Forward(lambda first, **others: first - others["second"]), x).tolist() == [1, 1]
    single = kind({"batch": torch.ones(2)})
    assert run_model(Forward(lambda batch: batch * 2), single).tolist() == [2, 2], "names come first"


def test_a_name_that_the_forward_pass_does_not_have_is_named():
    model = Forward(lambda first, second: first)
    assert "unexpected keyword argument 'third'" in refusal(run_model, model, {"first": X, "third": X})


class Scored(NamedTuple):
    """What a network may put out."""

    logits: torch.Tensor
    loss: torch.Tensor | None = None


@dataclass
class Slotted:
    """Without a __dict__."""

    __slots__ = ("logits", "loss")
    logits: torch.Tensor
    loss: torch.Tensor


LOSS = torch.tensor(0.5)


@pytest.mark.parametrize(
    "output",
    [Scored(X, LOSS), Slotted(X, LOSS), {"logits": X, "loss": LOSS}, Batch(loss=LOSS, logits=X), (X, LOSS), LOSS,
     {"loss": LOSS, "auxiliary": torch.tensor(1.0)}],
    ids=["named tuple", "dataclass", "dict", "mapping", "tuple", "number", "two numbers"],
)  # fmt: skip
def test_the_loss_that_the_network_has_computed_is_found(output):
    assert loss_inside(output) is LOSS


@pytest.mark.parametrize(
    "output", [X, Scored(X), (LOSS, LOSS), {"a": LOSS, "b": LOSS}], ids=["none", "None", "two", "losses"]
)
def test_no_loss_or_several_are_refused(output):
    assert "no loss was given, and the model's output does not hold one" in refusal(loss_inside, output)


def test_a_loss_that_is_left_out_is_the_networks_own():
    model = Forward(lambda x, labels: {"loss": F.cross_entropy(x @ torch.eye(4), labels)})
    assert as_program(model, data=({"x": X, "labels": Y}, Y)).loss is loss_inside


@pytest.mark.parametrize("output", [{"logits": X}, [X, None], (X, {"extra": 1})], ids=["dict", "list", "tuple"])
def test_an_output_may_be_a_nesting_with_a_tensor_in_it(output):
    assert run_model(Forward(lambda x: output), X) is output


@pytest.mark.parametrize(
    ("output", "kind"), [(None, "a NoneType"), (1.5, "a float"), ({}, "a dict"), (X.numpy(), "a ndarray")], ids=str
)
def test_an_output_without_a_tensor_is_refused(output, kind):
    message = refusal(run_model, Forward(lambda x: output), X)
    assert f"the model must return a tensor, but its forward returned {kind}" in message


@pytest.mark.parametrize(("where", "data_is_on"), [("model", "cpu"), ("data", "meta")])
def test_a_model_on_another_device_than_its_data_is_refused(where, data_is_on):
    model = layer(device="meta") if where == "model" else layer()
    message = refusal(run_model, model, X.to(data_is_on))
    device = model.weight.device
    assert f"the model is on {device} and its data on {data_is_on}" in message
    assert f"x.to('{device}')" in message


def test_a_model_without_parameters_has_no_device():
    assert run_model(nn.ReLU(), X.to("meta")).device.type == "meta"


def test_inputs_of_the_wrong_shape_are_named_with_their_shape():
    message = refusal(run_model, layer(), normal(6, 5))
    assert "the model's forward failed on inputs of shape (6, 5): RuntimeError: mat1 and mat2" in message


def test_a_forward_that_raises_is_named_with_its_error():
    error = KeyError("a\nb")
    with pytest.raises(BadInput, match=r"forward failed on inputs of shape \(6, 4\): KeyError: 'a\\nb'") as caught:
        run_model(Forward(raising(error)), X)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "call", [lambda f: run_model(Forward(f), X), lambda f: run_loss(f, X, Y)], ids=["model", "loss"]
)
def test_an_error_of_several_lines_becomes_one(call):
    assert "RuntimeError: first second" in refusal(call, raising(RuntimeError("first\n   second")))


@pytest.mark.parametrize(
    "call", [lambda f: run_model(Forward(f), X), lambda f: run_loss(f, X, Y)], ids=["model", "loss"]
)
def test_gainstages_own_errors_pass_unchanged(call):
    error = MissingExtra("polars", "frames")
    with pytest.raises(MissingExtra) as caught:
        call(raising(error))
    assert caught.value is error


@pytest.mark.parametrize(
    "call", [lambda f: run_model(Forward(f), X), lambda f: run_loss(f, X, Y)], ids=["model", "loss"]
)
def test_an_interrupt_is_no_error(call):
    with pytest.raises(KeyboardInterrupt):
        call(raising(KeyboardInterrupt()))


def test_the_loss_is_one_number_with_a_gradient():
    output = X[:, :3].clone().requires_grad_(True)
    loss = run_loss(lambda o, y: F.cross_entropy(o, y).reshape(1, 1), output, Y)
    assert loss.shape == ()
    assert torch.equal(loss, F.cross_entropy(output, Y))
    loss.backward()
    assert output.grad.any()


def test_the_loss_is_computed_within_the_given_context():
    events = []

    @contextmanager
    def listening():
        events.append("in")
        yield
        events.append("out")

    def loss(output, y):
        events.append("loss")
        return output.sum()

    run_loss(loss, X, Y, listening())
    assert events == ["in", "loss", "out"]


@pytest.mark.parametrize(
    ("loss", "returned"),
    [
        (nn.CrossEntropyLoss(reduction="none"), "a tensor of shape (6,)"),
        (lambda o, y: o, "a tensor of shape (6, 3)"),
        (lambda o, y: float(o.sum()), "a float"),
        (lambda o, y: None, "a NoneType"),
    ],
)
def test_a_loss_that_is_not_one_number_is_refused(loss, returned):
    message = refusal(run_loss, loss, X[:, :3], Y)
    assert f"the loss must be one number, but it returned {returned}" in message
    assert ".mean()" in message


def test_outputs_and_targets_that_do_not_fit_are_named_with_their_shapes():
    message = refusal(run_loss, nn.MSELoss(), X[:, :3], torch.zeros(5, 2))
    assert "the loss failed on outputs of shape (6, 3) and targets of shape (5, 2)" in message


CLASSIFYING = [nn.CrossEntropyLoss(), nn.NLLLoss(), F.cross_entropy, F.nll_loss]


@pytest.mark.parametrize("loss", CLASSIFYING, ids=["CrossEntropyLoss", "NLLLoss", "cross_entropy", "nll_loss"])
@pytest.mark.parametrize(
    ("labels", "count", "example"),
    [([1, 2, 3], 1, "example 3"), ([0, -1, 2], 1, "example -1"), ([7, 0, 8], 2, "example 7")],
    ids=["from one", "negative", "several"],
)
def test_labels_out_of_range_are_refused_before_torch_sees_them(loss, labels, count, example):
    message = refusal(run_loss, loss, X[:3, :3], torch.tensor(labels))
    assert f"{count} labels are outside 0..2" in message
    assert example in message
    assert "the network has 3 outputs" in message


def test_labels_of_pixels_are_checked_along_the_class_dimension():
    output, labels = normal(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)
    assert run_loss(CROSS_ENTROPY, output, labels).isfinite()
    labels[1, 2, 3] = 3
    assert "1 labels are outside 0..2" in refusal(run_loss, CROSS_ENTROPY, output, labels)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (CROSS_ENTROPY, torch.tensor([0, -100, 2])),
        (F.cross_entropy, torch.tensor([0, -100, 2])),
        (nn.CrossEntropyLoss(ignore_index=255), torch.tensor([0, 255, 2])),
        (CROSS_ENTROPY, torch.full((3, 3), 1 / 3)),
        (lambda output, y: (output.argmax(1) - y).float().mean(), torch.tensor([7, 8, 9])),
    ],
    ids=["ignored by default", "ignored by the function", "ignored on request", "probabilities", "another loss"],
)
def test_targets_that_are_no_class_numbers_pass(loss, targets):
    assert run_loss(loss, X[:3, :3], targets).isfinite()


def test_labels_of_another_shape_are_torchs_to_refuse():
    message = refusal(run_loss, CROSS_ENTROPY, X[:3, :3], torch.tensor([[0], [7], [2]]))
    assert "the loss failed on outputs of shape (3, 3) and targets of shape (3, 1)" in message


def test_labels_ignored_by_one_loss_are_out_of_range_for_another():
    assert "1 labels are outside" in refusal(run_loss, CROSS_ENTROPY, X[:3, :3], torch.tensor([0, 255, 2]))


def test_labels_out_of_range_of_a_loss_in_disguise_are_named_at_last():
    smoothed = partial(F.cross_entropy, label_smoothing=0.1)
    assert "Target 7 is out of bounds" in refusal(run_loss, smoothed, X[:3, :3], torch.tensor([0, 7, 2]))


@pytest.mark.parametrize(
    ("x", "samples"), [(X, 6), ((X[:4], X[:4]), 4), ({"a": X[:2].long()}, 2), (X[:3].tolist() and X[:3], 3)]
)
def test_a_batch_counts_its_samples(x, samples):
    assert check_batch(x, Y) == samples


def test_packed_sequences_and_lists_of_samples_are_counted_by_the_sample():
    assert check_batch(pack_sequence([torch.zeros(4, 3), torch.zeros(2, 3)]), Y[:2]) == 2
    pictures = [torch.zeros(3, 8, 8), torch.zeros(3, 6, 7)]
    assert check_batch((pictures, [{"boxes": torch.zeros(5, 4)}] * 2), Y[:2]) == 2
    assert check_batch(([X, X[:3]],), Y) == 6, "a list of batches"


@pytest.mark.parametrize(
    ("x", "expected"),
    [(X[:1], "a batch of 1 sample cannot"), (X[:0], "a batch of 0 samples cannot"), (X.sum(), "a batch of 0 samples")],
)
def test_a_batch_without_a_difference_between_samples_is_refused(x, expected):
    message = refusal(check_batch, x, Y)
    assert expected in message
    assert "give at least two" in message


def spoilt(tensor, value, *places):
    tensor = tensor.clone().float()
    for place in places:
        tensor[place] = value
    return tensor


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_counted_and_located(value):
    message = refusal(check_batch, spoilt(X, value, (2, 1), (5, 0)), Y)
    assert "the inputs hold 2 values that are NaN or infinite (the first at index [2, 1] of the batch)" in message
    assert "the targets hold 1 values" in refusal(check_batch, X, spoilt(Y, value, 3))


def test_numbers_that_are_not_finite_are_found_in_every_part():
    assert "inputs hold 1 values" in refusal(check_batch, {"a": X, "b": [spoilt(X, float("nan"), (0, 0))]}, Y)


def test_tensors_are_found_in_a_nesting_in_order():
    a, b, c = (torch.tensor(float(i)) for i in range(3))
    assert [float(t) for t in tensors_in({"x": (a, [b, "text"]), "y": {"z": c}, "n": None})] == [0, 1, 2]
    assert tensors_in("text") == []
    assert [float(t) for t in tensors_in(Slotted(a, Batch(b=b, c=Scored(c))))] == [0, 1, 2]
    assert [len(t) for t in tensors_in(pack_sequence([torch.zeros(2, 3), torch.zeros(1, 3)]))] == [3, 2]


@pytest.mark.parametrize(
    ("value", "shape"), [(X, "(6, 4)"), ((X, Y), "[(6, 4), (6,)]"), ({"a": Y}, "(6,)"), ("text", "[]")], ids=str
)
def test_shapes_are_written_out(value, shape):
    assert shape_of(value) == shape
