"""The one kind of error that Gainstage raises on purpose."""


class GainstageError(Exception):
    """A problem its reader can solve: one sentence that says what, where and what to do."""


class BadInput(GainstageError, ValueError):
    """Something handed to Gainstage cannot be used as it is."""


class MissingExtra(GainstageError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str):
        super().__init__(f"this needs {package}, which is not installed; run: pip install 'gainstage[{extra}]'")
