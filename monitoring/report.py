"""Drift report -> one HTML page: our table and verdict, then Evidently's pictures of the same columns.

The page needs no network. Evidently draws; it decides nothing: its PSI and chi-square are unsafe as triggers
(an outlier hides a shift, the reference counts as exact), so it is given our numbers as a statistical test of
its own registry.
"""

import html
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from monitoring.columns import OTHER
from monitoring.drift_report import ColumnDrift, DriftReport
from monitoring.errors import Failure
from monitoring.features import numbers, texts
from monitoring.files import write_atomically
from monitoring.naming import shortened, unique

PICTURE_ROWS = 2_000
LARGEST_DRAWN = 1e150  # squares of larger numbers overflow, and Evidently raises
TEST_NAME = "redistill_psi"
_registry = threading.Lock()  # Evidently's registry of tests is one for the process


def write_html(
    sample: pd.DataFrame,
    current: pd.DataFrame,
    report: DriftReport,
    path: str | Path,
    *,
    sample_rows: int = PICTURE_ROWS,
) -> None:
    """Write the page of a report on `current`, feature rows of the window; `sample` holds the reference's.

    At most `sample_rows` rows of each are drawn; columns without values on either side, or whose
    values are too close to be binned, are only in the table. Raises Failure when the page cannot be written.
    """
    columns = [column for column in report.columns if column.psi is not None]
    before, now = _thin(sample, sample_rows), _thin(current, sample_rows)
    before, now = _drawable(columns, before, now)
    page = (
        _evidently_page(
            [c for c in columns if c.name in before], before, now, shown_names(c.name for c in report.columns)
        )
        if len(before.columns)
        else _EMPTY_PAGE
    )
    write_atomically(Path(path), _put_first(_section(report), page, report.window).encode())


def _thin(frame: pd.DataFrame, rows: int) -> pd.DataFrame:
    """Return at most this many rows, chosen with a fixed seed, in their order."""
    chosen = np.random.default_rng(0).permutation(len(frame))[:rows]
    return frame.iloc[np.sort(chosen)].reset_index(drop=True)


def _drawable(
    columns: list[ColumnDrift], sample: pd.DataFrame, current: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the columns Evidently can draw: it raises for the whole report on one without values."""
    before, now = {}, {}
    for column in columns:
        if column.name not in sample or column.name not in current:
            continue
        if column.kind == "numeric":
            pair = [numbers(frame[column.name]).replace([np.inf, -np.inf], np.nan) for frame in (sample, current)]
            pair = [series.clip(-LARGEST_DRAWN, LARGEST_DRAWN) for series in pair]
            if not all(_has_bins(series.dropna()) for series in (*pair, pd.concat(pair))):
                continue
        else:
            kept = set(texts(sample[column.name]).dropna())
            pair = [_labels(texts(frame[column.name]), kept) for frame in (sample, current)]
        if all(series.notna().any() for series in pair):
            before[column.name], now[column.name] = pair
    return pd.DataFrame(before), pd.DataFrame(now)


def _has_bins(values: pd.Series) -> bool:
    """Say whether there are values, and floats between them to bin them by: there are none from 1e16 to 1e16 + 2."""
    if values.empty:
        return False
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = low - 0.5, high + 0.5  # the range that is drawn around a constant
    return bool(high - low > 100 * np.spacing(max(abs(low), abs(high))))


def _labels(values: pd.Series, kept: set[str]) -> pd.Series:
    grouped = values.where(values.isna() | values.isin(list(kept)), OTHER)
    return grouped.map(lambda text: harmless(shortened(text)), na_action="ignore").where(grouped.notna(), "(missing)")


def harmless(text: str) -> str:
    """Keep a text from closing the script that Evidently writes it into unescaped."""
    return text.replace("<", "\u2039")


def shown_names(columns: Iterable[str]) -> dict[str, str]:
    """Return columns' names as Evidently is given them: harmless, no two alike, whatever order they come in."""
    # A name that can stay as it is does; the others are numbered where they would meet.
    names = sorted(columns, key=lambda name: (harmless(name) != name, name))
    return dict(zip(names, unique([harmless(name) for name in names]), strict=True))


def _evidently_page(columns: list[ColumnDrift], before: pd.DataFrame, now: pd.DataFrame, names: dict[str, str]) -> str:
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    shown = {column.name: names[column.name] for column in columns}
    definition = DataDefinition(
        numerical_columns=[shown[c.name] for c in columns if c.kind == "numeric"],
        categorical_columns=[shown[c.name] for c in columns if c.kind == "categorical"],
    )
    datasets = [Dataset.from_pandas(frame.rename(columns=shown), data_definition=definition) for frame in (now, before)]
    with _registry:
        _register({shown[column.name]: column for column in columns})
        drawn = Report([ValueDrift(column=name, method=TEST_NAME) for name in shown.values()]).run(*datasets)
    return str(drawn.get_html_str(as_iframe=False))


def _register(columns: dict[str, ColumnDrift]) -> None:
    """Give Evidently a test that answers with our PSI and our verdict."""
    from evidently.legacy.calculations.stattests.registry import StatTest, register_stattest
    from evidently.legacy.core import ColumnType

    def look_up(reference: pd.Series, current: pd.Series, kind: Any, threshold: float) -> tuple[float, bool]:
        column = columns[str(current.name)]
        return float(column.psi or 0.0), column.drifted

    test = StatTest(TEST_NAME, "redistill, see the table", [ColumnType.Numerical, ColumnType.Categorical])
    register_stattest(test, look_up)


_EMPTY_PAGE = '<!DOCTYPE html><html lang="en"><head><meta charset="UTF-8"></head><body></body></html>'


def _put_first(section: str, page: str, window: str) -> str:
    """Put our section at the top of the page's body."""
    head, head_found, rest = page.partition("<head>")
    before, body_found, after = rest.partition("<body>")
    if not (head_found and body_found):
        raise Failure("Evidently's page has no <head> or <body>: install the pinned version (constraints.txt)")
    title = f"<title>Drift {html.escape(window)}</title>"
    return f"{head}{head_found}{title}{before}{body_found}{section}{after}"


def _section(report: DriftReport) -> str:
    drifted = ", ".join(report.drifted_parts)
    verdict = f"{report.severity}, drift in {drifted}" if drifted else "no drift"
    rows = "".join(_row(column) for column in report.columns)
    findings = "".join(f"<li>{html.escape(finding)}</li>" for finding in report.findings)
    segments = "".join(f"<li>{html.escape(str(segment))}</li>" for segment in report.segments)
    head = "".join(f"<th>{title}</th>" for title in _TITLES)
    compared = (
        f"{report.rows:,} rows against {report.reference_rows:,} of the reference {report.reference_window}"
        f" (model version {report.model_version}). This table decides; the pictures below are of a sample."
    )
    return f"""<section id="redistill">{_STYLE}
<h1>{html.escape(report.window)}: {html.escape(verdict)}</h1>
<p>{html.escape(compared)}</p>
<table><tr>{head}</tr>{rows}</table>
{f"<p>Whole rows: {html.escape(report.rows_told())}</p>" if report.mmd else ""}
{f"<p>{html.escape(report.quality.told().capitalize())}</p>" if report.quality else ""}
{f"<h2>Segments that carry it</h2><ul>{segments}</ul>" if report.segments else ""}
{f"<h2>Findings</h2><ul>{findings}</ul>" if findings else ""}</section>"""


def _row(column: ColumnDrift) -> str:
    cells = [
        column.name,
        column.kind,
        *figures(
            column, "psi", "psi_lower", "psi_p", "ks_distance", "p_adjusted", "missing_reference", "missing_current"
        ),
        "" if column.severity == "none" else column.severity,
        column.told(),
    ]
    inner = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    return f"<tr{' class=drifted' if column.drifted else ''}>{inner}</tr>"


def figures(column: ColumnDrift, *names: str) -> list[str]:
    """Return a column's statistics of these names as tables show them, a dash where there is none."""
    values = [(getattr(column, name), _FORMS[name]) for name in names]
    return ["-" if value is None else format(value, form) for value, form in values]


_FORMS = {
    **dict.fromkeys(("psi", "psi_lower", "ks_distance", "jensen_shannon"), ".3f"),
    **dict.fromkeys(("psi_p", "p_adjusted"), ".2g"),
    **dict.fromkeys(("missing_reference", "missing_current"), ".1%"),
}
_TITLES = (
    "column",
    "kind",
    "PSI",
    "at least (95&nbsp;%)",
    "p without drift",
    "KS distance",
    "p, corrected",
    "missing before",
    "missing now",
    "severity",
    "why",
)
_STYLE = """<style>
#redistill { font: 14px/1.5 system-ui, sans-serif; margin: 24px; color: #222; }
#redistill table { border-collapse: collapse; }
#redistill th, #redistill td { padding: 4px 10px; border-bottom: 1px solid #ddd; text-align: left; }
#redistill tr.drifted { background: #fdecea; }
</style>"""
