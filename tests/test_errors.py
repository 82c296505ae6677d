"""Errors are of a kind that a caller may already be waiting for."""

import pytest

from gainstage.errors import BadInput, GainstageError, MissingExtra


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BadInput("so"), GainstageError),
        (BadInput("so"), ValueError),
        (MissingExtra("a", "b"), GainstageError),
        (MissingExtra("a", "b"), ImportError),
    ],
)
def test_errors_are_gainstages_own_and_pythons(error, kind):
    assert isinstance(error, kind)


def test_a_missing_extra_says_what_to_install():
    expected = "this needs polars, which is not installed; run: pip install 'gainstage[frames]'"
    assert str(MissingExtra("polars", "frames")) == expected
