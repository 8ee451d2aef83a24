"""Reference profile x features of a window -> DriftReport.

A column drifts when the lower 95 % bound of its PSI reaches `psi_bound`, or when its KS distance reaches
`ks_distance` and is significant after Holm's correction over all columns: both a size and its certainty are
asked for, so that neither a small window nor a huge one raises an alarm on its own. What cannot be compared,
a column that is gone, empty or of another type, is a finding, never an exception.
"""

from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from monitoring.columns import CategoricalColumn, Counted, NumericColumn
from monitoring.features import floats, is_numeric, texts
from monitoring.profile import ReferenceProfile
from monitoring.settings import DriftSettings
from monitoring.statistics import (
    holm,
    ks_distance,
    ks_p_value,
    merge_bins,
    merge_categories,
    psi,
    psi_lower_bound,
    psi_p_value,
)

MIN_VALUES = 20  # fewer values of a column make no two cells to compare
MISSING_CHANGE = 0.1  # a change in the share of missing values from which it is a finding
MOSTLY_OTHER = 0.5  # share of OTHER in a reference column from which it is a finding


class ColumnDrift(BaseModel):
    """One column, reference against window; its statistics are None where it was not compared."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: Literal["numeric", "categorical"]
    psi: float | None = None
    psi_lower: float | None = None  # lower 95 % bound
    psi_p: float | None = None  # without drift
    cells: int = 0  # of the PSI
    ks_distance: float | None = None  # numeric columns only
    ks_p: float | None = None
    ks_p_adjusted: float | None = None
    missing_reference: float  # share of rows
    missing_current: float | None = None
    drifted: bool = False
    why: str


class DriftReport(BaseModel):
    """What a window shows against the reference, columns with the largest PSI first."""

    model_config = ConfigDict(frozen=True)

    window: str
    rows: int
    reference_window: str
    reference_rows: int
    model_version: str
    columns: list[ColumnDrift]
    findings: list[str]
    drifted: bool
    drifted_columns: list[str]
    max_psi: float | None  # None: nothing could be compared


def compare(profile: ReferenceProfile, features: pd.DataFrame, window: str, settings: DriftSettings) -> DriftReport:
    """Compare a window's features with the reference, column by column; odd data makes findings."""
    current = features.rename(columns=str)
    findings = _findings_of_table(profile, current, settings)
    current = current.loc[:, ~current.columns.duplicated()]
    measured = []
    for name, reference in profile.columns.items():
        column, found = _measure(name, reference, current.get(name), len(current), settings.bins)
        measured.append(column)
        findings.extend(found)
    columns = [_judge(column, settings) for column in _adjust(measured)]
    columns.sort(key=lambda column: (column.psi is None, -(column.psi or 0.0), column.name))
    drifted = [column.name for column in columns if column.drifted]
    return DriftReport(
        window=window,
        rows=len(current),
        reference_window=profile.window,
        reference_rows=profile.rows,
        model_version=profile.model_version,
        columns=columns,
        findings=findings,
        drifted=bool(drifted),
        drifted_columns=drifted,
        max_psi=max((column.psi for column in columns if column.psi is not None), default=None),
    )


def _findings_of_table(profile: ReferenceProfile, current: pd.DataFrame, settings: DriftSettings) -> list[str]:
    findings = []
    for place, rows in (("window", len(current)), ("reference", profile.rows)):
        if rows == 0:
            findings.append(f"the window is empty; at least {settings.min_rows} rows are needed")
        elif rows < settings.min_rows:
            findings.append(f"the {place} has too few rows: {rows}; at least {settings.min_rows} are needed")
    if not current.columns.is_unique:
        twice = sorted(set(current.columns[current.columns.duplicated()]))
        findings.append(f"columns given twice, only the first of each is compared: {', '.join(twice)}")
    new = sorted(set(current.columns) - set(profile.columns))
    findings.extend(f"{name}: not in the reference; not compared" for name in new)
    return findings


def _measure(
    name: str, reference: NumericColumn | CategoricalColumn, series: pd.Series | None, rows: int, bins: int
) -> tuple[ColumnDrift, list[str]]:
    """Return the column's statistics, not yet judged, and its findings."""
    before = reference.counted
    now = None if series is None or is_numeric(series) != _numeric(reference) else reference.count(series)
    draft = ColumnDrift(
        name=name,
        kind=reference.kind,
        missing_reference=_missing_share(before),
        missing_current=_missing_share(now) if now and rows else None,
        why="below both bounds",
    )
    obstacle = _obstacle(series, before, now)
    if series is None or now is None or obstacle:
        # That the window is empty is said once, for the whole table.
        found = [f"{name}: {obstacle}; not compared"] if rows else []
        return draft.model_copy(update={"why": f"not compared: {obstacle}"}), found
    numbers = _statistics(reference, before, now, bins)
    return draft.model_copy(update=numbers), _findings_of_column(name, reference, before, now, series)


def _obstacle(series: pd.Series | None, before: Counted, now: Counted | None) -> str:
    """Say why a column cannot be compared; empty when it can be. `now` is None where it has another type."""
    if series is None:
        return "missing from the window"
    if series.isna().all():
        return "no values in the window" if before.cells.any() else "no values in the window, nor in the reference"
    if not before.cells.any():
        return "no values in the reference"
    if now is None:
        return f"changed type, it is {'' if is_numeric(series) else 'not '}numeric now"
    for place, values in (("window", int(now.cells.sum())), ("reference", int(before.cells.sum()))):
        if values < MIN_VALUES:
            return f"only {values} values in the {place}, at least {MIN_VALUES} are needed"
    return ""


def _statistics(
    reference: NumericColumn | CategoricalColumn, before: Counted, now: Counted, bins: int
) -> dict[str, float]:
    if isinstance(reference, NumericColumn):
        p, q = merge_bins(before.cells, now.cells, bins)
    else:  # a missing value is a category too
        p, q = merge_categories(np.append(before.cells, before.missing), np.append(now.cells, now.missing))
    n, m, value = int(p.sum()), int(q.sum()), psi(p, q)
    numbers = {
        "psi": value,
        "psi_lower": psi_lower_bound(value, n, m, len(p)),
        "psi_p": psi_p_value(value, n, m, len(p)),
        "cells": len(p),
    }
    if isinstance(reference, NumericColumn):
        distance = ks_distance(before.cells, now.cells)
        numbers |= {"ks_distance": distance, "ks_p": ks_p_value(distance, n, m)}
    return numbers


def _findings_of_column(
    name: str,
    reference: NumericColumn | CategoricalColumn,
    before: Counted,
    now: Counted,
    series: pd.Series,
) -> list[str]:
    findings = []
    if now.infinite or before.infinite:
        counts = f"{now.infinite} infinite values in the window, {before.infinite} in the reference"
        findings.append(f"{name}: {counts}; counted as missing")
    missing = _missing_share(before), _missing_share(now)
    if abs(missing[1] - missing[0]) >= MISSING_CHANGE:
        findings.append(f"{name}: missing in {missing[0]:.1%} of the reference and in {missing[1]:.1%} of the window")
    places = [
        place
        for place, constant in (
            # Two different values never share a profile's only filled bin; OTHER may hold many.
            ("reference", np.count_nonzero(before.cells) == 1 and (_numeric(reference) or before.cells[-1] == 0)),
            ("window", _constant(series)),
        )
        if constant
    ]
    if places:
        findings.append(f"{name}: constant in the {' and in the '.join(places)}")
    if not _numeric(reference) and before.cells[-1] >= MOSTLY_OTHER * before.cells.sum():
        share = before.cells[-1] / before.cells.sum()
        findings.append(f"{name}: {share:.0%} of the reference are rare categories; changes among them are not seen")
    return findings


def _numeric(reference: NumericColumn | CategoricalColumn) -> bool:
    return isinstance(reference, NumericColumn)


def _constant(series: pd.Series) -> bool:
    if is_numeric(series):
        values = floats(series)
        finite = values[np.isfinite(values)]
        return bool(finite.size and finite.min() == finite.max())
    return texts(series).nunique() == 1


def _missing_share(counted: Counted) -> float:
    rows = int(counted.cells.sum()) + counted.missing
    return counted.missing / rows if rows else 0.0


def _adjust(columns: list[ColumnDrift]) -> list[ColumnDrift]:
    """Correct the KS p-values for the number of columns that were tested."""
    adjusted = iter(holm([column.ks_p for column in columns if column.ks_p is not None]))
    return [
        column if column.ks_p is None else column.model_copy(update={"ks_p_adjusted": next(adjusted)})
        for column in columns
    ]


def _judge(column: ColumnDrift, settings: DriftSettings) -> ColumnDrift:
    reasons = []
    if column.psi is not None and column.psi_lower is not None and column.psi_lower >= settings.psi_bound:
        reasons.append(f"PSI {column.psi:.3f}, at least {column.psi_lower:.3f} >= {settings.psi_bound:g}")
    if (
        column.ks_distance is not None
        and column.ks_p_adjusted is not None
        and column.ks_distance >= settings.ks_distance
        and column.ks_p_adjusted < settings.alpha
    ):
        reasons.append(
            f"KS distance {column.ks_distance:.3f} >= {settings.ks_distance:g}, adjusted p {column.ks_p_adjusted:.1g}"
        )
    if not reasons:
        return column
    return column.model_copy(update={"drifted": True, "why": "; ".join(reasons)})
