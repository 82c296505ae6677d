"""Sources: whatever a user calls data becomes batches that hold every sample once, in an order that a seed decides."""

from collections import UserDict

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from gainstage.data import as_source, training_batches
from gainstage.data.sources import FromDataset, FromLoader, InMemory
from gainstage.errors import BadInput
from tests.tools import generator, normal

PROPERTY = settings(derandomize=True, database=None, deadline=None, max_examples=40)
SIZES = st.integers(1, 40)
# a frame's columns may be read-only, of which torch warns; the last test of this file is about that
READ_ONLY = pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")


def numbered(samples, features=2):
    """Inputs and targets that carry the number of their sample."""
    y = torch.arange(samples)
    return y[:, None].float().expand(samples, features).clone(), y


def in_memory(samples):
    return as_source(numbered(samples))


def from_dataset(samples):
    return as_source(TensorDataset(*numbered(samples)))


def from_loader(samples, **options):
    return as_source(DataLoader(TensorDataset(*numbered(samples)), **{"generator": generator(), **options}))


MAPPED = pytest.mark.parametrize("make", [in_memory, from_dataset])


def joined(batches):
    """Sample numbers in the order in which they came, after a check that inputs and targets stayed together."""
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(x[:, 0].long(), y), "inputs and targets got out of step"
    return y.tolist()


class Items(Dataset):
    """A map-style data set made of a function."""

    def __init__(self, item, samples=5):
        self.item, self.samples = item, samples

    def __len__(self):
        return self.samples

    def __getitem__(self, index):
        return self.item(index)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(*numbered(6), strict=True))


@MAPPED
@PROPERTY
@given(samples=SIZES, size=SIZES, seed=st.integers(0, 1000))
def test_an_epoch_holds_every_sample_exactly_once(make, samples, size, seed):
    batches = list(make(samples).batches(size, generator(seed)))
    assert sorted(joined(batches)) == list(range(samples))
    assert [len(y) for _, y in batches[:-1]] == [size] * (len(batches) - 1)
    assert 1 <= len(batches[-1][1]) <= size


@MAPPED
@PROPERTY
@given(samples=SIZES, size=SIZES)
def test_without_a_generator_the_samples_come_in_their_order(make, samples, size):
    assert joined(make(samples).batches(size)) == list(range(samples))


@MAPPED
@PROPERTY
@given(samples=SIZES, size=SIZES, seed=st.integers(0, 1000))
def test_a_sample_holds_as_many_different_samples_as_asked_for(make, samples, size, seed):
    taken = joined([make(samples).sample(size, seed)])
    assert len(set(taken)) == len(taken) == min(size, samples)


@MAPPED
def test_the_seed_decides_the_sample(make):
    first, again, other = (joined([make(100).sample(10, seed)]) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert max(first) > 10, "representative, not the first few"


@MAPPED
def test_the_generator_decides_the_order(make):
    first, again, other = (joined(make(50).batches(8, generator(seed))) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert first != list(range(50))


@MAPPED
def test_the_number_of_samples_is_known(make):
    assert make(7).samples == 7


def test_kinds_are_recognised():
    assert isinstance(in_memory(3), InMemory)
    assert isinstance(from_dataset(3), FromDataset)
    assert isinstance(as_source(Items(lambda i: (i, i))), FromDataset)
    assert isinstance(from_loader(3), FromLoader)


@pytest.mark.parametrize("make", [in_memory, from_dataset, from_loader])
def test_a_source_stays_what_it_is(make):
    source = make(3)
    assert as_source(source) is source


@pytest.mark.parametrize(
    ("convert", "dtype"),
    [
        (lambda a: a, torch.float32),
        (lambda a: a.astype(np.float32), torch.float32),
        (lambda a: a.tolist(), torch.float32),
        (pd.DataFrame, torch.float32),
        (pl.DataFrame, torch.float32),
        (lambda a: a.astype(np.int32), torch.int32),
        (lambda a: a.astype(bool), torch.bool),
        (lambda a: torch.from_numpy(a), torch.float64),
    ],
    ids=["float64", "float32", "list", "pandas", "polars", "int32", "bool", "tensor"],
)
@READ_ONLY
def test_inputs_become_tensors(convert, dtype):
    array = np.arange(6.0).reshape(3, 2)
    x = as_source((convert(array), [0, 1, 0])).x
    assert x.dtype == dtype
    assert torch.equal(x, torch.from_numpy(array).to(dtype))


@pytest.mark.parametrize(
    ("targets", "dtype"),
    [
        ([0, 1, 2], torch.int64),
        (np.array([0, 1, 2], np.uint8), torch.int64),
        (pd.Series([0, 1, 2]), torch.int64),
        ([0.0, 1.0, 2.0], torch.float32),
        (torch.tensor([0, 1, 2], dtype=torch.int32), torch.int32),
    ],
    ids=["list", "uint8", "pandas", "float", "tensor"],
)
@READ_ONLY
def test_targets_become_tensors(targets, dtype):
    y = as_source((normal(3, 2), targets)).y
    assert y.dtype == dtype
    assert y.tolist() == [0, 1, 2]


def test_a_tensor_is_not_copied():
    x, y = numbered(4)
    source = as_source((x, y))
    assert source.x is x
    assert source.y is y


def test_what_is_handed_over_is_a_copy_that_a_network_may_write_to():
    x, y = numbered(4)
    source = as_source((x, y))
    kept = x.clone()
    for inputs, _ in (source.sample(4, seed=0), source.sample(2, seed=0), *source.batches(3)):
        inputs.zero_()
    assert torch.equal(x, kept)


def test_inputs_may_be_a_nesting_of_tensors():
    x, y = numbered(10)
    source = as_source(({"a": x, "b": (x + 1, x + 2)}, y))
    for batch, targets in [source.sample(4, 0), *source.batches(3), *source.batches(3, generator())]:
        first, (second, third) = batch["a"], batch["b"]
        assert torch.equal(first[:, 0].long(), targets)
        assert torch.equal(second, first + 1)
        assert torch.equal(third, first + 2)


@pytest.mark.draws
def test_a_dictionary_with_labels_is_inputs_and_targets():
    batch = {"input_ids": torch.arange(12).reshape(6, 2), "labels": torch.arange(6)}
    for data in (batch, UserDict(batch)):
        x, y = as_source(data).sample(4, seed=0)
        assert set(x) == set(batch)
        assert torch.equal(x["labels"], y)
        assert torch.equal(x["input_ids"], 2 * y[:, None] + torch.arange(2))
    items = [{"input_ids": torch.tensor([i, i]), "labels": i} for i in range(6)]
    for data in (items_of(items), DataLoader(items, batch_size=3)):
        x, y = next(iter(as_source(data).batches(3)))
        assert torch.equal(x["input_ids"][:, 0], y)
    with pytest.raises(BadInput, match="data must be"):
        as_source({"input_ids": torch.arange(6)})


def items_of(items):
    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return len(items)

        def __getitem__(self, index):
            return items[index]

    return Items()


def test_a_loader_keeps_its_batch_size_and_order():
    loader = from_loader(10, batch_size=4)
    batches = list(loader.batches(3, generator(5)))
    assert [len(y) for _, y in batches] == [4, 4, 2]
    assert joined(batches) == list(range(10))
    assert loader.samples == 10


def test_a_loaders_batches_are_joined_into_one_sample():
    assert joined([from_loader(10, batch_size=2).sample(5, 0)]) == [0, 1, 2, 3, 4]
    assert joined([from_loader(10, batch_size=4).sample(99, 0)]) == list(range(10))


def test_no_more_batches_are_loaded_than_needed():
    loaded = []
    items = Items(lambda i: (loaded.append(i) or torch.zeros(1), i), samples=10)
    as_source(DataLoader(items, batch_size=2, generator=generator())).sample(4, 0)
    assert loaded == [0, 1, 2, 3]


def test_batches_that_cannot_be_joined_stay_single():
    lengths = iter([3, 5, 7, 9, 11])
    loader = as_source(DataLoader(Items(lambda i: (torch.zeros(next(lengths)), i)), generator=generator()))
    assert loader.sample(4, 0)[0].shape == (1, 3)


def test_a_loader_of_dictionaries_gives_its_first_batch():
    loader = as_source(DataLoader(Items(lambda i: ({"a": torch.ones(2)}, i)), batch_size=2, generator=generator()))
    x, y = loader.sample(4, 0)
    assert x["a"].shape == (2, 2)
    assert y.tolist() == [0, 1]


@MAPPED
@pytest.mark.parametrize(
    ("samples", "size", "sizes"), [(7, 3, [3, 3]), (8, 3, [3, 3, 2]), (3, 1, [1, 1, 1]), (1, 8, [1]), (3, 8, [3])]
)
def test_only_a_last_batch_of_one_behind_larger_ones_is_not_trained_on(make, samples, size, sizes):
    batches = list(training_batches(make(samples), size, None))
    assert [len(y) for _, y in batches] == sizes
    assert joined(batches) == list(range(sum(sizes)))


def test_the_generator_decides_the_order_of_training():
    shuffled = joined(training_batches(in_memory(50), 8, generator(3)))
    assert shuffled == joined(in_memory(50).batches(8, generator(3)))


def test_training_data_without_a_batch_is_refused():
    with pytest.raises(BadInput, match="the training data yields no batch: it is empty, or smaller than a batch"):
        list(training_batches(from_loader(3, batch_size=4, drop_last=True), 2, None))


def test_sampling_a_shuffled_loader_does_not_change_its_order():
    looked_at, untouched = (from_loader(20, shuffle=True) for _ in range(2))
    looked_at.sample(7, 0)
    assert joined(looked_at.batches(1)) == joined(untouched.batches(1))


def test_sampling_a_loader_without_a_generator_leaves_the_process_alone():
    """The fixture for all tests fails this one when the process's random state moves."""
    first, again, other = (
        joined([from_loader(50, shuffle=True, generator=None).sample(9, seed)]) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_loader_of_a_stream_does_not_know_its_number_of_samples():
    stream = as_source(DataLoader(Stream(), batch_size=2, generator=generator()))
    assert stream.samples is None
    assert joined([stream.sample(4, 0)]) == [0, 1, 2, 3]


X, Y = numbered(4)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (None, ["must be (x, y) arrays, a Dataset or a DataLoader", "a NoneType"]),
        ("digits.csv", ["must be (x, y) arrays", "a str"]),
        ({1, 2}, ["must be (x, y) arrays", "a set"]),
        (3, ["must be (x, y) arrays", " int"]),
        ((X, Y, Y), ["must be (x, y) arrays", "a tuple of 3"]),
        ([X], ["must be (x, y) arrays", "a list of 1"]),
        ((X, Y[:3]), ["inputs and targets differ in length (4 and 3)", "one target for each input"]),
        (((X, X[:2]), Y), ["differ in length (2, 4 and 4)"]),
        ((X, torch.tensor(1)), ["differ in length (4 and 0)"]),
        ((X[:0], Y[:0]), ["is empty", "give at least two"]),
        (([], []), ["is empty", "give at least two"]),
        (TensorDataset(X[:0], Y[:0]), ["Dataset is empty", "give at least two"]),
        (Stream(), ["Dataset has no length", "wrap it in a DataLoader"]),
        ((["a", "b"], [0, 1]), ["the inputs cannot be made a tensor (list)"]),
        ((X, ["a", "b", "c", "d"]), ["the targets cannot be made a tensor (list)"]),
        (([[1.0], [1.0, 2.0]], [0, 1]), ["the inputs cannot be made a tensor (list)"]),
    ],
    ids=lambda value: value[0][:40] if isinstance(value, list) and isinstance(value[0], str) else "",
)
def test_bad_data_is_named_in_one_sentence(data, parts):
    with pytest.raises(BadInput) as caught:
        as_source(data)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_an_empty_loader_is_named_when_a_batch_is_wanted():
    with pytest.raises(BadInput, match="DataLoader yields no batch: its data set is empty, or smaller than a batch"):
        from_loader(3, batch_size=4, drop_last=True).sample(2, 0)


@pytest.mark.parametrize(
    ("item", "described"),
    [
        (lambda i: torch.zeros(2), "a Tensor"),
        (lambda i: (torch.zeros(2), i, i), "a list of 3"),
        (lambda i: {"x": torch.zeros(2), "y": i}, "a dict"),
    ],
    ids=["no target", "three parts", "dictionary"],
)
@pytest.mark.parametrize(
    "wrap", [lambda d: d, lambda d: DataLoader(d, generator=generator())], ids=["Dataset", "DataLoader"]
)
def test_items_that_are_no_pairs_are_described(wrap, item, described):
    source = as_source(wrap(Items(item)))
    with pytest.raises(
        BadInput, match=rf"each item of the Data(set|Loader) must be \(inputs, targets\), got {described}"
    ):
        source.sample(2, 0)
    with pytest.raises(BadInput, match=described):
        next(iter(source.batches(2)))


FRAME = pd.DataFrame({"a": [1.0, 2.0], "y": [0, 1]})


@pytest.mark.parametrize("data", [{"x": X, "y": Y}, X, X.numpy(), FRAME], ids=["dict", "tensor", "array", "frame"])
def test_data_that_is_neither_a_pair_nor_a_dataset_is_refused_at_once(data):
    with pytest.raises(BadInput, match=r"data must be \(x, y\) arrays, a Dataset or a DataLoader"):
        as_source(data)


@pytest.mark.draws
def test_the_seed_decides_what_a_data_set_draws_by_itself():
    source = as_source(Items(lambda i: (torch.rand(2), i)))
    assert torch.equal(source.sample(3, 0)[0], source.sample(3, 0)[0])


def test_a_loaders_sample_is_at_most_as_large_as_asked_for():
    assert joined([from_loader(10, batch_size=8).sample(3, 0)]) == [0, 1, 2]


def test_a_failed_sample_does_not_change_a_loaders_order():
    draw = generator()
    before = draw.get_state()
    with pytest.raises(BadInput):
        as_source(DataLoader(Items(lambda i: torch.zeros(2)), shuffle=True, generator=draw)).sample(2, 0)
    assert torch.equal(draw.get_state(), before)


@pytest.fixture
def every_warning():
    """Torch gives some warnings only once a process; this has it give them each time."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


@pytest.mark.usefixtures("every_warning")
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_a_read_only_array_is_taken_without_a_warning(dtype):
    array = np.zeros((2, 2), dtype)
    array.setflags(write=False)
    assert as_source((array, [0, 1])).x.tolist() == [[0, 0], [0, 0]]
