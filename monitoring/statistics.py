"""PSI with its lower confidence bound, KS distance and Holm's correction, all from counts.

PSI sums (p - q) ln(p / q) over the B cells of two histograms with n and m values. With s = 1/n + 1/m it is
about s chi2(B - 1) without drift (Yurdakul 2018), and about s ncx2(B - 1, PSI / s) with it. So a PSI of 0.1
is nothing in a small window and a lot in a large one; the lower bound says what is certain.

Both need filled cells. `merge_bins` and `merge_categories` see to it that, without drift, each is expected to
hold MIN_EXPECTED values of either side (Cochran's rule for chi-square tests), and half a value is added to
each cell (Jeffreys' prior) so that an empty one has a logarithm.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import chdtrc, chndtr, kolmogorov

Counts = npt.NDArray[np.int64]

MIN_EXPECTED = 5.0


def psi(reference: Counts, current: Counts) -> float:
    """Return the population stability index of two histograms over the same B cells, at least 0."""
    p = (reference + 0.5) / (reference.sum() + 0.5 * len(reference))
    q = (current + 0.5) / (current.sum() + 0.5 * len(current))
    return float(np.sum((p - q) * np.log(p / q)))


def psi_p_value(value: float, n: int, m: int, cells: int) -> float:
    """Return how probable a PSI this large is without drift, for n and m values on `cells` cells."""
    if cells < 2:
        return 1.0
    return float(chdtrc(cells - 1, value / (1 / n + 1 / m)))


def psi_lower_bound(value: float, n: int, m: int, cells: int, confidence: float = 0.95) -> float:
    """Return the PSI that the true one exceeds with this confidence: the noncentral chi-square's lower bound.

    Zero where the value is within the noise of n and m values on `cells` cells.
    """
    scale = 1 / n + 1 / m
    x = value / scale
    if cells < 2 or chndtr(x, cells - 1, 1e-12) < confidence:
        return 0.0
    above = 4 * x + 100  # a noncentrality that puts nearly all of the mass above x
    return float(scale * brentq(lambda noncentrality: chndtr(x, cells - 1, noncentrality) - confidence, 1e-12, above))


def ks_distance(reference: Counts, current: Counts) -> float:
    """Return the largest gap between the two cumulative distributions at the edges of their common bins."""
    gaps = np.cumsum(reference) / reference.sum() - np.cumsum(current) / current.sum()
    return float(np.abs(gaps).max())


def ks_p_value(distance: float, n: int, m: int) -> float:
    """Return the two-sample p-value of a distance, by Kolmogorov's limit; ties and bins make it larger."""
    return float(kolmogorov(np.sqrt(n * m / (n + m)) * distance))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return adjusted p-values: testing each at alpha keeps the family's error at alpha (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, float)[order] * factors))
    return [float(p) for p in adjusted]


def merge_bins(reference: Counts, current: Counts, groups: int) -> tuple[Counts, Counts]:
    """Merge ordered bins into at most about `groups` of equal reference count; returns the counts of both.

    A bin with a group's share of the reference to itself, a heavy value, is a group to itself, so that what
    lies beside it is not lost in it.
    """
    total = int(reference.sum())
    last = np.searchsorted(np.cumsum(reference), total * np.arange(1, groups) / groups)  # bins that close a group
    heavy = np.flatnonzero(reference >= total / groups)
    last = np.unique(np.concatenate([last, heavy, heavy - 1]))
    starts = np.concatenate([[0], last[(last >= 0) & (last < len(reference) - 1)] + 1])
    return _merge_neighbours(np.add.reduceat(reference, starts), np.add.reduceat(current, starts))


def merge_categories(reference: Counts, current: Counts) -> tuple[Counts, Counts]:
    """Merge all cells that are too rare to be compared into one; returns the counts of both."""
    expected = _expected(reference, current)
    order = np.argsort(expected, kind="stable")
    rare = int(np.sum(expected < MIN_EXPECTED))
    if rare and expected[order[:rare]].sum() < MIN_EXPECTED:
        rare += 1  # all the rare ones together are still too few
    if rare < 2:
        return reference, current
    kept, merged = order[rare:], order[:rare]
    return (
        np.append(reference[kept], reference[merged].sum()),
        np.append(current[kept], current[merged].sum()),
    )


def _expected(reference: Counts, current: Counts) -> npt.NDArray[np.float64]:
    """Values expected in each cell of the smaller side if both came from the same distribution."""
    pooled = reference + current
    return np.asarray(pooled / pooled.sum() * min(reference.sum(), current.sum()), dtype=np.float64)


def _merge_neighbours(reference: Counts, current: Counts) -> tuple[Counts, Counts]:
    starts, held = [0], 0.0
    for cell, expected in enumerate(_expected(reference, current)):
        if held >= MIN_EXPECTED:
            starts.append(cell)
            held = 0.0
        held += expected
    if held < MIN_EXPECTED and len(starts) > 1:
        starts.pop()
    return np.add.reduceat(reference, starts), np.add.reduceat(current, starts)
