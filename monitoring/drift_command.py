"""Tables from files -> drift report: the command `python -m monitoring.drift`.

Parquet (a file, or a folder of them) streams through in constant memory; CSV is read whole.
"""

import argparse
import json
import math
import os
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from monitoring.drift import compare, compare_rows
from monitoring.drift_report import DriftReport
from monitoring.errors import Failure, InputError
from monitoring.profile import JSON_NAME, SAMPLE_NAME, ReferenceProfile
from monitoring.report import figures, write_html
from monitoring.settings import DriftSettings
from monitoring.tally import Tally, count

_BATCH_ROWS = 131_072
_DRIFTED = 3  # exit code
_Keyed = tuple[pd.DataFrame, npt.NDArray[np.float64]]  # rows, and a key each

_EPILOG = """examples:
  python -m monitoring.drift last_month.parquet today.csv
  python -m monitoring.drift workspace/runs/3f0c.../profile features.parquet --html drift.html

REFERENCE is a table, or the folder of a reference profile. A table is a Parquet or CSV file, or a folder of Parquet.
Thresholds: section [drift] of the settings file.
Times count as seconds since 1970, so that a timestamp that moves on is drift: leave such a column out.
exit codes: 0 quiet or info, 3 warning or critical, 2 bad input or no column that could be compared (the report, if
there is one, says NOTHING COMPARED), 1 the page could not be written.
"""


def frames(path: str) -> Iterator[pd.DataFrame]:
    """Yield a table part by part; InputError, naming the file, when it cannot be read."""
    try:
        fs, place = url_to_fs(path)
        if not fs.exists(place):
            raise InputError(f"table {path!r} is not there")
        if fs.isfile(place) and not place.lower().endswith((".parquet", ".pq")):
            yield pd.read_csv(path, low_memory=False)
            return
        table = ds.dataset(place, format="parquet", filesystem=fs)  # names that begin with _ or . are left out
        if not table.files:
            raise InputError(f"folder {path!r} has no Parquet file: give a Parquet or CSV file, or a folder of Parquet")
        rows = 0
        for file in table.files:
            with fs.open(file, "rb") as handle:
                # A dataset's own reader holds whole row groups: twice the memory (measured).
                for batch in pq.ParquetFile(handle, pre_buffer=False).iter_batches(_BATCH_ROWS, use_threads=False):
                    rows += batch.num_rows
                    yield _frame(batch)
        if not rows:
            yield _frame(table.schema.empty_table())
    except InputError:
        raise
    except Exception as error:  # only reading happens above, and every format and compression has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"table {path!r} cannot be read ({reason}): give a Parquet or CSV file with a header"
        ) from error


def _frame(part: pa.RecordBatch | pa.Table) -> pd.DataFrame:
    """Return the columns of a part as Arrow types them, without what pandas wrote down as its index."""
    try:
        noted = json.loads(part.schema.metadata[b"pandas"])["index_columns"]
        index = [name for name in noted if isinstance(name, str)]  # a range is no column
    except (KeyError, TypeError, ValueError, RecursionError):
        index = []  # not from pandas, or the note is damaged: the columns themselves are whole
    frame: pd.DataFrame = part.replace_schema_metadata().to_pandas(date_as_object=False)
    return frame.loc[:, ~frame.columns.isin(index)]


def profile_of(path: str, settings: DriftSettings) -> ReferenceProfile:
    """Return the reference profile that lies in a folder, or the one of a table; InputError when there is neither."""
    if os.path.isfile(os.path.join(path, JSON_NAME)):
        return ReferenceProfile.load(path)
    if os.path.isfile(os.path.join(path, SAMPLE_NAME)) and len(list(Path(path).rglob("*.parquet"))) == 1:
        raise InputError(
            f"{path!r} is a reference profile that lacks {JSON_NAME}: restore it, or, to compare with the rows "
            f"of {SAMPLE_NAME} alone, give that file"
        )
    parts = list(frames(path))
    for part in parts:
        if not part.columns.is_unique:
            raise InputError(
                f"table {path!r} has columns twice: {sorted(set(part.columns[part.columns.duplicated()]))}"
            )
    return ReferenceProfile.build(
        pd.concat(parts, ignore_index=True),
        window=path,
        model_version="none",
        max_categories=settings.max_categories,
        sample_rows=settings.sample_rows,
        seed=0,
    )


def tally(profile: ReferenceProfile, path: str, settings: DriftSettings) -> Tally:
    """Count a table against a profile, part by part; of more than `max_rows` rows, as many drawn at random."""
    parts = _drawn(frames(path), settings.max_rows) if settings.max_rows else frames(path)
    counted = (count(profile, part, sample_rows=settings.sample_rows, seed=at) for at, part in enumerate(parts))
    whole = next(counted)
    for more in counted:
        whole += more
    return whole


def _drawn(parts: Iterator[pd.DataFrame], most: int) -> list[pd.DataFrame]:
    """Return the rows with the smallest of random keys, at most so many, in parts: each keeps its types."""
    rng = np.random.default_rng(0)
    kept: list[_Keyed] = []
    bar = math.inf  # rows with larger keys are not among the smallest
    for part in parts:
        kept.append(_up_to(bar, part, rng.random(len(part))))
        if sum(len(keys) for _, keys in kept) > 2 * most:
            bar, kept = _smallest(kept, most)
    return [part for part, _ in _smallest(kept, most)[1]]


def _smallest(kept: list[_Keyed], most: int) -> tuple[float, list[_Keyed]]:
    """Return the largest key among the smallest so many, and the rows up to it; never less than one part."""
    keys = np.concatenate([keys for _, keys in kept])
    bar = float(np.partition(keys, most - 1)[most - 1]) if len(keys) > most else math.inf
    parts = [_up_to(bar, *part) for part in kept]
    return bar, [part for part in parts if len(part[1])] or parts[:1]


def _up_to(bar: float, part: pd.DataFrame, keys: npt.NDArray[np.float64]) -> _Keyed:
    return part.loc[keys <= bar], keys[keys <= bar]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = _parser().parse_args(arguments)
    try:
        report = _report(given.reference, given.current, _settings(given.config), given.html)
    except InputError as error:
        return _say(error, 2)
    except Failure as error:
        return _say(error, 1)
    _print(json.dumps(report.model_dump(mode="json"), allow_nan=False) if given.json else text(report))
    if nothing_compared(report):
        return _say(
            f"no column of {given.current!r} could be compared with {given.reference!r}; the report says why", 2
        )
    return _DRIFTED if report.drifted else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m monitoring.drift",
        description="Compare two tables column by column: PSI with its lower bound, KS, chi-square, severity.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("reference", metavar="REFERENCE", help="what is normal: a table, or a profile's folder")
    parser.add_argument("current", metavar="CURRENT", help="what is to be looked at: a table")
    parser.add_argument("--config", metavar="FILE", help="settings file with a section [drift]")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object instead of a table")
    parser.add_argument("--html", metavar="FILE", help="write the report with Evidently's pictures")
    return parser


def _report(reference: str, current: str, settings: DriftSettings, page: str | None) -> DriftReport:
    if page is not None and not Path(page).name:
        raise InputError(f"--html {page!r} names no file: give the page's path")
    profile = profile_of(reference, settings)
    seen = tally(profile, current, settings)
    report = compare_rows(profile, seen.sample, compare(profile, seen, current, settings), settings)
    if page is not None:
        write_html(profile.sample, seen.sample, report, page)
    return report


def _say(error: object, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _print(lines: str) -> None:
    """Print what a terminal's encoding cannot hold as escapes; a reader who stops reading, as `head` does, is right."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(lines.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's last flush fails once more


def _settings(config: str | None) -> DriftSettings:
    if config is None:
        return DriftSettings()
    try:
        return DriftSettings.model_validate(tomllib.loads(Path(config).read_text("utf-8")).get("drift", {}))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--config {config!r} cannot be used: {error}") from error


def nothing_compared(report: DriftReport) -> bool:
    """Say whether the quiet of a report is that of nothing looked at: no column could be compared."""
    return report.max_psi is None and report.severity == "none"


def text(report: DriftReport) -> str:
    """Return a report as lines of text: verdict, a table of columns, findings."""
    quiet = "NOTHING COMPARED" if nothing_compared(report) else "QUIET"
    verdict = quiet if report.severity == "none" else report.severity.upper()
    lines = [f"{verdict}  {report.window}: {report.rows:,} rows against {report.reference_rows:,} of "
             f"{report.reference_window}", ""]  # fmt: skip
    head = ("column", "severity", "PSI", "at least", "KS", "p adj.", "JS", "missing", "why")
    rows = [
        (
            column.name,
            column.severity if column.severity != "none" else "",
            *figures(column, "psi", "psi_lower", "ks_distance", "p_adjusted", "jensen_shannon", "missing_current"),
            column.told(),
        )
        for column in report.columns
    ]
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head) - 1)]
    lines += ["  ".join([*map(str.ljust, row[:-1], widths), row[-1]]).rstrip() for row in (head, *rows)]
    lines += ["", f"rows: {report.rows_told()}"] if report.mmd else []
    lines += ["", *(f"carried by {segment}" for segment in report.segments)] if report.segments else []
    lines += ["", *(f"finding: {finding}" for finding in report.findings)] if report.findings else []
    return "\n".join(lines)
