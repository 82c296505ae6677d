"""The house: tests mirror the sources, files stay short, the public names are the promised ones, imports stay light."""

import subprocess
import sys
from pathlib import Path

import pytest

import gainstage as gs

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src" / "gainstage").rglob("*.py"))
MODULES = [path.relative_to(ROOT / "src" / "gainstage") for path in SOURCES if not path.name.startswith("__")]
OPTIONAL = ("pandas", "polars", "sklearn", "matplotlib", "lightning", "transformers", "keras")


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_has_its_tests(module):
    assert (ROOT / "tests" / module.parent / f"test_{module.name}").is_file()


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_no_file_is_longer_than_it_should_be(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_the_public_names_are_these_and_each_can_be_had():
    assert set(gs.__all__) == {
        "Checkup", "Finding", "Ledger", "Program", "Run", "check", "fit", "fix", "initialize", "watch", "nn", "theory",
    }  # fmt: skip
    assert all(getattr(gs, name) is not None for name in gs.__all__)
    with pytest.raises(AttributeError, match="no attribute 'chekc'"):
        _ = gs.chekc


def loaded(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_package_alone_does_not_load_torch():
    assert "torch" not in loaded("import gainstage")
    assert "torch" in loaded("import gainstage; gainstage.check"), "or this test could not fail"


def test_no_optional_package_is_loaded_by_the_core():
    names = loaded(
        "import gainstage as gs; gs.check, gs.fix, gs.fit, gs.watch, gs.initialize; import gainstage.cli.main"
    )
    assert not names & set(OPTIONAL)
    assert "sklearn" in loaded("from gainstage.data import load_digits; load_digits()"), "or this test could not fail"
