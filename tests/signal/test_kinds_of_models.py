"""Models as people write them: whatever goes in, comes out, is frozen, shared or adapted, the check goes through, understands
all of it, measures every stage and leaves nothing behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

import gainstage as gs
from tests.tools import normal, quiet, random_states, same_states

CLASSES = torch.arange(16) % 3
WORDS = torch.arange(16 * 6).reshape(16, 6) % 11
X = normal(16, 20)


class Lines(nn.Module):
    """Sequences of numbers of different lengths: packed, run through a recurrent layer of two directions, unpacked."""

    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.memory, self.head = kind(4, 5, 2, batch_first=True, dropout=0.1, bidirectional=True), nn.Linear(10, 3)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        whole, _ = pad_packed_sequence(self.memory(packed)[0], batch_first=True)
        return self.head(whole[torch.arange(len(x)), lengths - 1])


class Padded(nn.Module):
    """Token numbers with a mask of padding, through torch's own transformer."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(11, 8, padding_idx=0), nn.Linear(8, 3)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        padding = x == 0
        h = self.encoder(self.words(x), src_key_padding_mask=padding)
        return self.head(h.masked_fill(padding[..., None], 0).sum(1) / (~padding).sum(1, keepdim=True))


class Adapted(nn.Module):
    """A frozen layer, and beside it a narrow one that learns (LoRA; its last matrix starts at zero)."""

    def __init__(self):
        super().__init__()
        self.frozen, self.head = nn.Linear(20, 20).requires_grad_(False), nn.Linear(20, 3)
        self.down, self.up = nn.Parameter(torch.randn(2, 20)), nn.Parameter(torch.zeros(20, 2))

    def forward(self, x):
        return self.head(torch.relu(self.frozen(x) + 0.5 * (x @ self.down.T @ self.up.T)))


class Autoencoder(nn.Module):
    """Noise drawn by the network itself; puts out what it makes of it, and two losses."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(20, 8), nn.Linear(4, 20)

    def forward(self, x):
        mean, spread = self.inner(x).chunk(2, 1)
        made = self.outer(mean + spread.exp() * torch.randn_like(mean))
        return {"made": made, "likeness": F.mse_loss(made, x), "prior": (mean**2 + spread.exp() - spread).mean()}


class Tied(nn.Module):
    """The output layer has the embedding's weight, and the next word's loss is computed inside."""

    def __init__(self):
        super().__init__()
        self.words, self.hidden = nn.Embedding(11, 8), nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x):
        scores = self.head(self.hidden(self.words(x[:, :-1]))[0])
        return scores, F.cross_entropy(scores.flatten(0, 1), x[:, 1:].flatten())


class Answer(NamedTuple):
    classes: torch.Tensor
    inner: list[torch.Tensor]


@dataclass
class Question:
    first: torch.Tensor
    more: dict[str, torch.Tensor]


class Nested(nn.Module):
    """Takes in a dataclass, puts out a named tuple with a list; one part of it runs again on the way back."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(20, 8), nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, question):
        h = self.left(question.first) + self.right(question.more["second"])
        h = checkpoint(lambda z: F.silu(z, inplace=False), h, use_reentrant=False)
        return Answer(self.head(h), [h])


class Again(nn.Module):
    """One module called as often as there are steps, and a second one that is never called."""

    def __init__(self):
        super().__init__()
        self.step, self.head, self.idle = nn.Linear(20, 20), nn.Linear(20, 3), nn.Linear(20, 3)

    def forward(self, x):
        for _ in range(4):
            x = x + torch.tanh(self.step(x))
        return self.head(x)


def is_frozen(model):
    return not all(parameter.requires_grad for parameter in model.parameters())


def classes(output, y):
    return F.cross_entropy(output[0] if isinstance(output, tuple) else output, y)


LENGTHS = 1 + torch.arange(16) % 6
PAST = {"first": X, "more": {"second": normal(16, 5)}}
MODELS = {  # network, loss, batch
    "packed LSTM": (Lines, classes, ((normal(16, 6, 4), LENGTHS), CLASSES)),
    "packed GRU": (lambda: Lines(nn.GRU), classes, ((normal(16, 6, 4), LENGTHS), CLASSES)),
    "packed RNN": (lambda: Lines(nn.RNN), classes, ((normal(16, 6, 4), LENGTHS), CLASSES)),
    "padding": (Padded, classes, (WORDS, CLASSES)),
    "adapter": (Adapted, classes, (X, CLASSES)),
    "autoencoder": (Autoencoder, lambda output, y: output["likeness"] + output["prior"], (X, X)),
    "tied, with its own loss": (Tied, None, (WORDS, WORDS)),
    "nested": (Nested, classes, ((Question(**PAST),), CLASSES)),
    "recurrent by hand": (Again, classes, (X, CLASSES)),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(9), nn.Mish(), nn.LazyLinear(3)), classes, (X, CLASSES)),
}


class One(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return index


@pytest.mark.parametrize(("build", "loss", "batch"), MODELS.values(), ids=MODELS)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_model_is_understood_measured_and_left_as_it_was(build, loss, batch):
    model, states = quiet(build), random_states()
    before = {name: value.clone() for name, value in model.state_dict().items()} if "Lazy" not in str(model) else {}
    checkup = gs.check(model, loss, DataLoader(One(), batch_size=None, collate_fn=lambda _: batch))
    assert checkup.graph.unknown == ()
    unseen = [row.name for row in checkup.ledger.rows if row.signal is None or row.gradient is None]
    assert unseen == (["frozen"] if is_frozen(model) else []), "nothing that learns is in front of what is frozen"
    assert checkup.ledger.samples == 16
    assert same_states(random_states(), states)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items() if before)


def test_the_stages_of_a_few_of_them():
    def stages(name):
        build, loss, batch = MODELS[name]
        loader = DataLoader(One(), batch_size=None, collate_fn=lambda _: batch)
        return gs.check(quiet(build), loss, loader).graph

    adapted = stages("adapter")
    assert [stage.layer.parameters for stage in adapted.stages[1:3]] == [("down",), ("up",)]
    assert [stage.layer.name for stage in stages("packed GRU").stages] == ["gru", "linear"]
    tied = stages("tied, with its own loss")
    assert [stage.layer.weight for stage in tied.stages] == ["words.weight", "", "words.weight"]
    assert tied.loss == ("cross_entropy",)
    assert [stage.name for stage in stages("recurrent by hand").stages][:3] == ["step", "step #2", "step #3"]


def test_a_batch_of_words_with_labels_needs_nothing_else():
    class Speaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)

        def forward(self, input_ids, labels=None):
            scores = self.head(self.words(input_ids))
            return {"loss": F.cross_entropy(scores.flatten(0, 1), labels.flatten()), "scores": scores}

    checkup = gs.check(quiet(Speaks), data={"input_ids": WORDS, "labels": WORDS})
    assert checkup.ledger.loss == pytest.approx(2.4, abs=0.5)
    assert all(row.gradient for row in checkup.ledger.rows)
