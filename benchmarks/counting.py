"""What can be counted exactly: bytes that torch allocates, bytes of Python's objects, waits for the device."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

Action = Callable[[], object]


def allocated(action: Action, device: str) -> int:
    """Bytes of torch's tensors at the peak, beyond what there was before."""
    if device == "cpu":
        return _peak(action)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    action()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak(action: Action) -> int:
    """The profiler notes every allocation and every release of the processor's memory."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        action()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(path))
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event["args"]["Ev Idx"]):
        now += event["args"]["Bytes"]
        most = max(most, now)
    return most


def python_bytes(action: Action) -> int:
    """Bytes of Python's (and NumPy's) objects at the peak, beyond what there was before."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def waits(action: Action, device: str) -> int:
    """How often the program waits for the device's numbers. On a processor nothing waits: counted is what would, of a network
    in single precision. (Theory's own integrals, in double precision, are on the processor wherever the network is.)"""
    if device == "cpu":
        return _transfers(action)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            action()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def _transfers(action: Action) -> int:
    counter = _Counter()
    with counter.watching("cpu"), counter.watching("tolist"), counter:
        action()
    return counter.count


class _Counter(TorchDispatchMode):
    """Counts item(), bool(), float() and their like, equal, nonzero and masks as indices, cpu() and tolist()."""

    WAITING = frozenset({"_local_scalar_dense", "equal", "nonzero", "masked_select"})

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masked = name == "index" and any(each is not None and each.dtype == torch.bool for each in args[1])
        self.count += (masked or name in self.WAITING) and args[0].dtype != torch.float64
        return func(*args, **(kwargs or {}))

    @contextmanager
    def watching(self, method: str) -> Iterator[None]:
        """Count the calls of a method of tensors, and not what it calls itself."""
        original = getattr(Tensor, method)

        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            before = self.count
            result = original(tensor, *args, **kwargs)
            self.count = before + 1
            return result

        with patch.object(Tensor, method, counted):
            yield
