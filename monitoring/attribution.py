"""What carries a drift: the bins or categories of a column that make most of its PSI, and the rows that lie in them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, ConfigDict

from monitoring import statistics
from monitoring.columns import MIN_COUNT, OTHER, CategoricalColumn, Counted, NumericColumn
from monitoring.features import floats
from monitoring.naming import shortened, unique
from monitoring.statistics import Counts

SHOWN = 3  # cells named a column
NAMED = 3  # rare categories, or new ones, that are named; of more only the number is said
MISSING = "missing"


class Moved(BaseModel):
    """A bin or category, its share of the values before and now, and what it adds to the column's PSI."""

    model_config = ConfigDict(frozen=True)

    cell: str
    before: float
    now: float
    psi: float

    def __str__(self) -> str:
        return f"{self.cell} {self.before:.1%} -> {self.now:.1%}"


def moved(reference: NumericColumn | CategoricalColumn, before: Counted, now: Counted, bins: int) -> list[Moved]:
    """Return the cells that add most to the PSI, the largest first; no two have the same name."""
    if isinstance(reference, NumericColumn):
        starts = statistics.bin_starts(before.cells, now.cells, bins)
        names = _bin_names(_edges(reference, starts))
        p, q = (np.add.reduceat(side.cells, starts) for side in (before, now))
    else:
        cells = _categories(reference, before, now)
        names = [*cells]
        p, q = (np.array([_counts(side)[places].sum() for places in cells.values()]) for side in (before, now))
    terms = statistics.psi_terms(p, q)
    shares = [counts / max(1, counts.sum()) for counts in (p, q)]
    return [
        Moved(cell=names[at], before=float(shares[0][at]), now=float(shares[1][at]), psi=float(terms[at]))
        for at in np.argsort(-terms, kind="stable")[:SHOWN]
        if terms[at] > 0
    ]


def lie_in(
    cells: Sequence[Moved],
    series: pd.Series,
    reference: NumericColumn | CategoricalColumn,
    before: Counted,
    now: Counted,
    bins: int,
) -> npt.NDArray[np.bool_]:
    """Return which values of a window's column lie in those of its `moved` cells that grew, (rows,)."""
    grown = {cell.cell for cell in cells if cell.now > cell.before}
    if isinstance(reference, NumericColumn):
        values = floats(series)
        edges = _edges(reference, statistics.bin_starts(before.cells, now.cells, bins))
        among = np.array([name in grown for name in _bin_names(edges)])
        return np.asarray(np.isfinite(values) & among[np.searchsorted(edges, values, side="left")])
    among = np.zeros(len(reference.counts) + 2, bool)
    for name, places in _categories(reference, before, now).items():
        among[places] = name in grown
    return np.asarray(among[reference.places(series)])


def _edges(reference: NumericColumn, starts: Counts) -> list[float]:
    return [reference.edges[start - 1] for start in starts[1:]]  # a bin ends at its edge, the edge included


def _bin_names(edges: Sequence[float]) -> list[str]:
    """Name bins by their edges, with as many digits as it takes to tell them apart."""
    digits = next(digits for digits in (4, 8, 17) if len({f"{edge:.{digits}g}" for edge in edges}) == len(edges))
    lows = ["", *(f"above {edge:.{digits}g}" for edge in edges)]
    highs = [*(f"up to {edge:.{digits}g}" for edge in edges), ""]
    return [
        " ".join(part for part in (low, high) if part) or "all values" for low, high in zip(lows, highs, strict=True)
    ]


def _counts(side: Counted) -> Counts:
    """Return how many values lie in each cell of a categorical column, missing ones last."""
    return np.append(side.cells, side.missing)


def _categories(reference: CategoricalColumn, before: Counted, now: Counted) -> dict[str, Counts]:
    """Return the cells that the PSI is taken over by name, and of which places each is made up: several are a pool."""
    p, q = _counts(before), _counts(now)
    rare = statistics.rare_cells(p, q)
    names = [*map(_category, reference.counts), _other(before, now), MISSING]
    cells = [(names[at], np.array([at])) for at in np.setdiff1d(np.arange(len(names)), rare)]
    if len(rare):
        # OTHER and missing values are mostly empty, and so in a pool with a category that need not be rare.
        filled = [names[at] for at in np.sort(rare) if p[at] or q[at]]
        cells.append((", ".join(filled) if len(filled) <= NAMED else _pool(len(filled), rare, before, now), rare))
    return dict(zip(unique([name for name, _ in cells]), (places for _, places in cells), strict=True))


def _category(name: str) -> str:
    """Return a category as it is shown; in quotes where it could be taken for something else."""
    return shortened(repr(name) if name in (OTHER, MISSING) or not name.strip() else name)


def _other(before: Counted, now: Counted) -> str:
    new = _new(before, now)
    return f"{OTHER} ({new})" if new else OTHER


def _pool(filled: int, rare: Counts, before: Counted, now: Counted) -> str:
    new = _new(before, now) if len(before.cells) - 1 in rare else ""
    return f"{filled} rare categories{f' (new: {new})' if new else ''}"


def _new(before: Counted, now: Counted) -> str:
    """Name the most frequent categories of OTHER where it grew; rare ones may tell on a person."""
    p, q = _counts(before), _counts(now)
    if before.cells[-1] * q.sum() >= now.cells[-1] * p.sum():
        return ""
    frequent = [name for name, times in now.others.items() if times >= MIN_COUNT]
    frequent.sort(key=lambda name: (-now.others[name], name))
    more = ["\u2026"] if len(frequent) > NAMED else []
    return shortened(", ".join([*map(_category, frequent[:NAMED]), *more]))
