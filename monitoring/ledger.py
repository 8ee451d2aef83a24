"""python -m monitoring.ledger FILE [--json]

The policy's memory, WORKSPACE/decisions.db (SQLite): each decision with its reason, what a probe expected of a retrain
beside what came true of it, what the teacher was paid for, and what is set aside of the month's budget.
It survives restarts, and of processes that ask at once one decides and the others are told. No prompt goes in.
"""

import json
import re
import sqlite3
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from monitoring import ledger_file
from monitoring.history import Decision, History, Observation, Probed

_COLUMNS = (
    "time", "asked", "student", "source", "window", "window_digest", "champion", "champion_digest", "severity",
    "drifted_columns", "quality", "quality_high", "rows", "log_rows", "trigger", "reason", "settings_digest", "forced",
)  # fmt: skip

_STORED = """SELECT id, trigger, reason FROM decisions WHERE student = :student AND window_digest = :window_digest
    AND champion_digest = :champion_digest AND settings_digest = :settings_digest AND forced = :forced
    ORDER BY id DESC LIMIT 1"""

# A retrain counts with what it has bought; while it is under way, with no less than was set aside for it.
_SPENT = """SELECT (
        SELECT coalesce(sum(tokens), 0) FROM purchases WHERE substr(time, 1, 7) = :month AND retrain_id <> :but
    ) + (
        SELECT coalesce(sum(max(0, tokens - (
            SELECT coalesce(sum(tokens), 0) FROM purchases WHERE purchases.retrain_id = reservations.retrain_id
        ))), 0) FROM reservations WHERE substr(time, 1, 7) = :month AND retrain_id <> :but
    )"""


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
        """Return the answer to a question: a stored trigger, or what `decide` says to the history, which is stored.

        A trigger is for good. A hold may be one of the moment (a cooldown, the budget): it is decided anew whenever it
        is asked for, and while the reason is of the same kind its row takes the newest. History is read and the answer
        written in one transaction. `time` says which month's purchases count; the rest but `source` is the question.
        """
        question = {
            "student": student,
            "window_digest": window_digest,
            "champion_digest": champion_digest,
            "settings_digest": settings_digest,
            "forced": int(forced),
        }
        with ledger_file.writing(self.path) as database:
            stored = database.execute(_STORED, question).fetchone()
            if stored is not None and stored["trigger"]:
                return Decision(trigger=True, reason=stored["reason"], repeated=True)
            seen = decide(_history(database, student, time))
            repeated = stored is not None and not seen.trigger and _kind(seen.reason) == _kind(stored["reason"])
            if repeated:
                database.execute(
                    "UPDATE decisions SET asked = ?, reason = ? WHERE id = ?",
                    (_text(seen.time), seen.reason, stored["id"]),
                )
            else:
                _insert(database, seen, question | {"source": source})
        return Decision(trigger=seen.trigger, reason=seen.reason, repeated=repeated)

    def triggered(self, student: str, window_digest: str, champion_digest: str) -> bool:
        """Return whether a window has been decided to be worth a retrain, whoever asked."""
        if not self.path.is_file():
            return False
        known = {"student": student, "window_digest": window_digest, "champion_digest": champion_digest}
        with ledger_file.reading(self.path) as database:
            found = database.execute(
                "SELECT 1 FROM decisions WHERE student = :student AND window_digest = :window_digest "
                "AND champion_digest = :champion_digest AND trigger = 1 AND forced = 0",
                known,
            ).fetchone()
        return found is not None

    def reserve(self, retrain_id: str, time: datetime, tokens: int, budget: int) -> tuple[bool, int]:
        """Set tokens aside for all that a retrain buys, if the month's budget has them (0: no limit).

        Returns whether it had, and what the other retrains have bought or set aside; both are read and written in one
        transaction: two retrains never spend the same tokens. Said anew, it replaces what was said of this retrain.
        """
        with ledger_file.writing(self.path) as database:
            spent = _spent(database, time, but=retrain_id)
            enough = not budget or spent + tokens <= budget
            database.execute("DELETE FROM reservations WHERE retrain_id = ?", (retrain_id,))
            if enough:
                database.execute("INSERT INTO reservations VALUES (?, ?, ?)", (retrain_id, _text(time), tokens))
        return enough, spent

    def release(self, retrain_id: str) -> None:
        """End what was set aside for a retrain: from now on it counts with what it has bought."""
        with ledger_file.writing(self.path) as database:
            database.execute("DELETE FROM reservations WHERE retrain_id = ?", (retrain_id,))

    def record_purchase(self, retrain_id: str, stage: str, time: datetime, tokens: int) -> None:
        """Write down what a stage of a retrain has bought; the largest count stands, so it may be said twice."""
        with ledger_file.writing(self.path) as database:
            database.execute(
                "INSERT INTO purchases VALUES (?, ?, ?, ?) "
                "ON CONFLICT (retrain_id, stage) DO UPDATE SET tokens = max(tokens, excluded.tokens)",
                (retrain_id, stage, _text(time), tokens),
            )

    def record_probe(self, probed: Probed) -> None:
        """Write down what was expected of a retrain, or what came true of it, in place of what was there."""
        values = probed.model_dump() | {
            "time": _text(probed.time),
            "pays": int(probed.pays),
            "expected": json.dumps(probed.expected),
            "true": None if probed.true is None else json.dumps(probed.true),
        }
        with ledger_file.writing(self.path) as database:
            database.execute(
                "INSERT OR REPLACE INTO probes VALUES "
                "(:retrain_id, :time, :student, :window, :pays, :reason, :expected, :true)",
                values,
            )

    def probes(self) -> list[Probed]:
        """Return all probes, the oldest first."""
        with ledger_file.reading(self.path) as database:
            return [_probed(row) for row in database.execute("SELECT * FROM probes ORDER BY time")]

    def bought(self, time: datetime) -> int:
        """Return the tokens bought, or set aside for retrains under way, in the month of `time`."""
        with ledger_file.reading(self.path) as database:
            return _spent(database, time)

    def history(self, student: str, time: datetime) -> History:
        """Return the student's decisions so far and the tokens bought or set aside in the month of `time`."""
        with ledger_file.reading(self.path) as database:
            return _history(database, student, time)

    def decisions(self) -> list[dict[str, Any]]:
        """Return all decisions, the oldest first."""
        with ledger_file.reading(self.path) as database:
            return [_record(row) for row in database.execute("SELECT * FROM decisions ORDER BY id")]


def _insert(database: sqlite3.Connection, seen: Observation, asked: dict[str, Any]) -> None:
    time = _text(seen.time)
    values = seen.model_dump() | asked | {"time": time, "asked": time}
    values["drifted_columns"] = json.dumps(seen.drifted_columns)
    database.execute(
        f"INSERT INTO decisions ({', '.join(_COLUMNS)}) "  # noqa: S608  (our own names)
        f"VALUES ({', '.join(f':{name}' for name in _COLUMNS)})",
        values,
    )


def _kind(reason: str) -> str:
    """Return a reason without its numbers, of which some change with the hour."""
    return re.sub(r"[\d.,]+", "", reason)


def _history(database: sqlite3.Connection, student: str, time: datetime) -> History:
    rows = database.execute("SELECT * FROM decisions WHERE student = ? ORDER BY id", (student,))
    earlier = tuple(
        Observation.model_validate({name: value for name, value in _record(row).items() if name in _REMEMBERED})
        for row in rows
    )
    return History(earlier=earlier, bought_tokens=_spent(database, time))


def _spent(database: sqlite3.Connection, time: datetime, *, but: str = "") -> int:
    """Return the tokens bought or set aside in the month of `time`, those of one retrain left out."""
    values = {"month": f"{time.astimezone(UTC):%Y-%m}", "but": but}
    return int(database.execute(_SPENT, values).fetchone()[0])


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


if __name__ == "__main__":
    from monitoring.ledger_command import main

    sys.exit(main())
