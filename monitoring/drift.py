"""Reference profile x features of a window -> DriftReport. Also a command: two tables, any columns.

    python -m monitoring.drift REFERENCE CURRENT [--config FILE] [--json] [--html FILE]

Severity of a column, from the size of a change and its certainty together, so that neither a small window nor a huge
one raises an alarm on its own:

    info      p of KS (numbers) or chi-square (categories), corrected over all columns, is below `info_alpha`
    warning   the lower 95 % bound of PSI reaches `psi_bound`, or the KS distance `ks_distance`, and that one's p,
              corrected over all columns, is below half of `alpha` (PSI's always is from some 300 rows on)
    critical  the lower bound reaches `critical_bound`, or measured accuracy is below `quality_floor`

What no column shows alone, `compare_rows` finds in a sample of the rows: info when MMD's p is below `info_alpha`,
warning when a classifier tells the window from the reference besides, the lower 95 % bound of its AUC `auc_bound` or
more. Columns and rows are two tests then, corrected once more: without drift a report is at info in no more windows
than `info_alpha`.

What cannot be compared, a column that is gone, empty or of another type, is a finding, never an exception.
"""

import sys

import numpy as np
import pandas as pd

from monitoring import segments, statistics, trouble
from monitoring.attribution import moved
from monitoring.columns import MIN_COUNT, CategoricalColumn, Counted, NumericColumn, merged
from monitoring.drift_report import ColumnDrift, DriftReport, Severity
from monitoring.multivariate import domain_auc, mmd
from monitoring.performance import Quality
from monitoring.profile import ReferenceProfile
from monitoring.settings import DriftSettings
from monitoring.tally import ColumnTally, Tally, count

MAX_NEW = 10  # categories of the window that the profile does not have, named


def compare(
    profile: ReferenceProfile, current: pd.DataFrame | Tally, window: str, settings: DriftSettings
) -> DriftReport:
    """Compare a window's features, or the tally of them, with the reference; odd data makes findings."""
    tally = current if isinstance(current, Tally) else count(profile, capped(current, settings), sample_rows=0, seed=0)
    findings = trouble.of_table(profile, tally, settings)
    measured = []
    for name, reference in profile.columns.items():
        column, found = _measure(name, reference, tally.columns[name], tally.rows, settings.bins)
        measured.append(column)
        findings.extend(found)
    columns = [_judge(column, settings) for column in _adjust(measured, settings)]
    columns.sort(key=lambda column: (column.psi is None, -(column.psi or 0.0), column.name))
    return DriftReport(
        window=window,
        rows=tally.rows,
        reference_window=profile.window,
        reference_rows=profile.rows,
        model_version=profile.model_version,
        columns=columns,
        findings=findings,
        max_psi=max((column.psi for column in columns if column.psi is not None), default=None),
    )


def compare_rows(
    profile: ReferenceProfile, sample: pd.DataFrame, report: DriftReport, settings: DriftSettings
) -> DriftReport:
    """Return the report with what rows show and no column does, and which segments carry the drift, from samples."""
    found, domain, severity, columns = mmd(profile.sample, sample, seed=0), None, "none", report.columns
    if found.p is not None:
        columns_p = min((column.p_adjusted for column in columns if column.p_adjusted is not None), default=1.0)
        columns_p, rows_p = statistics.holm([columns_p, found.p])
        if columns_p >= settings.info_alpha:
            columns = [_not_beside_rows(column) for column in columns]
        if rows_p < settings.info_alpha:
            severity, domain = "info", domain_auc(profile.sample, sample, seed=0)
            if domain.low is not None and domain.low >= settings.auc_bound:
                severity = "warning"
    carrying = segments.carrying(profile, sample, report.drifted_columns, settings)
    told = {"mmd": found, "domain": domain, "rows_severity": severity, "columns": columns, "segments": carrying}
    return report.model_copy(update=told)


def _not_beside_rows(column: ColumnDrift) -> ColumnDrift:
    """Take a column's info back: its p is not significant among two tests."""
    if column.severity != "info":
        return column
    why = f"adjusted p {column.p_adjusted:.1g}, not significant with whole rows tested too"
    return column.model_copy(update={"severity": "none", "why": why})


def with_quality(report: DriftReport, quality: Quality, settings: DriftSettings) -> DriftReport:
    """Return the report with the model's quality: critical when measured accuracy is surely below `quality_floor`."""
    low = quality.accuracy is not None and quality.accuracy.high < settings.quality_floor
    return report.model_copy(update={"quality": quality, "quality_severity": "critical" if low else "none"})


def capped(current: pd.DataFrame, settings: DriftSettings) -> pd.DataFrame:
    """Return at most `max_rows` rows, drawn with a fixed seed: the same of two frames of as many rows."""
    if not settings.max_rows or len(current) <= settings.max_rows:
        return current
    return current.iloc[np.sort(np.random.default_rng(0).choice(len(current), settings.max_rows, replace=False))]


def _measure(
    name: str, reference: NumericColumn | CategoricalColumn, column: ColumnTally, rows: int, bins: int
) -> tuple[ColumnDrift, list[str]]:
    """Return the column's statistics, not yet judged, and its findings."""
    before, now = reference.counted, column.counted
    comparable = rows and not column.absent and not column.mistyped
    draft = ColumnDrift(
        name=name,
        kind=reference.kind,
        missing_reference=before.missing_share,
        missing_current=now.missing_share if comparable else None,
        why="below all thresholds",
    )
    if obstacle := trouble.obstacle(reference, before, column, rows):
        # That the window is empty is said once, for the whole table.
        found = [f"{name}: {obstacle}; not compared"] if rows else []
        return draft.model_copy(update={"why": f"not compared: {obstacle}"}), found
    numbers = _statistics(reference, before, now, bins)
    return draft.model_copy(update=numbers), trouble.of_column(name, reference, before, now)


def _statistics(
    reference: NumericColumn | CategoricalColumn, before: Counted, now: Counted, bins: int
) -> dict[str, object]:
    numbers: dict[str, object]
    p, q = merged(reference, before, now, bins)
    if isinstance(reference, NumericColumn):
        distance, ks_p = statistics.ks_test(before.cells, now.cells)
        numbers = {
            "ks_distance": distance,
            "ks_p": ks_p,
            "outside": now.outside / now.values,
            "wasserstein": statistics.wasserstein(
                before.cells,
                now.cells,
                np.array(reference.edges),
                min(before.low, now.low),
                max(before.high, now.high),
            ),
        }
    else:
        frequent = sorted(now.others.items(), key=lambda item: (-item[1], item[0]))[:MAX_NEW]
        numbers = {
            "new_categories": {name: times / now.values for name, times in frequent if times >= MIN_COUNT},
        }
    n, m, value = int(p.sum()), int(q.sum()), statistics.psi(p, q)
    return numbers | {
        "psi": value,
        "psi_lower": statistics.psi_lower_bound(value, n, m, len(p)),
        "psi_p": statistics.psi_p_value(value, n, m, len(p)),
        "chi_square_p": statistics.chi_square_p(p, q),
        "cells": len(p),
        "jensen_shannon": statistics.jensen_shannon(p, q),
        "moved": moved(reference, before, now, bins),
    }


def _adjust(columns: list[ColumnDrift], settings: DriftSettings) -> list[ColumnDrift]:
    """Correct the p-values for the number of columns that were tested: those of KS and chi-square, and PSI's."""
    correct = statistics.holm if settings.correction == "holm" else statistics.benjamini_hochberg
    tested = [column for column in columns if column.psi_p is not None and _p(column) is not None]
    adjusted = zip(
        # The tail of PSI's chi-square is too light in small windows (4 times at p = 1e-4, 100 rows); Pearson's is not.
        correct([max(column.psi_p or 0.0, column.chi_square_p or 0.0) for column in tested]),
        correct([_p(column) or 0.0 for column in tested]),
        strict=True,
    )
    told = {
        column.name: {"psi_p_adjusted": psi_p, "p_adjusted": p}
        for column, (psi_p, p) in zip(tested, adjusted, strict=True)
    }
    return [column.model_copy(update=told.get(column.name, {})) for column in columns]


def _p(column: ColumnDrift) -> float | None:
    return column.ks_p if column.kind == "numeric" else column.chi_square_p


def _judge(column: ColumnDrift, settings: DriftSettings) -> ColumnDrift:
    severity: Severity = "none"
    reasons = []
    p, bound, distance = column.p_adjusted, column.psi_lower, column.ks_distance
    if p is not None and p < settings.info_alpha:
        severity = "info"
        reasons = [f"{'KS' if column.kind == 'numeric' else 'chi-square'} adjusted p {p:.1g}, but no large change"]
    alarms = []
    level = settings.alpha / 2  # two tests warn, PSI's and that of KS, each corrected over the columns
    sure = column.psi_p_adjusted is not None and column.psi_p_adjusted < level
    if sure and bound is not None and bound >= settings.psi_bound:
        alarms.append(f"PSI {column.psi:.3f}, at least {bound:.3f} >= {settings.psi_bound:g}")
    if distance is not None and p is not None and distance >= settings.ks_distance and p < level:
        alarms.append(f"KS distance {distance:.3f} >= {settings.ks_distance:g}, adjusted p {p:.1g}")
    if alarms:
        severity, reasons = "warning", alarms
        if bound is not None and bound >= settings.critical_bound:
            severity = "critical"
    return column.model_copy(update={"severity": severity, "why": "; ".join(reasons)}) if reasons else column


if __name__ == "__main__":
    from monitoring.drift_command import main

    sys.exit(main())
