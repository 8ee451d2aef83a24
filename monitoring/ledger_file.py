"""A ledger's database: its tables, and how it is opened. A database of something else is never written to."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from monitoring.errors import Failure, InputError

VERSION = 1  # of the tables
MARK = 0x7265646C  # SQLite's application_id: what says that a database is a ledger
BUSY_SECONDS = 60.0  # a decision takes milliseconds

_TABLES = (
    """CREATE TABLE decisions (
        id INTEGER PRIMARY KEY,
        time TEXT NOT NULL,
        asked TEXT NOT NULL,
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
        forced INTEGER NOT NULL
    )""",
    "CREATE INDEX questions ON decisions (student, window_digest, champion_digest, settings_digest, forced)",
    """CREATE TABLE purchases (
        retrain_id TEXT NOT NULL,
        stage TEXT NOT NULL,
        time TEXT NOT NULL,
        tokens INTEGER NOT NULL,
        PRIMARY KEY (retrain_id, stage)
    )""",
    "CREATE TABLE reservations (retrain_id TEXT PRIMARY KEY, time TEXT NOT NULL, tokens INTEGER NOT NULL)",
    """CREATE TABLE probes (
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


@contextmanager
def writing(path: Path) -> Iterator[sqlite3.Connection]:
    """Hold the database, which is made if need be, alone: commits at the end, or leaves it as it was."""
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)) as database:
            database.row_factory = sqlite3.Row
            database.execute("BEGIN IMMEDIATE")
            try:
                if not _is_begun(database, path):
                    _begin(database)
                yield database
                database.execute("COMMIT")
            finally:
                if database.in_transaction:
                    database.execute("ROLLBACK")


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the database for reading alone, which changes nothing; InputError when there is no file."""
    if not path.is_file():
        raise InputError(f"{str(path)!r}: there is no such ledger; a workspace has one as decisions.db")
    address = f"{path.absolute().as_uri()}?mode=ro"
    with (
        _explained(path),
        closing(sqlite3.connect(address, timeout=BUSY_SECONDS, isolation_level=None, uri=True)) as database,
        closing(sqlite3.connect(":memory:", isolation_level=None)) as empty,
    ):
        database.execute("BEGIN")
        found = database
        if not _is_begun(database, path):
            _begin(empty)
            found = empty
        found.row_factory = sqlite3.Row
        yield found


def _begin(database: sqlite3.Connection) -> None:
    for table in _TABLES:
        database.execute(table)
    database.execute(f"PRAGMA application_id = {MARK}")
    database.execute(f"PRAGMA user_version = {VERSION}")


def _is_begun(database: sqlite3.Connection, path: Path) -> bool:
    """Return whether the tables are there: False for an empty file; InputError for a database of something else."""
    mark = database.execute("PRAGMA application_id").fetchone()[0]
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if mark == MARK and version > VERSION:
        raise InputError(
            f"decision ledger {str(path)!r} is of version {version}, this redistill reads {VERSION}: "
            "install the newer redistill that wrote it"
        )
    tables = [str(row[0]) for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    if mark != MARK and (mark or version or tables):
        shown = ", ".join(tables[:3]) + (", ..." if tables[3:] else "")
        raise InputError(
            f"{str(path)!r} is no decision ledger but a database of something else (tables: {shown or 'none'}), and "
            "was left as it is: a workspace's ledger is its decisions.db"
        )
    return bool(mark)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ones that say what to do."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        raise Failure(
            f"decision ledger {str(path)!r} cannot be used ({error}): see to free space, permissions and "
            "processes that hold it, then try again, which is safe"
        ) from error
    except sqlite3.DatabaseError as error:
        raise InputError(
            f"decision ledger {str(path)!r} is damaged, or is none ({error}): a workspace's is decisions.db; restore "
            "it from a backup, or move it away with its -journal; then a new one is begun, and the policy has no "
            "memory before it"
        ) from error
