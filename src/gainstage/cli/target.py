"""From "path/to/file.py:build" or "package.module:build" to a Program."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from gainstage.errors import BadInput, GainstageError
from gainstage.program import Program

IGNORE = re.compile(r"#\s*gainstage:\s*ignore\[([A-Za-z0-9_, -]+)\]")
DEFAULT_NAME = "build"


@dataclass(frozen=True)
class Target:
    """A program built from the user's file, and the rules that the file asks to ignore."""

    program: Program
    ignored: tuple[str, ...]


def load(text: str) -> Target:
    """Import the file or module and call its builder, which returns a Program or (model, loss, data).

    Raises BadInput, in one sentence, for a path that is not there, a name that is missing, a callable that needs
    arguments, and an error in the user's code.
    """
    place, name = _split(text)
    with redirect_stdout(sys.stderr):  # what the user's file prints must not mix with results
        return _load(place, name)


def _load(place: str, name: str) -> Target:
    is_file = place.endswith(".py") or "/" in place
    with _importable(Path(place).resolve().parent if is_file else Path.cwd()):
        module = _from_file(Path(place)) if is_file else _from_name(place)
        builder = getattr(module, name, None)
        if builder is None:
            raise BadInput(f"{place} has no {name!r}; name a callable that returns a Program: {place}:your_function")
        built = builder if isinstance(builder, Program) else _call(builder, place, name)
        return Target(_as_program(built, place, name), _ignored(module))


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Modules beside the user's file can be imported, by the file itself and by its builder."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def _split(text: str) -> tuple[str, str]:
    place, colon, name = text.rpartition(":")
    return (place, name) if colon and name and "/" not in name else (text.rstrip(":"), DEFAULT_NAME)


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise BadInput(f"there is no file {path}; give path/to/file.py:build or package.module:build")
    name = f"_gainstage_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadInput(f"{path} is not a Python file; give path/to/file.py:build")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles in the user's file look themselves up here
    _run(lambda: spec.loader.exec_module(module), f"{path} cannot be imported")  # type: ignore[union-attr]
    return module


def _from_name(name: str) -> ModuleType:
    return _run(lambda: importlib.import_module(name), f"the module {name!r} cannot be imported")


def _call(builder: Callable[[], Any], place: str, name: str) -> Any:
    if not callable(builder):
        raise BadInput(f"{name} in {place} is a {type(builder).__name__}; it must be a callable that returns a Program")
    try:
        needed = [
            p.name
            for p in inspect.signature(builder).parameters.values()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
    except (TypeError, ValueError):
        needed = []
    if needed:
        raise BadInput(f"{name} in {place} must be callable without arguments, but it needs {', '.join(needed)}")
    return _run(builder, f"{name}() in {place} failed")


def _run(action: Callable[[], Any], what: str) -> Any:
    """Run the user's code; whatever it raises becomes one sentence. A call of sys.exit is no verdict either."""
    try:
        return action()
    except GainstageError:
        raise
    except (Exception, SystemExit) as error:
        raise BadInput(f"{what}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def _as_program(built: Any, place: str, name: str) -> Program:
    if isinstance(built, Program):
        return built
    if isinstance(built, (tuple, list)) and len(built) == 3:
        return Program(*built)
    kind = f"a {type(built).__name__}" + (f" of {len(built)}" if isinstance(built, (tuple, list)) else "")
    raise BadInput(f"{name}() in {place} must return a Program or (model, loss, data), but it returned {kind}")


def _ignored(module: ModuleType) -> tuple[str, ...]:
    """Codes in comments of the form  # gainstage: ignore[G101, S103]  anywhere in the user's file."""
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError):
        return ()
    return tuple(code.strip() for group in IGNORE.findall(source) for code in group.split(",") if code.strip())
