"""The request log: what production was asked and what it answered, read by windows of time.

    python -m monitoring.traffic import SOURCE --log LOG [--map COLUMN=SOURCE_COLUMN ...]
    python -m monitoring.traffic window LOG START..END

Columns: request_id (unique), timestamp (microseconds, UTC), prompt, and, where they are known, response,
model_version, mean_logprob [nats a token], latency_ms, reference, and any number of meta_* (number or text).
How the log lies on disk: monitoring/commits.py. What a row must be: monitoring/rows.py.
"""

import hashlib
import logging
import sys
import zlib
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from monitoring import commits, rows
from monitoring.errors import InputError
from monitoring.importing import ImportReport, check_names, import_file, known_kinds
from monitoring.rows import Kind
from monitoring.window import Window

__all__ = [
    "ImportReport",
    "Window",
    "append",
    "import_file",
    "read_window",
    "row_hash",
    "rows_before",
    "span",
    "window_digest",
]

_log = logging.getLogger(__name__)


def append(log: str, frame: pd.DataFrame) -> int:
    """Append rows to the request log in one atomic change and return how many.

    Raises InputError, with nothing written, for unknown columns and when any row is bad; Failure when the log
    cannot be written. Naive times are UTC. A column that is not there, or is all missing, is null.
    """
    check_names([str(name) for name in frame.columns], "the frame", "rename or drop them")
    columns = {str(name): frame[name].tolist() for name in frame.columns}
    with commits.drafting(commits.locate(log)) as draft:
        known = known_kinds(draft.base)
        found = {name: rows.kind_of(columns[name], typed=True) for name in columns if rows.is_meta(name)}
        kinds: dict[str, Kind] = {name: known.get(name, kind) for name, kind in found.items() if kind is not None}
        fresh: set[str] = set()
        ids = commits.read_ids(draft.place, draft.base) if len(frame) else set()
        checked = rows.check(columns, len(frame), kinds, ids, fresh)
        bad = [(row, reason) for row, reason in enumerate(checked.reasons) if reason is not None]
        if bad:
            row, reason = bad[0]
            raise InputError(
                f"{len(bad)} of {len(frame)} rows cannot be appended to the request log {draft.place.name()}; "
                f"the first is row {row} (request_id {columns['request_id'][row]!r}): {reason}; "
                "nothing was written"
            )
        if fresh:
            commits.stage(draft, checked.table)
            commits.publish(draft, kinds, fresh)
    return len(fresh)


def read_window(log: str, window: Window) -> pd.DataFrame:
    """The rows of the window by (timestamp, request_id); an empty frame of the same columns when there are none.

    Columns are those of the whole log: text as pandas' string, timestamp as datetime64[us, UTC], numbers as float64
    with NaN for null. Of two rows with one id (only two writers to a remote log in the same instant leave such) the
    older commit's is taken, and a warning with the count is logged; this compares the rows of the window only.
    Raises InputError when there is no log, and, with its name, when a file of it is damaged.
    """
    place = commits.locate(log)
    base = _existing(place)
    fields = rows.schema(known_kinds(base))
    parts = [part for commit in base for part in commit.parts if part.first < window.end and window.start <= part.last]
    tables = commits.side_by_side(lambda part: _rows_of(place, part, window, fields), parts)
    table = pa.concat_tables([fields.empty_table(), *tables])
    frame: pd.DataFrame = table.to_pandas(types_mapper={pa.string(): pd.StringDtype()}.get)
    twice = frame["request_id"].duplicated(keep="first")
    if twice.any():
        _log.warning("%d rows of %s repeat an id; the older commit's row is taken", int(twice.sum()), place.name())
        frame = frame[~twice]
    return frame.sort_values(["timestamp", "request_id"], ignore_index=True)


def _rows_of(place: commits.Place, part: commits.Part, window: Window, fields: Any) -> Any:
    table = commits.read_part(place, part)
    if part.first < window.start or window.end <= part.last:
        times = table["timestamp"]
        start, end = (pa.scalar(moment, rows.TIME) for moment in (window.start, window.end))
        table = table.filter(pc.and_(pc.greater_equal(times, start), pc.less(times, end)))
    arrays = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in fields
    ]
    return pa.table(arrays, schema=fields)


def span(log: str) -> Window:
    """From the first row of the log to one microsecond after the last; InputError when there is no log."""
    parts = [part for commit in _existing(commits.locate(log)) for part in commit.parts]
    return Window(min(part.first for part in parts), max(part.last for part in parts) + timedelta(microseconds=1))


def rows_before(log: str, end: datetime) -> int:
    """How many rows the log has before a moment; only parts that it falls into are read, and of them the times."""
    place, count = commits.locate(log), 0
    for part in (part for commit in _existing(place) for part in commit.parts if part.first < end):
        if part.last < end:
            count += part.rows
        else:
            times = commits.read_part(place, part, ["timestamp"])["timestamp"]
            count += int(pc.sum(pc.less(times, pa.scalar(end, rows.TIME))).as_py() or 0)
    return count


def _existing(place: commits.Place) -> list[commits.Commit]:
    base = commits.list_commits(place)
    if not base:
        raise InputError(
            f"there is no request log in {place.name()}; "
            "import one with python -m monitoring.traffic import SOURCE --log LOG"
        )
    return base


def window_digest(frame: pd.DataFrame) -> str:
    """SHA-256 (hex) of the rows of a window, whatever their order, their partition and that of the columns.

    Only columns of the log count, and none that is all null: a meta_* column that a later import brings
    leaves the digests of older windows as they are.
    """
    ordered = frame.sort_values(["request_id", "timestamp"])
    digest = hashlib.sha256(f"{len(ordered)} rows".encode())
    for name in sorted(str(name) for name in ordered.columns):
        if (name in rows.COLUMNS or rows.is_meta(name)) and not ordered[name].isna().all():
            digest.update(f"\n{name}\n".encode())
            digest.update(_column_bytes(ordered[name]))
    return digest.hexdigest()


def _column_bytes(column: pd.Series) -> bytes:
    """A column as bytes, different for different values: numbers and text lengths take 8 bytes, null is -1."""
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        micros = column.dt.tz_convert("UTC").dt.as_unit("us").astype("int64")
        return bytes(micros.to_numpy().astype("<i8").tobytes())
    if pd.api.types.is_numeric_dtype(column.dtype):
        numbers = column.to_numpy(dtype="<f8", na_value=np.nan)
        return np.where(np.isnan(numbers), np.nan, numbers + 0.0).tobytes()  # one NaN, one zero
    values = [None if rows.is_missing(value) else str(value).encode() for value in column.tolist()]
    lengths = np.array([-1 if value is None else len(value) for value in values], dtype="<i8")
    return bytes(lengths.tobytes()) + b"".join(value for value in values if value is not None)


def row_hash(request_ids: pd.Series) -> npt.NDArray[np.int64]:
    """crc32(request_id) % 100 of each id, int64 of the same length: decides what a row may be used for."""
    return np.array([zlib.crc32(str(value).encode()) % 100 for value in request_ids], dtype=np.int64)


if __name__ == "__main__":
    from monitoring.traffic_command import main

    sys.exit(main())
