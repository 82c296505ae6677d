"""run.sqlite: what a run leaves behind while it goes on. Readable by a second process at any moment (WAL)."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gainstage.display import strict_json
from gainstage.errors import BadInput

SCHEMA = """
CREATE TABLE IF NOT EXISTS readings (step INTEGER, stage TEXT, quantity TEXT, value REAL);
CREATE TABLE IF NOT EXISTS metrics (epoch INTEGER, name TEXT, value REAL, time REAL);
CREATE TABLE IF NOT EXISTS findings (step INTEGER, code TEXT, severity TEXT, message TEXT, details TEXT);
"""


class RunStore:
    """Append-only tables of readings, metrics and findings in folder/run.sqlite; each call is one transaction.

    Raises BadInput when the folder cannot be written.
    """

    def __init__(self, folder: str | Path):
        try:
            self.path = Path(folder) / "run.sqlite"
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = _connect(self.path)
        except (OSError, TypeError, sqlite3.Error) as error:
            raise BadInput(f"the run folder {folder} cannot be written ({error}); choose another folder") from error

    def add_readings(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """One ledger: every number of every stage."""
        values = [
            (step, row["name"], key, value) for row in rows for key, value in row.items() if isinstance(value, float)
        ]
        with self._database as transaction:
            transaction.executemany("INSERT INTO readings VALUES (?, ?, ?, ?)", values)

    def add_metrics(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """The metrics of an epoch."""
        now = time.time()
        with self._database as transaction:
            transaction.executemany(
                "INSERT INTO metrics VALUES (?, ?, ?, ?)", [(epoch, k, v, now) for k, v in metrics.items()]
            )

    def add_finding(self, step: int, finding: Any) -> None:
        """A finding as it came up."""
        details = strict_json(finding.to_dict())
        with self._database as transaction:
            transaction.execute(
                "INSERT INTO findings VALUES (?, ?, ?, ?, ?)",
                (step, finding.code, finding.severity, finding.message, details),
            )

    def close(self) -> None:
        """Close the file; it stays readable."""
        self._database.close()


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path)
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.executescript(SCHEMA)
    except sqlite3.Error:
        database.close()
        raise
    return database
