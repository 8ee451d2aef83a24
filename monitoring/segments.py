"""Which segments of the traffic carry a drift: each value of the log's meta_ columns, reference against window.

Both sides are samples of feature rows. A segment's own PSI is taken in each drifted column, in the profile's bins; its
lower bound says whether the drift is there, or whether the segment is only too small to tell. Segments times columns
are many tests, and among many some bounds are large by chance: so the p-values are corrected over all of them (Holm).
These are the chi-square test's on the PSI's cells: so many tests need a p below 1e-4, and the PSI's own is too often
that small in segments of 100 rows (without drift below 2.5e-5 in 7 times as many, at 1,000 and 75 values on 8 cells).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, ConfigDict

from monitoring import statistics
from monitoring.columns import OTHER, merged
from monitoring.features import texts
from monitoring.naming import shortened
from monitoring.profile import ReferenceProfile
from monitoring.settings import DriftSettings

PREFIX = "meta_"
MIN_ROWS = 50  # of either side
MAX_VALUES = 50  # a column with more values makes no segments
SHOWN = 10
MISSING = "(missing)"


class Segment(BaseModel):
    """The rows with one value of one meta_ column, and the column of them that has drifted most surely."""

    model_config = ConfigDict(frozen=True)

    column: str
    value: str | None  # None: the rows that have none
    before: float  # its share of the rows
    now: float
    rows: int  # of the window's sample
    drifted_column: str
    psi: float
    psi_lower: float  # lower 95 % bound

    def __str__(self) -> str:
        value = MISSING if self.value is None else shortened(self.value)
        return (
            f"{self.column} = {value} ({self.now:.0%} of the rows): {self.drifted_column} PSI {self.psi:.3f}, "
            f"at least {self.psi_lower:.3f}"
        )


def carrying(
    profile: ReferenceProfile, sample: pd.DataFrame, drifted: Sequence[str], settings: DriftSettings
) -> list[Segment]:
    """Return the segments in which a drifted column has drifted, the surest first.

    Its lower bound reaches `psi_bound`, and its p, corrected over all segments and columns, is below `alpha`.
    """
    tested: list[tuple[Segment, float]] = []
    for name in profile.columns:
        if name.startswith(PREFIX) and name in sample and name in profile.sample:
            others = [column for column in drifted if column != name and column in sample]
            tested += _of_column(name, others, profile, sample, settings.bins)
    adjusted = statistics.holm([p for _, p in tested])
    sure = [
        segment
        for (segment, _), p in zip(tested, adjusted, strict=True)
        if p < settings.alpha and segment.psi_lower >= settings.psi_bound
    ]
    sure.sort(key=lambda segment: (-segment.psi_lower, segment.column, segment.value or "", segment.drifted_column))
    surest: dict[tuple[str, str | None], Segment] = {}
    for segment in sure:
        surest.setdefault((segment.column, segment.value), segment)
    return list(surest.values())[:SHOWN]


def rows_of(values: pd.Series, value: str | None) -> npt.NDArray[np.bool_]:
    """Return which rows of a meta_ column are a segment, (rows,); None is the segment of those without a value."""
    return values.isna().to_numpy() if value is None else (texts(values) == value).to_numpy(dtype=bool)


def _of_column(
    name: str, drifted: Sequence[str], profile: ReferenceProfile, sample: pd.DataFrame, bins: int
) -> Iterator[tuple[Segment, float]]:
    """Yield each segment of a meta_ column with each drifted column, and the p of its change."""
    then, now = profile.sample[name], sample[name]
    for value in _values(then):
        before, current = profile.sample[rows_of(then, value)], sample[rows_of(now, value)]
        if min(len(before), len(current)) < MIN_ROWS:
            continue
        for column in drifted:
            psi, bound, p = _psi(column, profile, before, current, bins)
            segment = Segment(
                column=name,
                value=value,
                before=len(before) / len(then),
                now=len(current) / len(now),
                rows=len(current),
                drifted_column=column,
                psi=psi,
                psi_lower=bound,
            )
            yield segment, p


def _values(column: pd.Series) -> list[str | None]:
    """Return the values that make segments, and None for the rows without one; none where they are too many."""
    values = [str(value) for value in texts(column).dropna().unique()]
    if len(values) > MAX_VALUES:
        return []
    # OTHER holds other values now than it did then, and so is no segment; a value that is called OTHER goes with it,
    # since the samples do not tell the two apart.
    return [*(value for value in values if value != OTHER), None]


def _psi(
    name: str, profile: ReferenceProfile, before: pd.DataFrame, now: pd.DataFrame, bins: int
) -> tuple[float, float, float]:
    """Return PSI, its lower bound and the p of the change of one column between two sets of rows."""
    column = profile.columns[name]
    p, q = merged(column, column.count(before[name]), column.count(now[name]), bins)
    n, m = int(p.sum()), int(q.sum())
    if not (n and m):
        return 0.0, 0.0, 1.0
    value = statistics.psi(p, q)
    return value, statistics.psi_lower_bound(value, n, m, len(p)), statistics.chi_square_p(p, q)
