"""python -m monitoring.ledger FILE [--json]

The policy's memory, WORKSPACE/decisions.db (SQLite): each decision with its reason, what a probe expected of a retrain
beside what came true of it, and what the teacher was paid for.
It survives restarts, and of processes that ask at once one decides and the others are told. No prompt goes in.
"""

import argparse
import json
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from monitoring.errors import Failure, InputError
from monitoring.history import Decision, History, Observation, Probed
from monitoring.probe import told

VERSION = 2  # of the tables; 2 has probes
BUSY_SECONDS = 60.0  # a decision takes milliseconds

_TABLES = (
    """CREATE TABLE IF NOT EXISTS decisions (
        id INTEGER PRIMARY KEY,
        time TEXT NOT NULL,
        student TEXT NOT NULL,
        source TEXT NOT NULL,
        window TEXT NOT NULL,
        window_digest TEXT NOT NULL,
        champion TEXT NOT NULL,
        champion_digest TEXT NOT NULL,
        severity TEXT NOT NULL,
        drifted_columns TEXT NOT NULL,
        quality REAL,
        quality_high REAL,
        rows INTEGER NOT NULL,
        log_rows INTEGER NOT NULL,
        trigger INTEGER NOT NULL,
        reason TEXT NOT NULL,
        settings_digest TEXT NOT NULL,
        forced INTEGER NOT NULL,
        UNIQUE (student, window_digest, champion_digest, settings_digest, forced)
    )""",
    "CREATE TABLE IF NOT EXISTS purchases (retrain_id TEXT PRIMARY KEY, time TEXT NOT NULL, tokens INTEGER NOT NULL)",
    """CREATE TABLE IF NOT EXISTS probes (
        retrain_id TEXT PRIMARY KEY,
        time TEXT NOT NULL,
        student TEXT NOT NULL,
        window TEXT NOT NULL,
        pays INTEGER NOT NULL,
        reason TEXT NOT NULL,
        expected TEXT NOT NULL,
        true TEXT
    )""",
)
_COLUMNS = (
    "time", "student", "source", "window", "window_digest", "champion", "champion_digest", "severity",
    "drifted_columns", "quality", "quality_high", "rows", "log_rows", "trigger", "reason", "settings_digest", "forced",
)  # fmt: skip

_STORED = """SELECT trigger, reason FROM decisions WHERE student = :student AND window_digest = :window_digest
    AND champion_digest = :champion_digest AND settings_digest = :settings_digest AND forced = :forced"""


class Ledger:
    """The decisions and purchases of a workspace; opened anew for each call, so it may be shared freely."""

    def __init__(self, path: Path) -> None:
        """Name the file; it is made when the first decision is written."""
        self.path = path

    def answer(
        self,
        decide: Callable[[History], Observation],
        *,
        student: str,
        window_digest: str,
        champion_digest: str,
        settings_digest: str,
        time: datetime,
        source: Literal["monitor", "retrain"],
        forced: bool = False,
    ) -> Decision:
        """Return the answer to a question: the stored one, or what `decide` says to the history, which is stored.

        History is read and the answer written in one transaction: two processes never both decide. A question is
        (student, window_digest, champion_digest, settings_digest, forced); `time` says which month's purchases count.
        """
        question = {
            "student": student,
            "window_digest": window_digest,
            "champion_digest": champion_digest,
            "settings_digest": settings_digest,
            "forced": int(forced),
        }
        with self._writing() as database:
            stored = database.execute(_STORED, question).fetchone()
            if stored is not None:
                return Decision(trigger=bool(stored["trigger"]), reason=stored["reason"])
            seen = decide(_history(database, student, time))
            values = seen.model_dump() | question | {"source": source, "time": _text(seen.time)}
            values["drifted_columns"] = json.dumps(seen.drifted_columns)
            database.execute(
                f"INSERT INTO decisions ({', '.join(_COLUMNS)}) "  # noqa: S608  (our own names)
                f"VALUES ({', '.join(f':{name}' for name in _COLUMNS)})",
                values,
            )
        return Decision(trigger=seen.trigger, reason=seen.reason)

    def record_purchase(self, retrain_id: str, time: datetime, tokens: int) -> None:
        """Write down what a retrain has bought so far; the largest count stands, so it may be said twice."""
        with self._writing() as database:
            database.execute(
                "INSERT INTO purchases (retrain_id, time, tokens) VALUES (?, ?, ?) "
                "ON CONFLICT (retrain_id) DO UPDATE SET tokens = max(tokens, excluded.tokens)",
                (retrain_id, _text(time), tokens),
            )

    def record_probe(self, probed: Probed) -> None:
        """Write down what was expected of a retrain, or what came true of it, in place of what was there."""
        values = probed.model_dump() | {
            "time": _text(probed.time),
            "pays": int(probed.pays),
            "expected": json.dumps(probed.expected),
            "true": None if probed.true is None else json.dumps(probed.true),
        }
        with self._writing() as database:
            database.execute(
                "INSERT OR REPLACE INTO probes VALUES "
                "(:retrain_id, :time, :student, :window, :pays, :reason, :expected, :true)",
                values,
            )

    def probes(self) -> list[Probed]:
        """Return all probes, the oldest first."""
        with self._writing() as database:
            return [_probed(row) for row in database.execute("SELECT * FROM probes ORDER BY time")]

    def bought(self, time: datetime) -> int:
        """Return the tokens bought in the month of `time`."""
        with self._writing() as database:
            return _bought(database, time)

    def history(self, student: str, time: datetime) -> History:
        """Return the student's decisions so far and the tokens bought in the month of `time`."""
        with self._writing() as database:
            return _history(database, student, time)

    def decisions(self) -> list[dict[str, Any]]:
        """Return all decisions, the oldest first; InputError when there is no file."""
        if not self.path.is_file():
            raise InputError(f"{str(self.path)!r}: there is no such ledger; a workspace has one as decisions.db")
        with self._writing() as database:
            return [_record(row) for row in database.execute("SELECT * FROM decisions ORDER BY id")]

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the database alone: commits at the end, or leaves it as it was."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)) as database:
                database.row_factory = sqlite3.Row
                _write_ahead(database)
                database.execute("BEGIN IMMEDIATE")
                try:
                    self._check_tables(database)
                    yield database
                    database.execute("COMMIT")
                finally:
                    if database.in_transaction:
                        database.execute("ROLLBACK")
        except (OSError, sqlite3.OperationalError) as error:
            raise Failure(
                f"decision ledger {str(self.path)!r} cannot be used ({error}): see to free space, permissions and "
                "processes that hold it, then try again, which is safe"
            ) from error
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"decision ledger {str(self.path)!r} is damaged ({error}): restore it from a backup, or move it "
                "away with its -wal and -shm; then a new one is begun, and the policy has no memory before it"
            ) from error

    def _check_tables(self, database: sqlite3.Connection) -> None:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise InputError(
                f"decision ledger {str(self.path)!r} is of version {version}, this redistill reads {VERSION}: "
                "install the newer redistill that wrote it"
            )
        if version < VERSION:
            for table in _TABLES:
                database.execute(table)
            database.execute(f"PRAGMA user_version = {VERSION}")


def _write_ahead(database: sqlite3.Connection) -> None:
    """Switch to write-ahead logging; when another process is just doing it, its switch is for all."""
    try:
        database.execute("PRAGMA journal_mode = WAL")
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise


def _history(database: sqlite3.Connection, student: str, time: datetime) -> History:
    rows = database.execute("SELECT * FROM decisions WHERE student = ? ORDER BY id", (student,))
    earlier = tuple(
        Observation.model_validate({name: value for name, value in _record(row).items() if name in _REMEMBERED})
        for row in rows
    )
    return History(earlier=earlier, bought_tokens=_bought(database, time))


def _bought(database: sqlite3.Connection, time: datetime) -> int:
    month = f"{time.astimezone(UTC):%Y-%m}"
    found = database.execute("SELECT sum(tokens) FROM purchases WHERE substr(time, 1, 7) = ?", (month,)).fetchone()
    return int(found[0] or 0)


def _probed(row: sqlite3.Row) -> Probed:
    values = dict(row)
    texts = {name: json.loads(values[name]) if values[name] else None for name in ("expected", "true")}
    return Probed.model_validate({**values, **texts})


_REMEMBERED = set(Observation.model_fields)


def _record(row: sqlite3.Row) -> dict[str, Any]:
    values = {name: row[name] for name in _COLUMNS}
    switches = {name: bool(values[name]) for name in ("trigger", "forced")}
    return {**values, **switches, "drifted_columns": json.loads(values["drifted_columns"])}


def _text(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m monitoring.ledger", description="Prints the policy's decisions and probes."
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="WORKSPACE/decisions.db")
    parser.add_argument("--json", action="store_true", help="print them as one JSON object instead of tables")
    given = parser.parse_args(arguments)
    try:
        ledger = Ledger(given.file)
        found, probes = ledger.decisions(), ledger.probes()
    except (InputError, Failure) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    if given.json:
        told = {"decisions": found, "probes": [probed.model_dump(mode="json") for probed in probes]}
        print(json.dumps(told, indent=1))
    else:
        _show(found, probes)
    return 0


def _show(found: list[dict[str, Any]], probes: list[Probed]) -> None:
    decisions = [
        (
            each["time"][:19], each["student"], each["source"], each["window"], each["champion"], str(each["rows"]),
            each["severity"], "trigger" if each["trigger"] else "hold", each["reason"],
        )
        for each in found
    ]  # fmt: skip
    _print(("time", "student", "by", "window", "champion", "rows", "severity", "decision", "reason"), decisions)
    asked = [
        (
            _text(each.time)[:19], each.student, each.window, each.retrain_id, "retrain" if each.pays else "hold",
            each.reason, told(each.expected), told(each.true) if each.true else "",
        )
        for each in probes
    ]  # fmt: skip
    if asked:
        print()
        _print(("time", "student", "window", "retrain", "probe says", "reason", "expected", "came true"), asked)


def _print(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for cells in rows:
        table.add_row(*(escape(cell) for cell in cells))  # brackets in them are text, no markup
    Console(width=None if Console().is_terminal else 150).print(table)


if __name__ == "__main__":
    sys.exit(main())
