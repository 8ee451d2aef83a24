"""Take a file into the request log: its good rows in one change, its bad ones kept aside with the reason."""

import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from monitoring import commits, rows, sources
from monitoring.errors import InputError
from monitoring.rows import Kind
from monitoring.settings import TrafficSettings

_STAGE_BYTES = 256 * 2**20  # accepted rows are held in memory up to here, so that a day becomes one part, not many
_LISTED = 40  # column names in a message


@dataclass(frozen=True)
class ImportReport:
    """What an import did; rejects is the file of the rows it did not take, None when it took all."""

    accepted: int
    rejected: int
    reasons: dict[str, int]
    rejects: str | None


@dataclass
class _Rejects:
    """The rejects file of one import, opened with the first bad row."""

    place: commits.Place
    relative: str
    handle: Any = None
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, position: int, reason: str, content: Mapping[str, object]) -> None:
        """Write one bad row, or line, with its position in the source and the reason."""
        self.reasons[reason] += 1
        line = json.dumps({"position": position, "reason": reason, **content}, default=_plain)
        with commits.writing(self.place, "the rejects file"):
            if self.handle is None:
                self.place.fs.makedirs(self.place.path("_rejects"), exist_ok=True)
                self.handle = self.place.fs.open(self.place.path(self.relative), "wb")
            self.handle.write(f"{line}\n".encode())

    def close(self) -> str | None:
        """Put the file on the disk and say where it lies."""
        if self.handle is None:
            return None
        with commits.writing(self.place, "the rejects file"):
            self.handle.close()
            if self.place.is_local:
                commits.sync(self.place.path(self.relative))
        return self.place.name(self.relative)


@contextmanager
def _rejecting(place: commits.Place, name: str) -> Iterator[_Rejects]:
    rejects = _Rejects(place, f"_rejects/{name}.jsonl")
    try:
        yield rejects
    finally:
        rejects.close()


def import_file(
    source: str,
    log: str,
    *,
    mapping: Mapping[str, str] | None = None,
    format: str | None = None,
    max_reject_share: float | None = None,
    ignore_extra: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Append the good rows of a CSV, JSONL or Parquet file to the request log, in one atomic change.

    mapping names the source column of a log column; those not in it are taken under their own names. progress is
    called with (done, total), bytes of a text file or rows of Parquet. Raises InputError, with the log unchanged,
    when the source cannot be read, holds no rows or other columns, or when more than max_reject_share of its rows
    are bad; Failure when the log cannot be written.
    """
    limit = TrafficSettings().max_reject_share if max_reject_share is None else max_reject_share
    if not 0 <= limit <= 1:
        raise InputError(f"max_reject_share {limit:g} is no share; give a number from 0 to 1")
    place = commits.locate(log)
    file = sources.find(source, format)
    names = sources.column_names(file)
    takes = _match(mapping or {}, names, source, ignore_extra)
    with commits.drafting(place) as draft, _rejecting(place, draft.name) as rejects:
        kinds = _meta_kinds(file, takes, known_kinds(draft.base))
        accepted = _stage_rows(file, names, takes, kinds, draft, rejects, progress)
        rejected = rejects.reasons.total()
        where = rejects.close()
        if not accepted and not rejected:
            raise InputError(f"source {source!r} holds no rows; nothing was imported")
        if rejected > limit * (len(accepted) + rejected):
            raise InputError(
                f"source {source!r}: {rejected} of {len(accepted) + rejected} rows are bad "
                f"({describe(rejects.reasons)}), more than max_reject_share {limit:g}; nothing was imported, "
                f"the bad rows lie in {where}"
            )
        if accepted:
            commits.publish(draft, kinds, accepted)
    return ImportReport(len(accepted), rejected, dict(rejects.reasons.most_common()), where)


def describe(reasons: Mapping[str, int]) -> str:
    """Counts by reason in one line."""
    return ", ".join(f"{reason}: {count}" for reason, count in reasons.items())


def known_kinds(base: Iterable[commits.Commit]) -> dict[str, Kind]:
    """The kind of each meta_* column of the log; text where two writers at once chose differently."""
    kinds: dict[str, Kind] = {}
    for commit in base:
        for name, kind in commit.meta.items():
            kinds[name] = "number" if kind == kinds.get(name, "number") == "number" else "text"
    return kinds


def check_names(names: Iterable[str], where: str, advice: str) -> None:
    """Raise InputError for names that are no columns of the log or come twice, and for a required one missing."""
    present = list(names)
    twice = sorted({name for name in present if present.count(name) > 1})
    if twice:
        raise InputError(f"{where} has two columns named {twice[0]!r}; {advice}")
    missing = [name for name in rows.REQUIRED if name not in present]
    if missing:
        raise InputError(f"{where} has no column {missing[0]!r}; it has {_listed(present)}; {advice}")
    extra = [name for name in present if name not in rows.COLUMNS and not rows.is_meta(name)]
    if extra:
        known = f"{', '.join(rows.COLUMNS)} and meta_*"
        raise InputError(f"{where} has columns the log does not know: {_listed(extra)} (it knows {known}); {advice}")


def _match(mapping: Mapping[str, str], names: list[str], source: str, ignore_extra: bool) -> dict[str, str]:
    """Source column by log column; InputError for a name that is nowhere, and for columns left over."""
    for column, origin in mapping.items():
        if column not in rows.COLUMNS and not rows.is_meta(column):
            raise InputError(
                f"mapping {column}={origin}: {column!r} is no column of the request log; did you mean "
                f"{_nearest(column, rows.COLUMNS)!r}? It has {', '.join(rows.COLUMNS)} and meta_*"
            )
        if origin not in names:
            guess = f" did you mean {_nearest(origin, names)!r}?" if names else ""
            raise InputError(
                f"mapping {column}={origin}: source {source!r} has no column {origin!r};{guess} It has {_listed(names)}"
            )
    origins = set(mapping.values())
    free = [name for name in names if name not in origins]
    own = {name: name for name in free if (name in rows.COLUMNS or rows.is_meta(name)) and name not in mapping}
    takes = {**mapping, **own}
    missing = [column for column in rows.REQUIRED if column not in takes]
    if missing:
        raise InputError(
            f"source {source!r} has no column {missing[0]!r}; it has {_listed(names)}; "
            f"say which one it is with --map {missing[0]}=COLUMN"
        )
    extra = [name for name in free if name not in own]
    if extra and not ignore_extra:
        raise InputError(
            f"source {source!r} has columns that would be lost: {_listed(extra)}; keep one with "
            f"--map meta_NAME=COLUMN (or --map COLUMN=...), or leave them out with --ignore-extra"
        )
    return takes


def _nearest(name: str, names: Iterable[str]) -> str:
    by_lower = {known.lower(): known for known in names}
    return by_lower[difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.0)[0]]


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_LISTED]) or "no columns"
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"


def _meta_kinds(file: sources.Source, takes: dict[str, str], known: dict[str, Kind]) -> dict[str, Kind]:
    """The kinds of the meta_* columns that the source brings; a new one is typed by all of its values."""
    new = {column: origin for column, origin in takes.items() if rows.is_meta(column) and column not in known}
    found: dict[str, Kind] = {}
    if new:
        for block in sources.blocks(file, list(new.values())):
            for column, origin in new.items():
                kind = rows.kind_of(block.columns[origin], typed=file.format != "csv")
                if kind is not None and found.get(column) != "text":
                    found[column] = kind
    return found | {column: known[column] for column in takes if column in known}


def _stage_rows(
    file: sources.Source,
    names: list[str],
    takes: dict[str, str],
    kinds: dict[str, Kind],
    draft: commits.Draft,
    rejects: _Rejects,
    progress: Callable[[int, int], None] | None,
) -> set[str]:
    """Write the good rows as parts and the bad ones as rejects; return the ids of the good ones."""
    known = commits.read_ids(draft.place, draft.base)
    accepted: set[str] = set()
    held: list[Any] = []
    for block in sources.blocks(file, names):
        columns = {column: block.columns[origin] for column, origin in takes.items()}
        checked = rows.check(columns, len(block.positions), kinds, known, accepted)
        held.append(checked.table)
        for bad in block.bad:
            rejects.add(bad.position, bad.reason, {"line": bad.raw})
        for row, reason in enumerate(checked.reasons):
            if reason is not None:
                content = {name: values[row] for name, values in block.columns.items()}
                rejects.add(block.positions[row], reason, {"row": content})
        if sum(table.nbytes for table in held) > _STAGE_BYTES:
            commits.stage(draft, pa.concat_tables(held))
            held = []
        if progress is not None:
            progress(block.done, block.total)
    if held:
        commits.stage(draft, pa.concat_tables(held))
    return accepted


def _plain(value: object) -> object:
    """What json cannot write, as text; bytes that are no UTF-8 as lone surrogates, so that none is lost."""
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)
