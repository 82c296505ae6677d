"""From "file.py:build" to a Program: what is accepted, and one sentence for everything else."""

from __future__ import annotations

import contextlib
import importlib
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from torch import nn

from gainstage.cli.target import load
from gainstage.errors import BadInput, GainstageError
from gainstage.program import Program
from tests.tools import blobs

PARTS = """
import torch
from torch import nn
from gainstage import Program

torch_x, torch_y = torch.zeros(8, 4), torch.arange(8) % 3
parts = nn.Identity(), nn.CrossEntropyLoss(), (torch_x, torch_y)
"""


@pytest.fixture(autouse=True)
def imports_put_back(monkeypatch):
    """Modules and the search path are afterwards as before."""
    before, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("_gainstage_target", "farm")):
            del sys.modules[name]
    sys.path[:] = path
    importlib.invalidate_caches()


def write(folder: Path, code: str, name: str = "farm.py") -> Path:
    path = folder / name
    path.write_text(PARTS + dedent(code), encoding="utf-8")
    return path


def complaint(text: str) -> str:
    """The one sentence with which `text` is refused."""
    with pytest.raises(BadInput) as caught:
        load(text)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


ACCEPTED = {
    "a function that returns a Program": "def build(): return Program(*parts, epochs=2)",
    "a function that returns a tuple": "def build(): return parts",
    "a function that returns a list": "def build(): return list(parts)",
    "a Program": "build = Program(*parts)",
    "a function with defaults": "def build(a=1, *b, c=2, **d): return parts",
    "a lambda": "build = lambda: parts",
    "a class that builds a tuple": "class build(tuple):\n    def __new__(cls): return tuple.__new__(cls, parts)",
}


@pytest.mark.parametrize("code", ACCEPTED.values(), ids=ACCEPTED)
@pytest.mark.parametrize("suffix", [":build", ""])
def test_what_builds_a_program_is_accepted_and_called_build_by_default(tmp_path, code, suffix):
    program = load(f"{write(tmp_path, code)}{suffix}").program
    assert isinstance(program, Program)
    assert program.source.samples == 8


def test_the_builder_may_have_any_name(tmp_path):
    path = write(tmp_path, "def other(): return Program(*parts, epochs=7)")
    assert load(f"{path}:other").program.epochs == 7


def test_a_program_keeps_its_settings(tmp_path):
    path = write(tmp_path, "def build(): return Program(*parts, optimizer='sgd', batch_size=4, epochs=3)")
    program = load(str(path)).program
    assert (program.optimizer, program.batch_size, program.epochs) == ("sgd", 4, 3)


def test_a_relative_path_is_accepted(tmp_path, monkeypatch):
    write(tmp_path, "def build(): return parts")
    monkeypatch.chdir(tmp_path)
    assert load("farm.py:build").program.source.samples == 8


def test_a_module_is_found_from_the_working_folder(tmp_path, monkeypatch):
    package = tmp_path / "farm"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    write(package, "def build(): return parts", "cows.py")
    monkeypatch.chdir(tmp_path)
    assert load("farm.cows:build").program.source.samples == 8


def test_a_file_may_import_its_neighbours(tmp_path):
    (tmp_path / "farm_neighbour.py").write_text("number = 5", encoding="utf-8")
    path = write(tmp_path, "from farm_neighbour import number\ndef build(): return Program(*parts, epochs=number)")
    assert load(str(path)).program.epochs == 5


LATE = "def build():\n    from farm_neighbour import number\n    return Program(*parts, epochs=number)"


def test_a_builder_may_import_its_neighbours_when_it_is_called(tmp_path):
    (tmp_path / "farm_neighbour.py").write_text("number = 5", encoding="utf-8")
    assert load(str(write(tmp_path, LATE))).program.epochs == 5


def test_a_search_path_that_the_file_sets_is_kept(tmp_path):
    library = tmp_path / "library"
    library.mkdir()
    (library / "farm_neighbour.py").write_text("number = 5", encoding="utf-8")
    path = write(tmp_path, f"import sys\nsys.path.insert(0, {str(library)!r})\n{LATE}")
    assert load(str(path)).program.epochs == 5


@pytest.mark.parametrize("code", ["def build(): return parts", "raise ValueError('no')"])
def test_the_search_path_is_put_back(tmp_path, code):
    path, before = write(tmp_path, code), list(sys.path)
    with contextlib.suppress(BadInput):
        load(str(path))
    assert sys.path == before


def test_the_file_finds_itself_among_the_modules(tmp_path):
    code = """
    from dataclasses import dataclass

    @dataclass
    class Settings:
        epochs: "int" = 4

    def build(): return Program(*parts, epochs=Settings().epochs)
    """
    assert load(str(write(tmp_path, code))).program.epochs == 4


REFUSED = {
    "def build(): return parts[0]": "must return a Program or (model, loss, data), but it returned a Identity",
    "def build(): return parts[:2]": "but it returned a tuple of 2",
    "def build(): return None": "but it returned a NoneType",
    "def build(model, *, size): return parts": "must be callable without arguments, but it needs model, size",
    "def build(): raise ValueError('two\\nlines')": "failed: ValueError: two lines",
    "def build(): return 'model', parts[1], parts[2]": "the model must be a torch.nn.Module, got a str",
    "build = 3": "is a int; it must be a callable that returns a Program",
    "": "has no 'build'; name a callable",
    "import nonexistent_module": "cannot be imported: ModuleNotFoundError: No module named 'nonexistent_module'",
    "def build(:": "cannot be imported: SyntaxError",
    "raise RuntimeError('no')": "cannot be imported: RuntimeError: no",
}


@pytest.mark.parametrize(("code", "phrase"), REFUSED.items(), ids=REFUSED.values())
def test_what_cannot_be_used_is_refused_in_one_sentence(tmp_path, code, phrase):
    assert phrase in complaint(f"{write(tmp_path, code)}:build")


def test_a_complaint_needs_something_to_complain_of(tmp_path):
    path = write(tmp_path, "def build(): return parts")
    with pytest.raises(pytest.fail.Exception):
        complaint(str(path))


def test_a_complaint_names_the_file_and_the_name(tmp_path):
    path = write(tmp_path, "")
    assert complaint(f"{path}:barn").startswith(f"{path} has no 'barn'")


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("nowhere/farm.py:build", "there is no file nowhere/farm.py"),
        ("farm_that_is_not.there:build", "the module 'farm_that_is_not.there' cannot be imported"),
        ("", "the module '' cannot be imported"),
        (":build", "the module '' cannot be imported"),
    ],
)
def test_a_place_that_is_not_there_is_refused(text, phrase):
    assert phrase in complaint(text)


def test_a_folder_is_refused(tmp_path):
    assert complaint(f"{tmp_path}:build").startswith(f"there is no file {tmp_path}")


def test_an_error_of_gainstage_inside_the_file_keeps_its_sentence(tmp_path):
    code = "from gainstage.errors import GainstageError\nraise GainstageError('use the other file')"
    with pytest.raises(GainstageError, match=r"^use the other file$"):
        load(str(write(tmp_path, code)))


@pytest.mark.parametrize("code", ["import sys\nsys.exit(0)", "def build():\n    raise SystemExit(0)"])
def test_a_file_that_ends_the_process_is_refused(tmp_path, code):
    assert "SystemExit" in complaint(str(write(tmp_path, code)))


@pytest.mark.parametrize(
    ("comment", "codes"),
    [
        ("# gainstage: ignore[S103]", ("S103",)),
        ("#gainstage:ignore[S103,G101]", ("S103", "G101")),
        ("# gainstage: ignore[ S103 , vanishing-gradient ]", ("S103", "vanishing-gradient")),
        ("x = 1  # gainstage: ignore[S1]\n# gainstage: ignore[G]", ("S1", "G")),
        ("# gainstage: ignore", ()),
        ("# gainstage: ignore[]", ()),
        ("# noqa: S103", ()),
    ],
)
def test_codes_in_comments_are_collected(tmp_path, comment, codes):
    path = write(tmp_path, f"{comment}\ndef build(): return parts")
    assert load(str(path)).ignored == codes


def test_a_module_without_source_ignores_nothing(tmp_path, monkeypatch):
    (tmp_path / "farm").mkdir()  # a package without __init__.py has no source text
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("farm")
    module.build = Program(nn.Identity(), nn.CrossEntropyLoss(), blobs())
    assert load("farm:build").ignored == ()
