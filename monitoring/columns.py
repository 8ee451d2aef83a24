"""A column counted into cells: the quantile bins of numbers, the categories of everything else.

Counts are all that drift is measured on; those of parts of a window add up to those of the whole.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from monitoring.features import floats, is_numeric, texts
from monitoring.statistics import Counts, merge_bins, merge_categories

BINS = 256
MIN_COUNT = 5  # rarer categories could not be compared (statistics.MIN_EXPECTED), and may tell on a person
OTHER = "OTHER"
MAX_ROWS = 2**53  # of a profile: sums of counts stay far from overflow, and are exact as floats
MAX_OTHERS = 1_000  # categories of a window that are not in the profile; the rarest beyond are only counted

RowCount = Annotated[int, Field(ge=0, le=MAX_ROWS)]


@dataclass(frozen=True)
class Counted:
    """How the values of a column, or of a part of it, fall into the cells of its profile; parts add up."""

    cells: Counts  # numeric: bins in order; categorical: the kept categories, then OTHER
    missing: int  # infinite ones included
    infinite: int = 0
    outside: int = 0  # finite values beyond the reference's smallest and largest
    low: float = math.inf  # smallest and largest finite value; crossed where there is none
    high: float = -math.inf
    others: Mapping[str, int] = field(default_factory=dict)  # what OTHER holds, as far as MAX_OTHERS goes

    def __add__(self, more: "Counted") -> "Counted":
        others = Counter(self.others)
        others.update(more.others)
        return Counted(
            cells=self.cells + more.cells,
            missing=self.missing + more.missing,
            infinite=self.infinite + more.infinite,
            outside=self.outside + more.outside,
            low=min(self.low, more.low),
            high=max(self.high, more.high),
            others=dict(others.most_common(MAX_OTHERS)),
        )

    @property
    def values(self) -> int:
        """Number of values that are there."""
        return int(self.cells.sum())

    @property
    def missing_share(self) -> float:
        """Missing values over all; 0 where there is nothing."""
        rows = self.values + self.missing
        return self.missing / rows if rows else 0.0


class _Column(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NumericColumn(_Column):
    """Quantile bins of a numeric column: bin i holds edges[i - 1] < value <= edges[i]."""

    kind: Literal["numeric"] = "numeric"
    edges: tuple[FiniteFloat, ...] = Field(max_length=BINS - 1)
    counts: tuple[RowCount, ...]
    missing: RowCount
    infinite: RowCount
    low: FiniteFloat | None = None  # smallest and largest finite value
    high: FiniteFloat | None = None

    @model_validator(mode="after")
    def _edges_and_counts_agree(self) -> Self:
        if len(self.counts) != len(self.edges) + 1 or any(a >= b for a, b in pairwise(self.edges)):
            raise ValueError(f"{len(self.edges)} edges must rise and have {len(self.edges) + 1} counts")
        return self

    @model_validator(mode="after")
    def _range_fits(self) -> Self:
        if self.infinite > self.missing:
            raise ValueError(f"{self.infinite} infinite values among {self.missing} missing ones")
        if self.low is None or self.high is None:
            if self.low is not self.high or self.edges or any(self.counts):
                raise ValueError("values or edges without their smallest and largest value (low, high)")
        elif self.low > self.high or not self.edges or not any(self.counts):
            raise ValueError(f"low {self.low!r} and high {self.high!r} must rise and have values and edges between")
        elif self.edges[0] < _just_below(np.float64(self.low)) or self.edges[-1] > self.high:
            raise ValueError(f"edges {self.edges[0]!r} to {self.edges[-1]!r} lie outside {self.low!r} to {self.high!r}")
        return self

    @classmethod
    def build(cls, series: pd.Series) -> Self:
        """Count a column into at most 256 bins between its own quantiles; a frequent value has its own."""
        values = floats(series)
        finite = values[np.isfinite(values)]
        edges = np.empty(0)
        if finite.size:
            # The inverted CDF; np.quantile finds the same, but overflows between the largest floats.
            places = -(-np.arange(1, BINS) * finite.size // BINS) - 1
            edges, repeats = np.unique(np.sort(finite)[places], return_counts=True)
            heavy = edges[repeats > 1]
            just_below = _just_below(heavy)
            edges = np.union1d(edges, just_below[np.isfinite(just_below)])
        counted = _count_numbers(series, edges, -math.inf, math.inf)
        return cls(
            edges=tuple(edges.tolist()),
            counts=tuple(counted.cells.tolist()),
            missing=counted.missing,
            infinite=counted.infinite,
            low=counted.low if finite.size else None,
            high=counted.high if finite.size else None,
        )

    @property
    def counted(self) -> Counted:
        """The reference's own counts."""
        low, high = (math.inf, -math.inf) if self.low is None or self.high is None else (self.low, self.high)
        return Counted(np.array(self.counts, np.int64), self.missing, self.infinite, low=low, high=high)

    def count(self, series: pd.Series) -> Counted:
        """Count another column of numbers into these bins."""
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return _count_numbers(series, np.array(self.edges), low, high)


class CategoricalColumn(_Column):
    """Counts of a column's most frequent categories, of all others, and of missing values."""

    kind: Literal["categorical"] = "categorical"
    counts: dict[str, RowCount]
    other: RowCount
    missing: RowCount
    set_aside: RowCount = 0  # rows that chose the categories and are not counted

    @classmethod
    def build(cls, series: pd.Series, max_categories: int, seed: int) -> Self:
        """Count a column's categories; those rarer than MIN_COUNT, or beyond `max_categories`, are OTHER.

        Where that matters, half of the rows choose the categories and the other half is counted: in the
        rows that chose them the kept ones are too frequent, and every window would seem to have more of OTHER
        (measured, 100 equal categories, 300 against 3,000 rows: 21 % of windows drifted, against 0 %).
        """
        values = _labels(series)
        kept = _frequent(values, max_categories)
        set_aside = 0
        if int((values.notna() & ~values.isin(kept)).sum()) > MIN_COUNT:
            set_aside = len(values) // 2
            shuffled = values.iloc[np.random.default_rng(seed).permutation(len(values))]
            kept, values = _frequent(shuffled.iloc[:set_aside], max_categories), shuffled.iloc[set_aside:]
        counts = values[values.isin(kept)].value_counts()
        present = int(values.notna().sum())
        return cls(
            counts={name: int(counts.get(name, 0)) for name in kept},
            other=present - int(counts.sum()),
            missing=len(values) - present,
            set_aside=set_aside,
        )

    @property
    def counted(self) -> Counted:
        """The reference's own counts."""
        return Counted(np.array([*self.counts.values(), self.other], np.int64), self.missing)

    def count(self, series: pd.Series) -> Counted:
        """Count another column into these categories, OTHER last."""
        counts = _value_counts(series)
        cells = [counts.pop(name, 0) for name in self.counts]
        other = counts.total()
        return Counted(
            np.array([*cells, other], np.int64),
            missing=len(series) - sum(cells) - other,
            others=dict(counts.most_common(MAX_OTHERS)),
        )

    def group(self, series: pd.Series) -> pd.Series:
        """Return the column with every category that is not kept called OTHER."""
        values = _labels(series)
        return values.where(values.isna() | values.isin(list(self.counts)), OTHER)

    def places(self, series: pd.Series) -> npt.NDArray[np.int64]:
        """Return in which cell each value lies: the kept categories, then OTHER, then missing ones, (rows,)."""
        kept = {name: place for place, name in enumerate(self.counts)}
        other, missing = len(kept), len(kept) + 1
        return np.array(
            [missing if label is None else kept.get(label, other) for label in _labels(series)], dtype=np.int64
        )


def build_column(series: pd.Series, max_categories: int, seed: int) -> NumericColumn | CategoricalColumn:
    """Count a reference column as what it is, numbers or categories."""
    if is_numeric(series):
        return NumericColumn.build(series)
    return CategoricalColumn.build(series, max_categories, seed)


def merged(
    column: NumericColumn | CategoricalColumn, before: Counted, now: Counted, bins: int
) -> tuple[Counts, Counts]:
    """Return the counts of both sides in the cells that their PSI is taken over."""
    if isinstance(column, NumericColumn):
        return merge_bins(before.cells, now.cells, bins)
    # A missing value is a category too.
    return merge_categories(np.append(before.cells, before.missing), np.append(now.cells, now.missing))


def _frequent(values: pd.Series, max_categories: int) -> list[str]:
    """Return the categories of at least MIN_COUNT rows, most frequent first, ties by name."""
    counts = ((str(name), int(count)) for name, count in values.value_counts().items() if count >= MIN_COUNT)
    return [name for name, _ in sorted(counts, key=lambda item: (-item[1], item[0]))[:max_categories]]


def _labels(series: pd.Series) -> pd.Series:
    """Return a column's categories as text that JSON and Parquet hold, missing ones as None."""
    return pd.Series([None if text is None else _valid(text) for text in texts(series)], series.index, dtype=object)


def _valid(text: str) -> str:
    """Return a text with its lone surrogates written out."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _value_counts(series: pd.Series) -> Counter[str]:
    """Count values by their text, missing ones left out."""
    if isinstance(series.dtype, pd.CategoricalDtype) or pd.api.types.infer_dtype(series, skipna=True) == "string":
        found = series.value_counts()
        counts: Counter[str] = Counter()
        for value, count in zip(found.index, found.to_numpy(), strict=True):
            counts[_valid(str(value))] += int(count)
        return +counts
    return Counter(value for value in _labels(series) if value is not None)


def _just_below(values: npt.NDArray[np.float64] | np.float64) -> npt.NDArray[np.float64]:
    """Return the next smaller numbers, at 0 no subnormal ones; below the smallest float lies -inf."""
    with np.errstate(over="ignore"):
        return np.asarray(np.minimum(np.nextafter(values, -np.inf), values - np.finfo(float).tiny))


def _count_numbers(series: pd.Series, edges: npt.NDArray[np.float64], low: float, high: float) -> Counted:
    values = floats(series)
    finite = np.sort(values[np.isfinite(values)])  # sorted once, a few hundred edges are looked up in it at no cost
    upto = np.searchsorted(finite, edges, side="right")
    inside = np.searchsorted(finite, high, side="right") - np.searchsorted(finite, low, side="left")
    return Counted(
        np.diff(upto, prepend=0, append=finite.size).astype(np.int64),
        missing=len(series) - finite.size,
        infinite=int(np.isinf(values).sum()),
        outside=int(finite.size - inside),
        low=float(finite[0]) if finite.size else math.inf,
        high=float(finite[-1]) if finite.size else -math.inf,
    )
