"""What carries a drift: the bins or categories of a column that make most of its PSI, and the rows that lie in them."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, ConfigDict

from monitoring import statistics
from monitoring.columns import OTHER, CategoricalColumn, Counted, NumericColumn
from monitoring.features import floats
from monitoring.statistics import Counts

SHOWN = 3  # cells named a column
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
    """Return the cells that add most to the PSI, the largest first."""
    cells = (
        _bins(reference, before, now, bins)
        if isinstance(reference, NumericColumn)
        else _categories(reference, before, now)
    )
    names, p, q = zip(*cells, strict=True)
    terms = statistics.psi_terms(np.array(p), np.array(q))
    shares = [np.array(counts) / max(1, sum(counts)) for counts in (p, q)]
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
    names, rare = _named_categories(reference, before, now)
    among_rare = _rare_name(rare) in grown
    chosen = {name for at, name in enumerate(names) if (among_rare if at in rare else name in grown)}
    return reference.group(series).fillna(MISSING).isin(list(chosen)).to_numpy(dtype=bool)


def _bins(reference: NumericColumn, before: Counted, now: Counted, bins: int) -> Iterator[tuple[str, int, int]]:
    starts = statistics.bin_starts(before.cells, now.cells, bins)
    p, q = (np.add.reduceat(side.cells, starts) for side in (before, now))
    for at, name in enumerate(_bin_names(_edges(reference, starts))):
        yield name, int(p[at]), int(q[at])


def _edges(reference: NumericColumn, starts: Counts) -> list[float]:
    return [reference.edges[start - 1] for start in starts[1:]]  # a bin ends at its edge, the edge included


def _bin_names(edges: Sequence[float]) -> list[str]:
    lows = ["", *(f"above {edge:.4g}" for edge in edges)]
    highs = [*(f"up to {edge:.4g}" for edge in edges), ""]
    return [
        " ".join(part for part in (low, high) if part) or "all values" for low, high in zip(lows, highs, strict=True)
    ]


def _categories(reference: CategoricalColumn, before: Counted, now: Counted) -> Iterator[tuple[str, int, int]]:
    p, q = (np.append(side.cells, side.missing) for side in (before, now))
    names, rare = _named_categories(reference, before, now)
    for at in np.setdiff1d(np.arange(len(names)), rare):
        yield names[at], int(p[at]), int(q[at])
    if len(rare):
        yield _rare_name(rare), int(p[rare].sum()), int(q[rare].sum())


def _named_categories(reference: CategoricalColumn, before: Counted, now: Counted) -> tuple[list[str], Counts]:
    """Return all cells by name, and which of them are compared as one."""
    p, q = (np.append(side.cells, side.missing) for side in (before, now))
    return [*reference.counts, OTHER, MISSING], statistics.rare_cells(p, q)


def _rare_name(rare: Counts) -> str:
    return f"{len(rare)} rare categories"
