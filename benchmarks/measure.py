"""What `check` and `watch` cost beside a plain training step, and what others cost in the same run.

`python -m benchmarks.measure` (about eight minutes on two cores) writes results/measure.md and .json; `--quick` only prints.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch

import gainstage as gs
from benchmarks import peers
from benchmarks.clock import (
    Pair,
    Times,
    extra_time,
    median_ratio,
    median_time,
    repeated,
    time_in_turn,
    total_ratio,
)
from benchmarks.counting import allocated, python_bytes, waits
from benchmarks.networks import Case, Training, cases, deep, training, vectors
from benchmarks.tables import page
from benchmarks.tools import environment, write

SETTLED = 100  # steps behind which watching as it comes is no longer dense
DEPTHS = 100, 1000


@dataclass(frozen=True)
class Effort:
    """How often things are timed. warm: calls before. block: steps of a loop on end. loop, slow: seconds that the loops of a
    network, and the calls of a slow peer, may take, about."""

    rounds: int
    calls: int
    warm: int
    block: int
    loop: float
    slow: float


FULL = Effort(rounds=10, calls=3, warm=2, block=25, loop=70.0, slow=5.0)
QUICK = Effort(rounds=1, calls=1, warm=2, block=4, loop=0.0, slow=0.0)


def check(of: Training) -> Callable[[], object]:
    """A check of the very batch that a step takes."""
    return lambda: gs.check(of.model, of.loss, (of.x, of.y))


def watched(of: Training, **settings: Any) -> Callable[[], object]:
    """A step under watch."""
    gs.watch(of.model, of.optimizer, **settings)
    return of.step


PEERS = {"hooks": peers.naive_hooks, "doctor": peers.skorch_doctor}
TIMED = {"plain": lambda of: of.step, "check": check, "watch": partial(watched, every=1), **PEERS}


def able(
    makers: dict[str, Callable], case: Case, device: str
) -> tuple[dict[str, tuple[Training, Callable[[], object]]], dict[str, str]]:
    """By name a training of its own and the action on it that has run once; and why others cannot run."""
    ready, failed = {}, {}
    for name, make in makers.items():
        own = training(case, device)
        try:
            action = make(own)
            action()
            ready[name] = own, action
        except ImportError as error:
            failed[name] = f"not installed ({error.name})"
        except Exception as error:
            failed[name] = f"fails: {type(error).__name__}: {error}".splitlines()[0]
    return ready, failed


def time_steps(case: Case, effort: Effort, device: str) -> dict[str, Any]:
    """Medians of single steps, of checks, and of the peers' steps."""
    ready, failed = able(TIMED, case, device)
    actions = {name: action for name, (_, action) in ready.items()}
    for action in actions.values():
        repeated(action, effort.warm)()
    times = time_in_turn(actions, effort.rounds, effort.calls, device)
    ratios = {name: median_ratio(times, name) for name in actions if name != "plain"}
    return {"step_s": median_time(times, "plain"), **ratios, **failed, **time_cockpit(case, effort, device)}


def time_cockpit(case: Case, effort: Effort, device: str) -> dict[str, Pair | str]:
    """Cockpit at every step, a few steps only where they are slow."""
    ready, failed = able({"plain": TIMED["plain"], "cockpit": peers.cockpit}, case, device)
    if failed:
        return {"cockpit": failed["cockpit"]}
    actions = {name: action for name, (_, action) in ready.items()}
    times = time_in_turn(actions, 1, 1, device)
    rounds = int(effort.slow / times["cockpit"][0, 0, 0])
    if rounds:
        times = time_in_turn(actions, min(rounds, effort.rounds), 1, device)
    return {"cockpit": median_ratio(times, "cockpit")}


def count_memory(case: Case, device: str) -> dict[str, Any]:
    """Bytes at the peak beyond the weights and the data; there are no gradients before."""
    ready, failed = able({"plain": TIMED["plain"], "check": check, **PEERS}, case, device)
    found: dict[str, Any] = {}
    for name, (own, action) in ready.items():
        own.model.zero_grad()
        found[name] = allocated(action, device)
    return {**found, **failed, "python": python_bytes(ready["check"][1])}


def count_waits(case: Case, device: str) -> dict[str, int]:
    """The most waits beyond those of a plain step: in the first step that is measured, in later ones, and in judged ones."""
    own = training(case, device)
    plain = waits(own.step, device)
    monitor = gs.watch(own.model, own.optimizer, every=1)
    found = {"first": waits(own.step, device) - plain, "measured": 0, "judged": 0}
    for _ in range(8):
        kind = "judged" if monitor.sampler.judges(monitor.step) else "measured"
        found[kind] = max(found[kind], waits(own.step, device) - plain)
    return found


def time_loop(case: Case, effort: Effort, device: str) -> dict[str, Any]:
    """A whole loop from the first step on, of at most 500 steps: all its time, that of judging and collecting included."""
    plain, every, adaptive = (training(case, device) for _ in range(3))
    monitors = gs.watch(every.model, every.optimizer, every=1), gs.watch(adaptive.model, adaptive.optimizer)
    began = perf_counter()
    repeated(plain.step, 3)()
    block = perf_counter() - began
    blocks = min(500 // effort.block, max(2, int(effort.loop / (block * effort.block))))
    loops = {"plain": plain, "every": every, "adaptive": adaptive}
    actions = {name: repeated(each.step, effort.block) for name, each in loops.items()}
    times = time_in_turn(actions, blocks, 1, device, collecting=True)
    settled = SETTLED // effort.block
    return {
        "steps": blocks * effort.block,
        "every": total_ratio(times, "every"),
        "adaptive": total_ratio(times, "adaptive"),
        "settled": total_ratio(times, "adaptive", since=settled) if blocks > settled else None,
        "measured": len(monitors[1].history),
        "findings": [len(monitor.findings) for monitor in monitors],
    }


def time_depths(effort: Effort, device: str) -> dict[str, dict[str, Pair]]:
    """Seconds a stage, by action and depth: of a plain step, of a check, and what watching adds to a step."""
    times: dict[int, Times] = {}
    for depth in DEPTHS:
        case = Case(f"{depth} layers", partial(deep, depth), partial(vectors, 32))
        ready, _ = able({name: TIMED[name] for name in ("plain", "check", "watch")}, case, device)
        actions = {name: action for name, (_, action) in ready.items()}
        repeated(actions["watch"], 4 * effort.warm)()
        times[depth] = time_in_turn(actions, effort.rounds, effort.calls, device)
    read = {"plain": median_time, "check": median_time, "watch": extra_time}
    return {
        name: {str(depth): per_stage(of(each, name), depth + 1) for depth, each in times.items()}
        for name, of in read.items()
    }


def per_stage(seconds: Pair, stages: int) -> Pair:
    """A stage's part."""
    return seconds[0] / stages, seconds[1] / stages


def measure_case(case: Case, effort: Effort, device: str) -> dict[str, Any]:
    """All figures of one network."""
    return {
        "goal": case.goal,
        "steps": time_steps(case, effort, device),
        "memory": count_memory(case, device),
        "loop": time_loop(case, effort, device),
        "waits": count_waits(case, device),
    }


def main() -> None:
    """Write results/measure.json and results/measure.md, or print them."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--device", default="cpu")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument(
        "--quick", action="store_true", help="a smoke test: some networks, every figure once, nothing written"
    )
    given = options.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # of torch's profiler
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")  # of the peers' hooks
    effort = QUICK if given.quick else FULL
    chosen = [case for case in cases() if case.quick or not given.quick]
    processor = given.device == "cpu" and given.threads == 1
    figures = {
        "environment": {**environment(given.threads), "device": given.device},
        "pairs": "wall time, processor time of the thread" + (" (tells nothing here)" if not processor else ""),
        "networks": {case.name: measure_case(case, effort, given.device) for case in chosen},
        "depth": time_depths(effort, given.device),
    }
    text = page(figures, processor)
    if given.quick:
        print(text)  # noqa: T201
    else:
        write("measure", text, figures)


if __name__ == "__main__":
    main()
