"""Weights and results on disk; loading never executes code."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from gainstage.errors import BadInput
from gainstage.training.run import Run


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write the model's state to one safetensors file; BadInput when that is not possible."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_model(model, str(path))
    except (OSError, SafetensorError) as error:
        raise BadInput(f"the weights cannot be written to {path} ({error}); choose another place") from error


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Put saved weights into `model`; BadInput when the file is missing, damaged or of another network."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        load_model(model, str(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        model.load_state_dict(before)  # what fitted is in already
        raise BadInput(f"the weights in {path} cannot be loaded: {' '.join(str(error).split())}") from error


def save_run(run: Run, folder: Path) -> None:
    """Weights as safetensors and the history as JSON; BadInput when the folder cannot be written."""
    save_weights(run.model, folder / "weights.safetensors")
    try:
        (folder / "run.json").write_text(run.to_json() + "\n", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"the run cannot be saved to {folder} ({error}); choose another folder") from error
