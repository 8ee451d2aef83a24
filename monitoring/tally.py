"""A window of features as counts in the cells of a reference profile, taken part by part in constant memory.

Tallies of parts add up to the tally of the whole, in whatever order and process they were counted. Beside the counts
lies a sample of the rows: those with the smallest random keys, so that samples add up too.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from monitoring.columns import CategoricalColumn, Counted, NumericColumn
from monitoring.features import is_numeric
from monitoring.profile import ReferenceProfile


@dataclass(frozen=True)
class ColumnTally:
    """One column of the profile: the counts of a window, and the rows of it that could not be counted."""

    counted: Counted
    absent: int = 0  # rows of parts that lack the column
    mistyped: int = 0  # rows of parts in which it has another type than in the profile

    def __add__(self, more: "ColumnTally") -> "ColumnTally":
        return ColumnTally(self.counted + more.counted, self.absent + more.absent, self.mistyped + more.mistyped)


@dataclass(frozen=True)
class Tally:
    """A window, or a part of it, counted against one profile."""

    rows: int
    columns: dict[str, ColumnTally]
    new: frozenset[str]  # columns that the profile does not have
    twice: frozenset[str]  # columns given more than once, of which only the first is counted
    sample: pd.DataFrame = field(repr=False)  # at most `sample_rows` rows of the profile's columns
    keys: npt.NDArray[np.float64] = field(repr=False)  # (len(sample),) random
    sample_rows: int = 0

    def __add__(self, more: "Tally") -> "Tally":
        keys = np.append(self.keys, more.keys)
        kept = np.sort(np.argsort(keys, kind="stable")[: self.sample_rows])
        parts = [part for part in (self.sample, more.sample) if len(part)] or [self.sample]
        return Tally(
            self.rows + more.rows,
            {name: column + more.columns[name] for name, column in self.columns.items()},
            self.new | more.new,
            self.twice | more.twice,
            pd.concat(parts, ignore_index=True).iloc[kept].reset_index(drop=True),
            keys[kept],
            self.sample_rows,
        )


def count(profile: ReferenceProfile, features: pd.DataFrame, *, sample_rows: int, seed: int) -> Tally:
    """Count a frame of features against a profile; each part of one window is given a seed of its own."""
    current = features.rename(columns=str)
    twice = frozenset(map(str, current.columns[current.columns.duplicated()]))
    current = current.loc[:, ~current.columns.duplicated()]
    columns = {name: _count_column(of, current.get(name), len(current)) for name, of in profile.columns.items()}
    keys = np.random.default_rng(seed).random(len(current))
    kept = np.sort(np.argpartition(keys, sample_rows)[:sample_rows]) if sample_rows < len(keys) else slice(None)
    fit = [name for name, column in columns.items() if name in current and not column.mistyped]
    sample = profile.rows_for_pictures(current.iloc[kept], fit).reset_index(drop=True)
    return Tally(
        len(current), columns, frozenset(set(current.columns) - set(columns)), twice, sample, keys[kept], sample_rows
    )


def _count_column(reference: NumericColumn | CategoricalColumn, series: pd.Series | None, rows: int) -> ColumnTally:
    nothing = Counted(np.zeros(len(reference.counted.cells), np.int64), missing=rows)
    if series is None:
        return ColumnTally(nothing, absent=rows)
    if isinstance(reference, NumericColumn) == is_numeric(series):
        return ColumnTally(reference.count(series))
    return ColumnTally(nothing, mistyped=0 if series.isna().all() else rows)  # a column without values has any type
