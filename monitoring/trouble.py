"""What is wrong with the data of a comparison, said in words: a finding, never an exception and never a silent skip."""

import numpy as np

from monitoring.columns import CategoricalColumn, Counted, NumericColumn
from monitoring.profile import ReferenceProfile
from monitoring.settings import DriftSettings
from monitoring.statistics import rows_needed
from monitoring.tally import ColumnTally, Tally

MIN_VALUES = 20  # fewer values of a column make no two cells to compare
MISSING_CHANGE = 0.1  # a change in the share of missing values from which it is a finding
MOSTLY_OTHER = 0.5  # share of OTHER in a reference column from which it is a finding
OUTSIDE = 0.01  # share of values outside of the reference's range from which it is a finding


def of_table(profile: ReferenceProfile, tally: Tally, settings: DriftSettings) -> list[str]:
    """Return what is wrong with the window or the reference as a whole."""
    findings = []
    for place, rows in (("window", tally.rows), ("reference", profile.rows)):
        if rows == 0:
            findings.append(f"the window is empty; {_needed(profile, settings)}")
        elif rows < settings.min_rows:
            findings.append(f"the {place} has too few rows: {rows}; {_needed(profile, settings)}")
    if tally.twice:
        findings.append(f"columns given twice, only the first of each is compared: {', '.join(sorted(tally.twice))}")
    findings.extend(f"{name}: not in the reference; not compared" for name in sorted(tally.new))
    return findings


def _needed(profile: ReferenceProfile, settings: DriftSettings) -> str:
    """Say how many rows are asked for, and how many it takes for a change that warns to be significant."""
    columns = max(1, len(profile.columns))
    rows = rows_needed(settings.ks_distance, settings.alpha / 2 / columns, profile.rows)
    told = f"at least {settings.min_rows} are needed (drift.min_rows)"
    change = f"for a KS distance of {settings.ks_distance:g} to be significant in {columns} columns"
    if rows is None:
        return f"{told}, and a larger reference than {profile.rows} rows {change}"
    return f"{told}, and {rows} {change}"


def obstacle(reference: NumericColumn | CategoricalColumn, before: Counted, column: ColumnTally, rows: int) -> str:
    """Say why a column cannot be compared; empty when it can be."""
    now = column.counted
    if column.absent:
        part = "" if column.absent == rows else f" in {column.absent} of its {rows} rows"
        return f"missing from the window{part}"
    if column.mistyped and before.values:
        part = "" if column.mistyped == rows else f" in {column.mistyped} of {rows} rows"
        return f"changed type, it is {'not ' if isinstance(reference, NumericColumn) else ''}numeric now{part}"
    if not now.values and not now.infinite and not column.mistyped:
        return "no values in the window" if before.values else "no values in the window, nor in the reference"
    if not before.values:
        return "no values in the reference"
    for place, values in (("window", now.values), ("reference", before.values)):
        if values < MIN_VALUES:
            return f"only {values} values in the {place}, at least {MIN_VALUES} are needed"
    return ""


def of_column(name: str, reference: NumericColumn | CategoricalColumn, before: Counted, now: Counted) -> list[str]:
    """Return what is odd in a column that can be compared all the same."""
    findings = []
    if now.infinite or before.infinite:
        counts = f"{now.infinite} infinite values in the window, {before.infinite} in the reference"
        findings.append(f"{name}: {counts}; counted as missing")
    missing = before.missing_share, now.missing_share
    if abs(missing[1] - missing[0]) >= MISSING_CHANGE:
        findings.append(f"{name}: missing in {missing[0]:.1%} of the reference and in {missing[1]:.1%} of the window")
    if now.outside >= OUTSIDE * now.values:
        findings.append(f"{name}: {now.outside / now.values:.1%} of its values lie outside of the reference's range")
    numeric = isinstance(reference, NumericColumn)
    places = [
        place
        for place, constant in (
            # Two different values never share a profile's only filled bin; OTHER may hold many.
            ("reference", np.count_nonzero(before.cells) == 1 and (numeric or before.cells[-1] == 0)),
            ("window", now.low == now.high if numeric else _one_category(now)),
        )
        if constant
    ]
    if places:
        findings.append(f"{name}: constant in the {' and in the '.join(places)}")
    if not numeric and before.cells[-1] >= MOSTLY_OTHER * before.values:
        share = before.cells[-1] / before.values
        findings.append(f"{name}: {share:.0%} of the reference are rare categories; changes among them are not seen")
    return findings


def _one_category(now: Counted) -> bool:
    """Say whether all values are of one category, of the profile or not."""
    return int(np.count_nonzero(now.cells[:-1])) + len(now.others) == 1
