"""Fixtures for all tests: one thread, and a guard that fails a test which leaves something behind."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch
from torch.nn.modules import module as torch_module

from tests.tools import random_states, same_states

ROOT = Path(__file__).resolve().parent.parent
SET_BY_LIBRARIES = {"PYTEST_CURRENT_TEST", "_RJEM_MALLOC_CONF", "TORCHINDUCTOR_CACHE_DIR"}  # pytest, polars, torch
torch.set_num_threads(1)


def _global_hooks() -> int:
    names = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")
    return sum(len(getattr(torch_module, name)) for name in names)


def _files() -> set[str]:
    tools = ("cache", ".hypothesis", ".coverage")
    entries = {entry.name for folder in (ROOT, Path.cwd()) for entry in folder.iterdir()}
    return {name for name in entries if not any(tool in name for tool in tools)}


@pytest.fixture(autouse=True)
def nothing_left_behind(request):
    """Seeds the test, then fails it if hooks, threads, files in the project, environment or torch modes stay behind.

    A test that draws from the process's random state on purpose is marked `draws`; all others must leave it alone.
    """
    torch.manual_seed(0)
    randomness, hooks, files = random_states(), _global_hooks(), _files()
    threads, environment = threading.active_count(), dict(os.environ)
    yield
    changed = (environment.keys() ^ os.environ.keys()) - SET_BY_LIBRARIES
    assert not changed, f"environment changed: {changed}"
    assert _global_hooks() == hooks, "a global module hook was left behind"
    assert threading.active_count() <= threads, "a thread was left running"
    assert _files() == files, f"files were left behind: {_files() ^ files}"
    assert torch.is_grad_enabled(), "gradients were left switched off"
    assert not torch.overrides._get_current_function_mode_stack(), "a torch function mode was left on"
    if not request.node.get_closest_marker("draws"):
        assert same_states(random_states(), randomness), (
            "the process's random state moved; mark the test `draws` if meant"
        )
