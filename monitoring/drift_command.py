"""Tables from files -> drift report: the command `python -m monitoring.drift`.

Parquet (a file, or a folder of them) streams through in constant memory; CSV is read whole.
"""

import argparse
import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from monitoring.drift import DriftReport, compare, compare_rows
from monitoring.errors import Failure, InputError
from monitoring.profile import JSON_NAME, ReferenceProfile
from monitoring.report import number, write_html
from monitoring.settings import DriftSettings
from monitoring.tally import Tally, count

_BATCH_ROWS = 131_072
_DRIFTED = 3  # exit code

_EPILOG = """examples:
  python -m monitoring.drift last_month.parquet today.csv
  python -m monitoring.drift workspace/runs/3f0c.../profile features.parquet --html drift.html

REFERENCE is a table, or the folder of a reference profile. A table is a Parquet or CSV file, or a folder of Parquet.
Thresholds: section [drift] of the settings file.
exit codes: 0 quiet or info, 3 warning or critical, 2 bad input, 1 the page could not be written.
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
        rows = 0
        for file in table.files:
            with fs.open(file, "rb") as handle:
                # A dataset's own reader holds whole row groups: twice the memory (measured).
                for batch in pq.ParquetFile(handle, pre_buffer=False).iter_batches(_BATCH_ROWS, use_threads=False):
                    rows += batch.num_rows
                    yield batch.to_pandas()
        if not rows:
            yield table.schema.empty_table().to_pandas()
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())
        raise InputError(
            f"table {path!r} cannot be read ({reason}): give a Parquet or CSV file with a header"
        ) from error


def profile_of(path: str, settings: DriftSettings) -> ReferenceProfile:
    """Return the reference profile that lies in a folder, or the one of a table; InputError when there is neither."""
    if (Path(path) / JSON_NAME).is_file():
        return ReferenceProfile.load(path)
    return ReferenceProfile.build(
        pd.concat(frames(path), ignore_index=True),
        window=path,
        model_version="none",
        max_categories=settings.max_categories,
        sample_rows=settings.sample_rows,
        seed=0,
    )


def tally(profile: ReferenceProfile, path: str, sample_rows: int) -> Tally:
    """Count a table against a profile, part by part."""
    parts = (count(profile, frame, sample_rows=sample_rows, seed=part) for part, frame in enumerate(frames(path)))
    whole = next(parts)
    for part in parts:
        whole += part
    return whole


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
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
    given = parser.parse_args(arguments)
    try:
        settings = _settings(given.config)
        profile = profile_of(given.reference, settings)
        seen = tally(profile, given.current, settings.sample_rows)
        report = compare_rows(profile, seen.sample, compare(profile, seen, given.current, settings), settings)
        if given.html:
            write_html(profile.sample, seen.sample, report, given.html)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Failure as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report.model_dump(mode="json")) if given.json else text(report))
    return _DRIFTED if report.drifted else 0


def _settings(config: str | None) -> DriftSettings:
    if config is None:
        return DriftSettings()
    try:
        return DriftSettings.model_validate(tomllib.loads(Path(config).read_text("utf-8")).get("drift", {}))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"--config {config!r} cannot be used: {reason}") from error


def text(report: DriftReport) -> str:
    """Return a report as lines of text: verdict, a table of columns, findings."""
    verdict = f"{report.severity.upper() if report.severity != 'none' else 'QUIET'}"
    lines = [f"{verdict}  {report.window}: {report.rows:,} rows against {report.reference_rows:,} of "
             f"{report.reference_window}", ""]  # fmt: skip
    head = ("column", "severity", "PSI", "at least", "KS", "p adj.", "JS", "missing", "why")
    rows = [
        (
            column.name,
            column.severity if column.severity != "none" else "",
            number(column.psi, ".3f"),
            number(column.psi_lower, ".3f"),
            number(column.ks_distance, ".3f"),
            number(column.p_adjusted, ".2g"),
            number(column.jensen_shannon, ".3f"),
            number(column.missing_current, ".1%"),
            "; ".join([column.why, *map(str, column.moved)] if column.drifted else [column.why]),
        )
        for column in report.columns
    ]
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head) - 1)]
    lines += ["  ".join([*map(str.ljust, row[:-1], widths), row[-1]]).rstrip() for row in (head, *rows)]
    lines += ["", f"rows: {report.rows_told()}"] if report.mmd else []
    lines += ["", *(f"carried by {segment}" for segment in report.segments)] if report.segments else []
    lines += ["", *(f"finding: {finding}" for finding in report.findings)] if report.findings else []
    return "\n".join(lines)
