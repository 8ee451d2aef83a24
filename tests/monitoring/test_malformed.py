"""A thousand malformed tables: a report or one clear error, never a traceback."""

import contextlib
import datetime
import decimal
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitoring import drift_command
from monitoring.drift import compare
from monitoring.drift_report import DriftReport
from monitoring.errors import InputError
from monitoring.profile import ReferenceProfile
from monitoring.settings import DriftSettings

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.just(pd.NA),
    st.just(pd.NaT),
    st.just("\ud800"),
    st.complex_numbers(max_magnitude=10),
    st.dates(datetime.date(1900, 1, 1)),
    st.decimals(allow_nan=False, allow_infinity=False, places=2),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)
DTYPES = (
    "float64",
    "float32",
    "Int64",
    "Float64",
    "boolean",
    "bool",
    "string",
    "category",
    "complex128",
    "datetime64[ns]",
)


@st.composite
def series(draw: st.DrawFn, rows: int) -> pd.Series:
    if draw(st.booleans()):
        one = draw(VALUES)
        mixed = pd.Series([one] * rows, dtype=object)
    else:
        mixed = pd.Series(draw(st.lists(VALUES, min_size=rows, max_size=rows)), dtype=object)
    dtype = draw(st.sampled_from(("object", *DTYPES)))
    try:
        return mixed.astype(dtype)
    except (TypeError, ValueError, OverflowError, decimal.InvalidOperation):
        return mixed


@st.composite
def table(draw: st.DrawFn) -> pd.DataFrame:
    rows = draw(st.sampled_from((0, 1, 2, 19, 20, 40, 250)))
    few = min(rows, 40)  # drawing cells is slow: longer tables repeat
    names = draw(st.lists(st.one_of(st.sampled_from(("a", "b", "c")), st.integers(0, 3), st.none()), max_size=4))
    columns = [draw(series(few)).reset_index(drop=True) for _ in names]
    frame = pd.concat(columns, axis=1) if columns else pd.DataFrame(index=range(few))
    frame.columns = pd.Index(names, dtype=object)
    return frame.iloc[np.arange(rows) % few] if few else frame


@settings(max_examples=1000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(table(), table())
def test_a_malformed_table_makes_a_report_or_a_clear_error(then: pd.DataFrame, now: pd.DataFrame) -> None:
    try:
        profile = ReferenceProfile.build(
            then, window="then", model_version="1", max_categories=5, sample_rows=100, seed=0
        )
    except InputError:
        return
    report = compare(profile, now, "now", DriftSettings())
    assert DriftReport.model_validate_json(report.model_dump_json()) == report
    assert {column.name for column in report.columns} == set(profile.columns)


def write(frame: pd.DataFrame, place: Path) -> str:
    """Write a table as Parquet, or, where that holds no such values, as CSV; returns its path."""
    try:
        frame.to_parquet(place.with_suffix(".parquet"))
    except (pa.ArrowException, ValueError, TypeError, OverflowError, UnicodeError):
        place.with_suffix(".parquet").unlink(missing_ok=True)
        frame.to_csv(place.with_suffix(".csv"), index=False, errors="backslashreplace")
        return str(place.with_suffix(".csv"))
    return str(place.with_suffix(".parquet"))


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(table(), table())
def test_a_malformed_file_makes_strict_json_or_one_line(then: pd.DataFrame, now: pd.DataFrame) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [write(frame, Path(folder, name)) for name, frame in (("then", then), ("now", now))]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = drift_command.main([*paths, "--json"])
    assert code in (0, 2, 3)
    assert err.getvalue().count("\n") == (code == 2), "one line says what is wrong, and nothing else"
    if out.getvalue():
        report = json.loads(out.getvalue(), parse_constant=refuse)
        nothing_seen = report["max_psi"] is None and report["severity"] == "none"  # whole rows can differ none the less
        assert code == (2 if nothing_seen else 3 if report["drifted"] else 0)
    else:
        assert code == 2
