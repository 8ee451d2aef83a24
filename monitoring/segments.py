"""Which segments of the traffic carry a drift: each value of the log's meta_ columns, reference against window.

Both sides are samples of feature rows. A segment's own PSI is taken in each drifted column, in the profile's bins; its
lower bound says whether the drift is there, or whether the segment is only too small to tell.
"""

from collections.abc import Iterator, Sequence

import pandas as pd
from pydantic import BaseModel, ConfigDict

from monitoring import statistics
from monitoring.columns import OTHER, merged
from monitoring.features import texts
from monitoring.profile import ReferenceProfile
from monitoring.settings import DriftSettings

PREFIX = "meta_"
MIN_ROWS = 50  # of either side
MAX_VALUES = 50  # a column with more values makes no segments
SHOWN = 10


class Segment(BaseModel):
    """The rows with one value of one meta_ column, and the column of them that has drifted most surely."""

    model_config = ConfigDict(frozen=True)

    column: str
    value: str
    before: float  # its share of the rows
    now: float
    rows: int  # of the window's sample
    drifted_column: str
    psi: float
    psi_lower: float  # lower 95 % bound

    def __str__(self) -> str:
        return (
            f"{self.column} = {self.value} ({self.now:.0%} of the rows): {self.drifted_column} PSI {self.psi:.3f}, "
            f"at least {self.psi_lower:.3f}"
        )


def carrying(
    profile: ReferenceProfile, sample: pd.DataFrame, drifted: Sequence[str], settings: DriftSettings
) -> list[Segment]:
    """Return the segments in which a drifted column's lower bound reaches `psi_bound`, the surest first."""
    found = []
    for name in profile.columns:
        if name.startswith(PREFIX) and name in sample and name in profile.sample:
            others = [column for column in drifted if column != name]
            found += list(_of_column(name, others, profile, sample, settings))
    found = [segment for segment in found if segment.psi_lower >= settings.psi_bound]
    return sorted(found, key=lambda segment: (-segment.psi_lower, segment.column, segment.value))[:SHOWN]


def _of_column(
    name: str, drifted: Sequence[str], profile: ReferenceProfile, sample: pd.DataFrame, settings: DriftSettings
) -> Iterator[Segment]:
    then, now = texts(profile.sample[name]), texts(sample[name])
    shares = then.value_counts()
    if len(shares) > MAX_VALUES:
        return
    for value in shares.index[(shares >= MIN_ROWS) & (shares.index != OTHER)]:
        before, current = profile.sample[(then == value).to_numpy()], sample[(now == value).to_numpy()]
        measured = [
            (*_psi(column, profile, before, current, settings.bins), column)
            for column in drifted
            if column in sample and len(current) >= MIN_ROWS
        ]
        if measured:
            bound, psi, column = max(measured)
            yield Segment(
                column=name,
                value=str(value),
                before=len(before) / len(then),
                now=len(current) / len(now),
                rows=len(current),
                drifted_column=column,
                psi=psi,
                psi_lower=bound,
            )


def _psi(
    name: str, profile: ReferenceProfile, before: pd.DataFrame, now: pd.DataFrame, bins: int
) -> tuple[float, float]:
    """Return (lower bound, PSI) of one column between two sets of rows."""
    column = profile.columns[name]
    p, q = merged(column, column.count(before[name]), column.count(now[name]), bins)
    n, m = int(p.sum()), int(q.sum())
    if not (n and m):
        return 0.0, 0.0
    value = statistics.psi(p, q)
    return statistics.psi_lower_bound(value, n, m, len(p)), value
