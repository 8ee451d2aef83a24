"""What carries a drift: the bins or categories of a column that make most of its PSI."""

from collections.abc import Iterator

import numpy as np
from pydantic import BaseModel, ConfigDict

from monitoring import statistics
from monitoring.columns import OTHER, CategoricalColumn, Counted, NumericColumn
from monitoring.statistics import Counts

SHOWN = 3  # cells named a column


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


def _bins(reference: NumericColumn, before: Counted, now: Counted, bins: int) -> Iterator[tuple[str, int, int]]:
    starts = statistics.bin_starts(before.cells, now.cells, bins)
    p, q = (np.add.reduceat(side.cells, starts) for side in (before, now))
    edges = [reference.edges[start - 1] for start in starts[1:]]  # a bin ends at its edge, the edge included
    for at in range(len(starts)):
        low = "" if at == 0 else f"above {edges[at - 1]:.4g}"
        high = "" if at == len(edges) else f"up to {edges[at]:.4g}"
        yield " ".join(part for part in (low, high) if part) or "all values", int(p[at]), int(q[at])


def _categories(reference: CategoricalColumn, before: Counted, now: Counted) -> Iterator[tuple[str, int, int]]:
    p, q = (np.append(side.cells, side.missing) for side in (before, now))
    names = np.array([*reference.counts, OTHER, "missing"], object)
    rare = statistics.rare_cells(p, q)
    for at in np.setdiff1d(np.arange(len(names)), rare):
        yield str(names[at]), int(p[at]), int(q[at])
    if len(rare):
        yield f"{len(rare)} rare categories", int(_sum(p, rare)), int(_sum(q, rare))


def _sum(counts: Counts, at: Counts) -> int:
    return int(counts[at].sum())
