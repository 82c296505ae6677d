"""Weights and results on disk: bit for bit there and back, and one sentence for what is damaged or in the way."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from gainstage.errors import BadInput
from gainstage.training import Run, load_weights, save_weights
from gainstage.training.files import save_run
from tests.tools import quiet, refill


def network(hidden: int = 8, seed: int = 0) -> nn.Sequential:
    model = nn.Sequential(
        nn.Linear(20, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, 3).to(torch.bfloat16), nn.Linear(3, 3).double()
    )
    with torch.no_grad():
        model[1].running_mean.fill_(0.1 * seed)
    return refill(model, seed=seed)


def made(hidden: int = 8, seed: int = 0) -> nn.Sequential:
    return quiet(lambda: network(hidden, seed))


class Tied(nn.Module):
    """Two layers share one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    """True when two models' parameters and buffers have the same names, types and bits."""
    mine, yours = a.state_dict(), b.state_dict()
    if mine.keys() != yours.keys():
        return False
    return all(v.dtype == yours[k].dtype and torch.equal(v, yours[k]) for k, v in mine.items())


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_weights(made(seed=1), path)
    return path


def test_weights_come_back_bit_by_bit(saved):
    model = made(seed=2)
    load_weights(model, saved)
    assert same_bits(model, made(seed=1))


def test_one_different_bit_is_noticed():
    model = made()
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nextafter(model[0].weight[0, 0], torch.tensor(9.0))
    assert not same_bits(model, made())


@pytest.mark.parametrize("other", [made(hidden=9), nn.Identity(), made().float()])
def test_another_network_is_noticed(other):
    assert not same_bits(made(), other)


def test_saving_leaves_the_model_as_it_is(tmp_path):
    model = made()
    twin = copy.deepcopy(model)
    save_weights(model, tmp_path / "w.safetensors")
    assert same_bits(model, twin)


def test_folders_on_the_way_are_made(tmp_path):
    save_weights(made(), tmp_path / "a" / "b" / "w.safetensors")
    assert (tmp_path / "a" / "b" / "w.safetensors").is_file()


def test_the_path_may_be_text(tmp_path):
    save_weights(made(seed=1), str(tmp_path / "w.safetensors"))
    model = made(seed=2)
    load_weights(model, str(tmp_path / "w.safetensors"))
    assert same_bits(model, made(seed=1))


def test_a_shared_weight_is_shared_again(tmp_path):
    first, second = quiet(Tied), quiet(lambda: (nn.Linear(1, 1), Tied())[1])
    save_weights(first, tmp_path / "w.safetensors")
    load_weights(second, tmp_path / "w.safetensors")
    assert same_bits(first, second)
    assert second.first.weight is second.second.weight


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "cut in its header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "no weights at all": lambda path: path.write_bytes(b"import os" * 100),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_refused_in_one_sentence_and_changes_nothing(saved, damage):
    damage(saved)
    model = made(seed=2)
    with pytest.raises(BadInput, match=r"^the weights in .*weights\.safetensors cannot be loaded: [^\n]+$"):
        load_weights(model, saved)
    assert same_bits(model, made(seed=2))


def test_weights_of_another_network_are_refused(saved):
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_weights(quiet(lambda: nn.Linear(20, 3)), saved)


def test_a_network_that_refuses_weights_keeps_its_own(saved):
    model = quiet(lambda: nn.Sequential(*made(seed=2)[:2], nn.Linear(8, 4)))
    before = copy.deepcopy(model)
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_weights(model, saved)
    assert same_bits(model, before)


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(BadInput, match=r"^the weights cannot be written to .* choose another place$"):
        save_weights(made(), tmp_path / "file" / "w.safetensors")


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path):
    with pytest.raises(BadInput, match="cannot be written"):
        save_weights(made(), tmp_path)


def test_a_run_is_saved_as_weights_and_strict_json(tmp_path):
    row = {"epoch": 1.0, "train_loss": float("nan")}
    save_run(Run(made(seed=1), (row,), {}), tmp_path)
    text = (tmp_path / "run.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail)["history"] == [{"epoch": 1.0, "train_loss": "nan"}]
    model = made(seed=2)
    load_weights(model, tmp_path / "weights.safetensors")
    assert same_bits(model, made(seed=1))


def test_a_run_that_cannot_be_saved_is_refused(tmp_path):
    (tmp_path / "run.json").mkdir()
    with pytest.raises(BadInput, match=r"^the run cannot be saved to .* choose another folder$"):
        save_run(Run(made(), (), {}), tmp_path)
