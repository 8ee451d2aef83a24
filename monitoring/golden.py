"""The golden set: rows that people chose and answered, by which every challenger is judged, whatever the traffic is.

A file, CSV, JSONL or Parquet, with the columns

    prompt, reference           both on every row
    request_id                  unique; without such a column rows are called golden-1, golden-2, ...
    meta_*                      any number

Other columns are not read. It is small, made by hand, and meant: a row that cannot be used is not set aside, as one of
the traffic would be, but has the whole file refused.
"""

from datetime import UTC, datetime
from typing import Any

import pandas as pd

from monitoring import rows, sources, traffic
from monitoring.errors import InputError, masked

_SHOWN = 5  # rows that an error names
_ANY_TIME = datetime(2000, 1, 1, tzinfo=UTC)  # these rows have none, a row of the log has


def read_golden(url: str) -> pd.DataFrame:
    """Return the rows of a golden set (a path or fsspec URL): request_id, prompt, reference and the meta_* columns.

    Raises InputError for a file that cannot be read, lacks a column or holds a row that cannot be used, with its place.
    """
    place = f"judging.golden {masked(url)!r}"
    source = sources.find(url, None)
    names = sources.column_names(source)
    if missing := [name for name in ("prompt", "reference") if name not in names]:
        raise InputError(f"{place} has no column {', '.join(missing)}: it has {', '.join(names) or 'none'}")
    wanted = [name for name in names if name in ("request_id", "prompt", "reference") or rows.is_meta(name)]
    columns, positions = _read(source, wanted, place)
    if not positions:
        raise InputError(f"{place} holds no rows")
    columns.setdefault("request_id", [f"golden-{number}" for number in range(1, len(positions) + 1)])
    typed = source.format != "csv"
    kinds = {name: rows.kind_of(columns[name], typed) or "text" for name in wanted if rows.is_meta(name)}
    columns["timestamp"] = [_ANY_TIME] * len(positions)
    checked = rows.check(columns, len(positions), kinds, set(), set())
    _refuse(place, positions, checked.reasons)
    frame: pd.DataFrame = checked.table.to_pandas()[["request_id", "prompt", "reference", *sorted(kinds)]]
    unanswered = frame["reference"].isna()
    _refuse(place, positions, ["no reference" if none else None for none in unanswered])
    again = frame["prompt"].duplicated()
    _refuse(place, positions, ["a prompt that stands before, and would count twice" if it else None for it in again])
    return frame


def golden_digest(frame: pd.DataFrame) -> str:
    """Return SHA-256 (hex) of what a golden set says, whatever file format it came in."""
    return traffic.window_digest(frame.assign(timestamp=_ANY_TIME))


def _read(source: sources.Source, wanted: list[str], place: str) -> tuple[dict[str, list[Any]], list[int]]:
    """Return the columns and each row's place in the file; InputError for lines that are no rows."""
    columns: dict[str, list[Any]] = {name: [] for name in wanted}
    positions: list[int] = []
    for block in sources.blocks(source, wanted):
        _refuse(place, [bad.position for bad in block.bad], [bad.reason for bad in block.bad])
        positions += block.positions
        for name in wanted:
            columns[name] += block.columns[name]
    return columns, positions


def _refuse(place: str, positions: list[int], reasons: list[str | None]) -> None:
    """Raise InputError where a row has a reason; it names places, never what a row says."""
    bad = [f"{at}: {why}" for at, why in zip(positions, reasons, strict=True) if why]
    if bad:
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise InputError(
            f"{place}: {len(bad)} rows cannot be used (row {'; '.join(bad[:_SHOWN])}{more}): mend the file"
        )
