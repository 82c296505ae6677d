"""fit(): the same weights as a plain loop, bit for bit; best weights, early stopping, and what a run leaves on disk."""

from __future__ import annotations

import copy
import io
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

import gainstage as gs
from gainstage.errors import BadInput
from gainstage.training import Run, fit, load_weights
from gainstage.training.loop import epoch_seed
from tests.networks import deep
from tests.tools import blobs, generator, quiet, random_states, same_states

LOSS = nn.CrossEntropyLoss()
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(SGD, lr=1e-2), "momentum": partial(SGD, lr=1e-2, momentum=0.9), "adam": Adam
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_colour_asked_for(monkeypatch):
    """Whether there is a terminal is seen from the file alone."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def network(hidden: int = 16) -> nn.Sequential:
    """Dropout draws random numbers, batch normalisation has buffers."""
    return quiet(
        lambda: nn.Sequential(
            nn.Linear(20, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(hidden, 3)
        )
    )


def plain_loop(model: nn.Module, data: tuple[Tensor, Tensor], optimizer, epochs: int, batch_size: int, seed: int):
    """What fit() promises, written by hand: the order of the data is the seed's, the process's states are kept."""
    x, y = data
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        optimizer = optimizer(model.parameters())
        for epoch in range(1, epochs + 1):
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch_seed(seed, epoch)))
            for index in order.split(batch_size):
                optimizer.zero_grad()
                LOSS(model(x[index]), y[index]).backward()
                optimizer.step()
    return model


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    """True when all parameters and buffers are equal, bit by bit."""
    mine, yours = a.state_dict(), b.state_dict()
    return mine.keys() == yours.keys() and all(torch.equal(value, yours[key]) for key, value in mine.items())


def trained(model: nn.Module | None = None, data: Any = None, valid: Any = None, **settings: Any) -> Run:
    """A quiet training of a few epochs."""
    data = blobs(96) if data is None else data
    return fit(model or network(), LOSS, data, valid, progress=False, **{"epochs": 3, **settings})


def opposed() -> dict[str, Any]:
    """Data whose validation loss rises from the first epoch on: the held-out labels are others."""
    x, y = blobs(96)
    return {"data": (x, y), "valid": (x, (y + 1) % 3), "optimizer": partial(SGD, lr=0.5)}


def bursting() -> dict[str, Any]:
    """One good epoch, then a learning rate at which the loss is no longer finite."""
    burst = partial(LambdaLR, lr_lambda=lambda epoch: 1e35 if epoch else 1.0)
    return {"data": blobs(96), "valid": blobs(30, seed=1), "optimizer": partial(SGD, lr=0.1), "schedule": burst}


# ---------------------------------------------------------------- the same as a plain loop
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("seed", [0, 7])
def test_fit_equals_a_plain_loop_bit_by_bit(name, seed):
    run = trained(optimizer=name, seed=seed, batch_size=16)
    assert same_bits(run.model, plain_loop(network(), blobs(96), OPTIMIZERS[name], 3, 16, seed))


def test_watching_every_step_would_not_change_the_weights():
    model = network()
    optimizer = Adam(model.parameters())
    with gs.watch(model, optimizer, every=1) as monitor:
        plain_loop(model, blobs(96), lambda _: optimizer, 3, 16, 0)
    assert len(monitor.history) == 18
    assert same_bits(model, trained(batch_size=16).model)


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"batch_size": 16}, {"epochs": 4}, {"optimizer": "sgd"}, {"data": blobs(95)}], ids=str
)
def test_other_settings_give_other_weights(other):
    assert not same_bits(trained().model, trained(**other).model)


def test_the_same_seed_gives_the_same_weights_and_history():
    first, second = trained(valid=blobs(30), seed=3), trained(valid=blobs(30), seed=3)
    assert same_bits(first.model, second.model)
    for a, b in zip(first.history, second.history, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_the_random_states_of_the_process_do_not_matter_and_are_kept():
    first = trained()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        before = random_states()
        second = trained()
        assert same_states(random_states(), before)
    assert same_bits(first.model, second.model)


def test_the_random_states_are_kept_after_an_error():
    before = random_states()
    with pytest.raises(BadInput):
        trained(quiet(lambda: nn.Linear(7, 3)))
    assert same_states(random_states(), before)


def test_the_training_data_is_untouched():
    x, y = blobs(96)
    trained(data=(x, y))
    assert torch.equal(x, blobs(96)[0])
    assert torch.equal(y, blobs(96)[1])


# ---------------------------------------------------------------- what may be handed in
def as_arrays():
    x, y = blobs(96)
    return x.numpy(), y.numpy()


@pytest.mark.parametrize("data", [as_arrays(), TensorDataset(*blobs(96))], ids=["arrays", "a Dataset"])
def test_arrays_and_data_sets_train_as_tensors_do(data):
    assert same_bits(trained(data=data).model, trained().model)


def test_a_loader_keeps_its_own_order():
    loader = DataLoader(TensorDataset(*blobs(96)), batch_size=16, shuffle=True, generator=generator(5))
    model = network()
    trained(model, loader, epochs=2)
    twin, optimizer = network(), None
    loader.generator.manual_seed(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        optimizer = Adam(twin.parameters())
        for x, y in (batch for _ in range(2) for batch in loader):
            optimizer.zero_grad()
            LOSS(twin(x), y).backward()
            optimizer.step()
    assert same_bits(model, twin)


def test_a_whole_program_trains_by_its_own_settings():
    program = gs.Program(network(), LOSS, blobs(96), optimizer="sgd", batch_size=16, epochs=2)
    run = fit(program, progress=False)
    assert same_bits(run.model, plain_loop(network(), blobs(96), OPTIMIZERS["sgd"], 2, 16, 0))


def test_settings_beside_a_program_come_first():
    program = gs.Program(network(), LOSS, blobs(96), optimizer="sgd", epochs=9)
    assert len(fit(program, epochs=2, optimizer="adam", progress=False).history) == 2


def test_an_optimizer_instance_is_used_as_it_is():
    model = network()
    optimizer = SGD(model.parameters(), lr=1e-2)
    trained(model, optimizer=optimizer, batch_size=16)
    assert same_bits(model, plain_loop(network(), blobs(96), lambda p: SGD(p, lr=1e-2), 3, 16, 0))


def test_the_network_learns():
    run = trained(valid=blobs(96), epochs=10, optimizer=partial(Adam, lr=1e-2))
    assert run.best["valid_accuracy"] > 0.95
    assert run.history[-1]["train_loss"] < run.history[0]["train_loss"] / 2


# ---------------------------------------------------------------- the history
def test_an_epoch_is_recorded_with_its_numbers():
    run = trained(valid=blobs(30))
    assert [row["epoch"] for row in run.history] == [1, 2, 3]
    expected = {"epoch", "learning_rate", "train_loss", "valid_loss", "valid_accuracy", "seconds"}
    assert all(set(row) == expected for row in run.history)


def test_the_training_loss_is_the_mean_over_the_samples():
    model = quiet(lambda: nn.Linear(20, 3))
    x, y = blobs(50)
    run = trained(model, (x, y), optimizer=partial(SGD, lr=0.0), batch_size=32, epochs=1)  # batches of 32 and 18
    assert run.history[0]["train_loss"] == pytest.approx(LOSS(model(x), y).item(), rel=1e-6)


def test_a_schedule_is_stepped_once_an_epoch():
    run = trained(optimizer=partial(SGD, lr=0.1), schedule=partial(StepLR, step_size=1, gamma=0.5), epochs=4)
    assert [row["learning_rate"] for row in run.history] == pytest.approx([0.1, 0.05, 0.025, 0.0125])


def test_without_a_schedule_the_learning_rate_stays():
    run = trained(optimizer=partial(SGD, lr=0.1))
    assert {row["learning_rate"] for row in run.history} == {0.1}


def test_a_schedule_may_follow_the_validation_loss():
    run = trained(**opposed() | {"schedule": partial(ReduceLROnPlateau, patience=0)}, epochs=4)
    assert run.history[-1]["learning_rate"] < run.history[0]["learning_rate"]


# ---------------------------------------------------------------- best weights and the end
def loss_of(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Loss over all samples, in eval mode, computed by hand."""
    with torch.no_grad():
        return LOSS(copy.deepcopy(model).eval()(data[0]), data[1]).item()


def test_the_best_weights_come_back():
    settings = opposed()
    run = trained(epochs=5, **settings)
    assert run.best["epoch"] == 1
    assert loss_of(run.model, settings["valid"]) == pytest.approx(run.best["valid_loss"], rel=1e-6)
    assert run.history[-1]["valid_loss"] > 1.1 * run.best["valid_loss"]


def test_the_best_weights_are_those_of_the_best_epoch_bit_by_bit():
    assert same_bits(trained(epochs=5, **opposed()).model, trained(epochs=1, **opposed()).model)


def test_the_best_epoch_is_the_one_with_the_lowest_validation_loss():
    run = trained(valid=blobs(30, seed=1), epochs=6, optimizer=partial(SGD, lr=1.0))
    assert run.best == min(run.history, key=lambda row: row["valid_loss"])


def test_without_validation_data_the_last_weights_stay():
    run = trained(epochs=2, optimizer="sgd", batch_size=16)
    assert same_bits(run.model, plain_loop(network(), blobs(96), OPTIMIZERS["sgd"], 2, 16, 0))
    assert run.best == min(run.history, key=lambda row: row["train_loss"])


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_training_stops_when_patience_is_over(patience):
    run = trained(epochs=9, patience=patience, **opposed())
    assert len(run.history) == 1 + patience
    assert run.stopped == f"no lower validation loss for {patience} epochs"


def test_training_goes_on_while_it_gets_better():
    run = trained(valid=blobs(96), epochs=4, patience=1, optimizer=partial(SGD, lr=0.01))
    assert (len(run.history), run.stopped) == (4, None)


def test_a_loss_that_is_not_finite_stops_the_training_and_keeps_the_best_weights():
    run = trained(epochs=5, **bursting())
    assert len(run.history) == 2
    assert not np.isfinite(run.history[1]["train_loss"])
    assert run.stopped is not None
    assert "no longer finite" in run.stopped
    assert same_bits(run.model, trained(epochs=1, **bursting()).model)


def test_a_loss_that_is_never_finite_leaves_no_best_epoch():
    run = fit(network(), lambda output, y: LOSS(output, y) * float("nan"), blobs(96), epochs=3, progress=False)
    assert (len(run.history), run.best) == (1, {})
    assert run.stopped is not None


# ---------------------------------------------------------------- batches of one sample
@pytest.mark.parametrize("loader", [False, True])
def test_a_last_batch_of_one_sample_is_left_out_where_there_is_batch_normalisation(loader):
    x, y = blobs(65)
    data = DataLoader(TensorDataset(x, y), batch_size=32, generator=generator()) if loader else (x, y)
    run = trained(data=data, epochs=1, optimizer="sgd")
    assert int(run.model[1].num_batches_tracked) == 2


def test_batch_normalisation_alone_would_refuse_one_sample():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network()(blobs(2)[0][:1])


@pytest.mark.parametrize("loader", [False, True])
def test_batches_of_one_sample_all_train_when_that_is_the_batch_size(loader):
    x, y = blobs(8)
    model = quiet(lambda: nn.Linear(20, 3))
    optimizer, steps = SGD(model.parameters(), lr=0.1), []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    data = DataLoader(TensorDataset(x, y), batch_size=1, generator=generator()) if loader else (x, y)
    trained(model, data, optimizer=optimizer, epochs=1, batch_size=1)
    assert len(steps) == 8


def test_training_data_without_a_batch_is_refused():
    loader = DataLoader(TensorDataset(*blobs(3)), batch_size=4, drop_last=True, generator=generator())
    with pytest.raises(BadInput):
        trained(data=loader)


# ---------------------------------------------------------------- modes, hooks, modes of frozen parts
def test_a_frozen_module_stays_in_eval_mode():
    model = network().train()
    model[1].eval()
    run = trained(model, valid=blobs(30))
    assert [module.training for module in run.model.modules()] == [True, True, False, True, True, True]
    assert int(run.model[1].num_batches_tracked) == 0


def test_a_model_in_eval_mode_is_trained_in_train_mode():
    run = trained(network().eval())
    assert int(run.model[1].num_batches_tracked) == 9


def test_frozen_weights_stay_as_they_are():
    model = network()
    model[0].requires_grad_(False)
    run = trained(model)
    assert torch.equal(run.model[0].weight, network()[0].weight)
    assert not torch.equal(run.model[4].weight, network()[4].weight)


@pytest.mark.parametrize("data", [blobs(96), (torch.zeros(8, 7), torch.arange(8) % 3)], ids=["good", "bad"])
def test_no_hook_stays_on_model_or_optimizer(data):
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    try:
        trained(model, data, optimizer=optimizer)
    except BadInput:
        assert data[0].shape[1] == 7
    hooks = [m._forward_hooks or m._forward_pre_hooks for m in model.modules()]
    assert not any([*hooks, optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks])


# ---------------------------------------------------------------- findings, progress, the folder
def sick_run(folder: Path | None = None) -> Run:
    """The first step shows a signal that vanishes."""
    return trained(deep(20, "logistic", "glorot_normal", width=32), folder=folder, epochs=1)


def test_findings_of_the_training_are_part_of_the_run():
    codes = [finding.code for finding in sick_run().findings]
    assert "S103" in codes
    assert len(codes) == len(set(codes))
    assert trained(deep(2, "selu")).findings == ()


def test_progress_is_told_of_every_epoch_and_is_silent_when_not_wanted(capsys):
    with redirect_stderr(io.StringIO()) as shown:
        fit(network(), LOSS, blobs(96), epochs=2, label="original")
    assert [line.split()[:3] for line in shown.getvalue().splitlines()] == [
        ["original:", "epoch", "1/2"], ["original:", "epoch", "2/2"]
    ]  # fmt: skip
    trained()
    assert capsys.readouterr() == ("", "")


def table(folder: Path, query: str) -> list[tuple]:
    with closing(sqlite3.connect(folder / "run.sqlite")) as database:
        return database.execute(query).fetchall()


def test_a_folder_holds_metrics_history_and_weights(tmp_path):
    run = trained(valid=blobs(30), folder=tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["run.json", "run.sqlite", "weights.safetensors"]
    assert run.folder == tmp_path / "run"
    model = quiet(lambda: (nn.Linear(1, 1), network())[1])
    load_weights(model, tmp_path / "run" / "weights.safetensors")
    assert same_bits(model, run.model)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["history"] == list(run.history)
    metrics = table(tmp_path / "run", "SELECT value FROM metrics WHERE name = 'valid_loss' ORDER BY epoch")
    assert metrics == [(row["valid_loss"],) for row in run.history]


def test_findings_are_written_to_the_folder(tmp_path):
    run = sick_run(tmp_path)
    assert table(tmp_path, "SELECT code FROM findings") == [(finding.code,) for finding in run.findings]


def test_readings_are_written_to_the_folder(tmp_path):
    trained(folder=tmp_path)
    assert table(tmp_path, "SELECT DISTINCT stage FROM readings ORDER BY stage") == [("0",), ("4",)]


def test_findings_are_written_with_the_step_at_which_they_came_up(tmp_path):
    sick_run(tmp_path)
    assert table(tmp_path, "SELECT DISTINCT step FROM findings") == [(0,)]


def test_a_folder_does_not_change_the_weights(tmp_path):
    assert same_bits(trained(folder=tmp_path).model, trained().model)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert trained().folder is None
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_breaks_leaves_its_metrics_readable(tmp_path):
    run = trained(folder=tmp_path, epochs=5, **bursting())
    assert table(tmp_path, "SELECT count(DISTINCT epoch) FROM metrics") == [(len(run.history),)]
    assert json.loads((tmp_path / "run.json").read_text())["stopped"] == run.stopped


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"epochs": 1.5}, "epochs must be a whole number of at least 1, got 1.5"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"optimizer": "magic"}, "no optimiser is called 'magic'"),
        ({"schedule": 0.5}, "schedule must be a callable that takes the optimiser, got 0.5"),
        ({"patience": 2}, "patience counts epochs"),
        ({"budget": 0}, "budget is the share of time"),
        ({"data": 3}, "data must be"),
        ({"data": blobs(96)[:1]}, "data must be"),
        ({"valid": "x"}, "data must be"),
        ({"data": (torch.zeros(8, 7), torch.arange(8) % 3)}, "forward failed on inputs of shape (8, 7)"),
        ({"data": (blobs(8)[0], torch.arange(8))}, "labels are outside 0..2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_refused_in_one_sentence(settings, sentence):
    with pytest.raises(BadInput) as caught:
        trained(**settings)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("patience", [0, -1])
def test_a_patience_below_one_is_refused(patience):
    with pytest.raises(BadInput):
        trained(valid=blobs(30), patience=patience)


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    model = network()
    with pytest.raises(BadInput, match="choose another folder"):
        trained(model, folder=tmp_path / "file")
    assert same_bits(model, network())


def test_weights_that_cannot_be_written_are_refused_after_training(tmp_path):
    (tmp_path / "weights.safetensors").mkdir()
    model = network()
    with pytest.raises(BadInput, match="the weights cannot be written"):
        trained(model, folder=tmp_path)
    assert same_bits(model, trained().model)  # what was learned is still there


def test_two_networks_that_differ_are_told_apart():
    model = network()
    with torch.no_grad():
        model[1].running_mean[0] += 1e-6
    assert not same_bits(model, network())
    assert not same_bits(network(8), network(16))
    assert not same_bits(quiet(lambda: nn.Linear(20, 3)), network())


def test_clipping_bounds_the_length_of_a_step():
    x, y = blobs(64)
    model = deep(1, "tanh")
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    gs.fit(
        model,
        nn.CrossEntropyLoss(),
        (1000 * x, y),
        optimizer=sgd,
        epochs=1,
        batch_size=64,
        clip_norm=0.5,
        progress=False,
    )
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert float((after - before).norm()) == pytest.approx(0.5, rel=1e-3)


def test_a_schedule_may_move_with_every_step():
    x, y = blobs(64)
    seen = []

    def halving(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: seen.append(step) or 0.5**step)

    gs.fit(
        deep(1, "tanh"), nn.CrossEntropyLoss(), (x, y), optimizer="sgd", schedule=halving, schedule_every="step",
        epochs=2, batch_size=16, progress=False,
    )  # fmt: skip
    assert seen[-1] == 8


@pytest.mark.parametrize("options", [{"schedule_every": "minute"}, {"clip_norm": 0.0}, {"clip_norm": -1.0}])
def test_settings_that_cannot_be_used_get_one_sentence(options):
    with pytest.raises(BadInput, match=next(iter(options))):
        gs.fit(deep(1, "tanh"), nn.CrossEntropyLoss(), blobs(64), progress=False, **options)
