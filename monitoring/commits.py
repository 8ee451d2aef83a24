"""How the request log lies on disk, and how it changes: all of a change or nothing.

    LOG/date=YYYY-MM-DD/part-<uuid>.parquet    rows of one UTC day; nobody reads a part that no commit names
    LOG/_commits/<time>-<uuid>.json            one change: its parts, their rows and time span; written last
    LOG/_rejects/<time>-<uuid>.jsonl           rows the import of that name did not take; no part of the log

On a local path parts are on the disk (fsync) before the commit appears under its name (rename); elsewhere the
commit is one put, which object stores make atomic. A writer that was killed leaves parts without a commit: lost
space, not wrong data. Two writers write two commits. Each compares its ids with the commits that came in between,
on a local path under a lock; elsewhere a duplicate can slip through and is dealt with when it is read
(traffic.read_window).
"""

import fcntl
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any, Literal, TypeVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from monitoring.errors import Failure, InputError, masked
from monitoring.rows import COLUMNS, Kind

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY = 86_400_000_000  # microseconds
_THREADS = 8  # parts are small and many: waiting for a store is done side by side
T = TypeVar("T")
R = TypeVar("R")


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(_Stored):
    """One Parquet file of the log, its path relative to the log; first and last are its rows' times."""

    path: str
    rows: int
    first: AwareDatetime
    last: AwareDatetime


class Commit(_Stored):
    """One change of the log; meta names the kind of each meta_* column in its parts."""

    version: Literal[1] = 1
    name: str
    rows: int
    parts: tuple[Part, ...]
    meta: dict[str, Kind]


@dataclass(frozen=True)
class Place:
    """A folder of some file system that fsspec knows."""

    fs: Any
    root: str

    @property
    def is_local(self) -> bool:
        """Whether rename, fsync and locks are there."""
        return isinstance(self.fs, LocalFileSystem)

    def path(self, relative: str) -> str:
        """Where a file of the log lies in the file system."""
        return f"{self.root}/{relative}"

    def name(self, relative: str = "") -> str:
        """The same for a message: a path, or a URL."""
        path = self.path(relative).rstrip("/")
        return path if self.is_local else masked(str(self.fs.unstrip_protocol(path)))


@dataclass
class Draft:
    """A change in the making: based on some commits, with parts already written that nobody reads yet."""

    place: Place
    base: list[Commit]
    name: str
    paths: list[str] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)


def locate(url: str) -> Place:
    """The place a path or fsspec URL names; InputError when there is no file system for it."""
    try:
        if not url:
            raise ValueError("it is empty")
        fs, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError, OSError) as error:
        raise InputError(
            masked(f"request log {url!r} cannot be opened ({error}); give a folder or an fsspec URL that answers")
        ) from None  # a cause would show the credentials of the URL
    return Place(fs, str(root).rstrip("/"))


def side_by_side(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Work done on each item by a few threads; results in the order of the items."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(work, items))


def list_commits(place: Place) -> list[Commit]:
    """All commits, oldest first; none where there is no log; InputError when one cannot be read."""
    folder = place.path("_commits")
    place.fs.invalidate_cache(folder)
    try:
        paths = sorted(place.fs.ls(folder, detail=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise Failure(f"the request log {place.name()} cannot be listed ({masked(str(error))}); try again") from None
    names = [path.rsplit("/", 1)[-1] for path in paths]
    visible = [name for name in names if name.endswith(".json") and not name.startswith(".")]
    return side_by_side(lambda name: _read_commit(place, f"_commits/{name}"), visible)


def _read_commit(place: Place, relative: str) -> Commit:
    try:
        return Commit.model_validate_json(place.fs.cat_file(place.path(relative)))
    except (OSError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"commit {place.name(relative)} of the request log cannot be read: {reason}") from error


def read_part(place: Place, part: Part, columns: list[str] | None = None) -> Any:
    """The Arrow table of one part, or some columns of it; InputError names the file when it is damaged."""
    name = place.name(part.path)
    try:
        with place.fs.open(place.path(part.path), "rb") as handle:
            file = pq.ParquetFile(handle, page_checksum_verification=True)
            table = file.read(columns=columns, use_threads=False)  # parts are read side by side already
    except FileNotFoundError as error:
        raise InputError(f"{name} of the request log is missing; restore it from a backup") from error
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{name} of the request log is damaged ({reason}); restore it from a backup") from error
    absent = [column for column in columns or COLUMNS if column not in table.column_names]
    if absent or table.num_rows != part.rows:
        raise InputError(
            f"{name} of the request log is not the file that was committed ({table.num_rows} rows, not {part.rows}; "
            f"columns that are not there: {absent}); restore it from a backup"
        )
    return table


def read_ids(place: Place, commits: Iterable[Commit]) -> set[str]:
    """The ids of all rows of these commits; nothing but the id column is read."""
    parts = [part for commit in commits for part in commit.parts]
    tables = side_by_side(lambda part: read_part(place, part, ["request_id"]), parts)
    return {request_id for table in tables for request_id in table["request_id"].to_pylist()}


@contextmanager
def drafting(place: Place) -> Iterator[Draft]:
    """A change in the making; when the block is left with an error, the parts it wrote are removed."""
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}-{uuid.uuid4().hex}"
    draft = Draft(place, list_commits(place), name)
    try:
        yield draft
    except BaseException:
        for path in draft.paths:
            with suppress(OSError):  # the first error is the one to tell; a part without a commit is read by nobody
                place.fs.rm_file(path)
        raise


@contextmanager
def writing(place: Place, what: str) -> Iterator[None]:
    """Turn an OSError into a Failure that says which log could not be written."""
    try:
        yield
    except OSError as error:
        raise Failure(
            f"cannot write {what} of the request log {place.name()} ({error}); the log has all of the change or "
            "nothing of it: see to free space and permissions there, then try again, which is safe"
        ) from error


def stage(draft: Draft, table: Any) -> None:
    """Write rows (in the log's schema) as one part a UTC day; they become visible with publish."""
    table = table.sort_by([("timestamp", "ascending"), ("request_id", "ascending")])
    micros = table["timestamp"].cast(pa.int64()).to_numpy()
    bounds = [*np.unique(micros // _DAY, return_index=True)[1].tolist(), len(micros)]

    def write(bounds: tuple[int, int]) -> Part:
        start, end = bounds
        first, last = (_EPOCH + timedelta(microseconds=int(micros[row])) for row in (start, end - 1))
        path = _write_part(draft, first.date(), table.slice(start, end - start))
        return Part(path=path, rows=end - start, first=first, last=last)

    with writing(draft.place, "a part"):
        draft.parts.extend(side_by_side(write, list(pairwise(bounds))))


def _write_part(draft: Draft, day: date, table: Any) -> str:
    folder = f"date={day.isoformat()}"
    relative = f"{folder}/part-{uuid.uuid4().hex}.parquet"
    path = draft.place.path(relative)
    draft.place.fs.makedirs(draft.place.path(folder), exist_ok=True)
    draft.paths.append(path)
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    draft.place.fs.pipe_file(path, buffer.getvalue().to_pybytes())
    return relative


def publish(draft: Draft, meta: dict[str, Kind], ids: set[str]) -> Commit:
    """Make the staged parts part of the log; InputError when somebody else wrote one of the ids meanwhile."""
    rows = sum(part.rows for part in draft.parts)
    commit = Commit(name=draft.name, rows=rows, parts=tuple(draft.parts), meta=meta)
    data = commit.model_dump_json().encode()
    with writing(draft.place, "a commit"):
        if not draft.place.is_local:
            _check_late(draft, ids)
            draft.paths.clear()  # the parts stay from here on, whatever happens: the commit may be there
            draft.place.fs.pipe_file(draft.place.path(f"_commits/{commit.name}.json"), data)
            return commit
        os.makedirs(draft.place.path("_commits"), exist_ok=True)
        side_by_side(sync, draft.paths)
        side_by_side(sync, sorted({os.path.dirname(path) for path in draft.paths}))
        sync(draft.place.root)
        if not draft.base:
            sync(os.path.dirname(draft.place.root))
        with _locked(draft.place.path("_commits/.lock")):
            _check_late(draft, ids)
            _rename_into_place(draft, data)
    return commit


def _check_late(draft: Draft, ids: set[str]) -> None:
    checked = {commit.name for commit in draft.base}
    late = [commit for commit in list_commits(draft.place) if commit.name not in checked]
    taken = ids & read_ids(draft.place, late)
    if taken:
        raise InputError(
            f"{len(taken)} of the ids, {min(taken)!r} among them, were written to the request log "
            f"{draft.place.name()} by somebody else meanwhile; nothing was changed, try again"
        )


@contextmanager
def _locked(path: str) -> Iterator[None]:
    with open(path, "wb") as handle:  # the lock goes with the process, however that ends
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _rename_into_place(draft: Draft, data: bytes) -> None:
    folder = draft.place.path("_commits")
    hidden = f"{folder}/.{draft.name}.tmp"
    draft.paths.append(hidden)
    with open(hidden, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    draft.paths.clear()  # the parts stay from here on, whatever happens: the commit may be there
    os.replace(hidden, f"{folder}/{draft.name}.json")
    sync(folder)


def sync(path: str) -> None:
    """Have a file or folder of the local disk survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
