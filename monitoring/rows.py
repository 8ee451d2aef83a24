"""What a row of the request log is: its columns, their types, and why a row is refused.

Values arrive as Python objects of any source (text of a CSV file, JSON values, Parquet or pandas scalars) and
leave as an Arrow table of the log's schema, together with one reason for each row that cannot be taken.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from monitoring.window import parse_moment

Kind = Literal["number", "text"]  # a meta_* column is float64 or string

REQUIRED = ("request_id", "timestamp", "prompt")
TEXTS = ("response", "model_version", "reference")
NUMBERS = ("mean_logprob", "latency_ms")
COLUMNS = (*REQUIRED, "response", "model_version", "mean_logprob", "latency_ms", "reference")
TIME = pa.timestamp("us", tz="UTC")

DUPLICATE = "duplicate id in the source"
KNOWN = "id already in the log"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_YEAR = 9998  # one below what datetime holds, so that the end of a span can still be written down
_EXACT = 2**53  # float64 holds every integer up to here
_NUMBER_TEXT = re.compile(r"-?(0|[1-9]\d{0,14})(\.\d+)?([eE][+-]?\d{1,3})?")  # no leading zeros: 00501 is a code
_SECONDS_TEXT = re.compile(r"-?\d+(\.\d*)?")


class _Refused(Exception):
    """A value that makes its row a bad one; the message is the reason, in which COLUMN stands for the column."""


@dataclass(frozen=True)
class Checked:
    """The good rows in the log's schema, and for every row given its reason, or None for a good one."""

    table: Any  # pyarrow.Table
    reasons: list[str | None]


def is_meta(column: str) -> bool:
    """Whether this is the name of a free column of the log."""
    return column.startswith("meta_") and len(column) > len("meta_")


def schema(kinds: Mapping[str, Kind]) -> Any:
    """The Arrow schema of the log: its fixed columns, then the meta_* columns by name."""
    text = [(name, pa.string()) for name in ("request_id", "prompt", *TEXTS)]
    types = dict([*text, ("timestamp", TIME), *((name, pa.float64()) for name in NUMBERS)])
    meta = [(name, pa.float64() if kinds[name] == "number" else pa.string()) for name in sorted(kinds)]
    return pa.schema([(name, types[name]) for name in COLUMNS] + meta)


def is_missing(value: object) -> bool:
    """Whether a source says with this value that there is none (None, NaN, NA, NaT)."""
    return (
        value is None
        or value is pd.NA
        or value is pd.NaT
        or (isinstance(value, float | np.floating) and value != value)
    )


def kind_of(values: Sequence[object], typed: bool) -> Kind | None:
    """The kind of a new meta_* column: number when float64 holds every value; None when all are missing.

    In an untyped source (CSV) text counts as a number when it is written like one, without leading zeros and with
    at most 15 digits before the point; in a typed one text is text.
    """
    present = [value for value in values if not is_missing(value) and (typed or value != "")]
    if not present:
        return None
    return "number" if all(_is_number(value, typed) for value in present) else "text"


def _is_number(value: object, typed: bool) -> bool:
    if isinstance(value, str):
        return not typed and _NUMBER_TEXT.fullmatch(value) is not None and math.isfinite(float(value))
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real | Decimal):
        return False
    return abs(int(value)) <= _EXACT if isinstance(value, Integral) else math.isfinite(value)


def to_text(value: object) -> str | None:
    """The value as valid Unicode text, a scalar as JSON would write it; None when missing."""
    if isinstance(value, str):
        if not value.isascii():
            value.encode()  # raises on the lone surrogates that stand for bytes that were no UTF-8
        return value
    if is_missing(value):
        return None
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, Real | Decimal):
        return str(value)
    raise _Refused("COLUMN is not text")


def to_number(value: object) -> float | None:
    """The value as a finite float; None when missing."""
    if type(value) is float and math.isfinite(value):
        return value  # nearly all of them: the rest of this function is slower
    if isinstance(value, bytes | str):
        value = str(to_text(value)).strip()
        if not value:
            return None
    if is_missing(value):
        return None
    if isinstance(value, bool | np.bool_) or not isinstance(value, str | Real | Decimal) or "_" in str(value):
        raise _Refused("COLUMN is not a number")
    if isinstance(value, Integral) and abs(int(value)) > _EXACT:
        raise _Refused("COLUMN is an integer that float64 does not hold")
    try:
        number = float(value)
    except ValueError as error:
        raise _Refused("COLUMN is not a number") from error
    if math.isinf(number):
        raise _Refused("COLUMN is not finite")
    return None if math.isnan(number) else number


def to_microseconds(value: object) -> int:
    """Microseconds since 1970 UTC of ISO text, a date, a datetime, or epoch seconds; naive times are UTC."""
    if isinstance(value, bytes | str):
        value = str(to_text(value)).strip()
    if is_missing(value) or value == "":
        raise _Refused("no time")
    try:
        moment = _moment(value)
    except (ValueError, ArithmeticError) as error:
        raise _Refused("unparsable time") from error
    if moment.year > _LAST_YEAR:
        raise _Refused("unparsable time")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _moment(value: object) -> datetime:
    if isinstance(value, pd.Timestamp):
        value = value.to_pydatetime(warn=False)  # nanoseconds are cut: the log holds microseconds
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if isinstance(value, date):
        return datetime.combine(value, time.min, UTC)
    if isinstance(value, str):
        if not _SECONDS_TEXT.fullmatch(value):
            return parse_moment(value)
        value = Decimal(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real | Decimal):
        raise ValueError(f"{type(value).__name__} is no time")
    seconds: Any = value
    # Before 1973 these are never seconds: 0 is a missing time, 20160101 a date. Milliseconds are out of range above.
    if seconds < 1e8:
        raise ValueError(f"{seconds} is no time in epoch seconds")
    whole, rest = divmod(seconds, 1)
    return _EPOCH + timedelta(seconds=int(whole), microseconds=round(float(rest) * 1e6))


def to_id(value: object) -> str:
    """The value as an id that is not blank."""
    text = to_text(value)
    if text is None or not text.strip():
        raise _Refused("no id")
    return text


def to_prompt(value: object) -> str:
    """The value as a prompt that is not blank."""
    text = to_text(value)
    if text is None or not text.strip():
        raise _Refused("empty prompt")
    return text


def to_label(value: object) -> str | None:
    """The value as a ground truth; None when missing or blank, as it is until it arrives."""
    text = to_text(value)
    return text if text and text.strip() else None


def check(
    columns: Mapping[str, Sequence[object]],
    rows: int,
    kinds: Mapping[str, Kind],
    known: set[str],
    fresh: set[str],
) -> Checked:
    """Turn columns of one length (rows) into the log's types and say what is wrong with each bad row.

    known are the ids of the log, fresh those accepted before from the same source; the accepted ones are added to
    it. A column that is not there is all missing.
    """
    reasons: list[str | None] = [None] * rows
    converters: dict[str, Callable[[Any], object]] = {
        "request_id": to_id, "timestamp": to_microseconds, "prompt": to_prompt,
        **dict.fromkeys(TEXTS, to_text), "reference": to_label, **dict.fromkeys(NUMBERS, to_number),
        **{name: to_number if kind == "number" else to_text for name, kind in kinds.items()},
    }  # fmt: skip
    values = {
        name: _convert(name, columns.get(name, [None] * rows), convert, reasons) for name, convert in converters.items()
    }
    for row, request_id in enumerate(values["request_id"]):
        if reasons[row] is None:
            if request_id in known:
                reasons[row] = KNOWN
            elif request_id in fresh:
                reasons[row] = DUPLICATE
            else:
                fresh.add(str(request_id))
    fields = schema(kinds)
    good = [row for row, reason in enumerate(reasons) if reason is None]
    arrays = [pa.array([values[field.name][row] for row in good], field.type) for field in fields]
    return Checked(pa.table(arrays, schema=fields), reasons)


def _convert(
    name: str, values: Sequence[object], convert: Callable[[Any], object], reasons: list[str | None]
) -> list[object]:
    """One column converted; a refused value becomes None and its row's reason, unless there is one already."""
    try:
        return [convert(value) for value in values]
    except (UnicodeError, _Refused):
        converted: list[object] = []  # there is a bad row among them: one by one
    for row, value in enumerate(values):
        try:
            converted.append(convert(value))
        except UnicodeError:
            converted.append(None)
            reasons[row] = reasons[row] or "invalid UTF-8"
        except _Refused as refusal:
            converted.append(None)
            reasons[row] = reasons[row] or str(refusal).replace("COLUMN", name)
    return converted
