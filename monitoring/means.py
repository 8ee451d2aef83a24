"""Paired means: the studentised bootstrap of the challenger's gain (Efron 1979; Hall, Annals 16 (1988), 927-953).

Rows are drawn with replacement, and each resample's mean is divided by its own standard error. That keeps one-sided
levels to the order 1/n where gains are skewed, as those of likelihoods and overlaps are; percentiles keep them to
1/sqrt(n) only; BCa, of the same order on paper, missed rare losses more often in simulation (benchmarks/RESULTS.md).

Losses that are rare and large are the ones that a sample may not hold at all, and a bootstrap knows only its sample.
So two rows are added that were not seen, the largest gain and the largest loss that a score allows (as Agresti and Min,
Statistics in Medicine 24 (2005), 729-740, do with proportions); the difference shown is without them. And no lower
bound is above the one that a sample without such a loss allows: rows that lose `reach` with chance q are all missed
with chance (1 - q)^rows (rule of three; Hanley and Lippman-Hand, JAMA 249 (1983), 1743-1745). All this is worth what
`reach` is: it has to be what a score allows, known beforehand. With the largest gain seen in its place, as where a
metric is only reported, bounds hold for rows like those seen, and miss rare large losses far more often than alpha.
Upper bounds, on which no pass depends, are the bootstrap's alone.

Beyond 1,024 rows, random groups of rows are resampled instead of rows: a sum of independent rows is as good a row, and
the skewness of the mean, which is what a bootstrap corrects for, stays what it is. So time and memory are bounded.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from monitoring.comparison import Comparison

Floats = npt.NDArray[np.float64]

GROUPS = 1024
CELLS = 2**20  # counts in memory at once
TOLD = 10  # resamples beyond the statistic that make a p-value; for fewer Student's t is asked


@dataclass(frozen=True)
class Gains:
    """What the challenger gains on each row, shape (rows,), at most `reach` either way.

    `over` and `under` are by how much the mean may be too high and too low apart from chance.
    """

    values: Floats
    reach: float
    over: float = 0.0
    under: float = 0.0


def compare_means(
    gains: Mapping[str, Gains], bars: Mapping[str, float], alpha: float, resamples: int, seed: int
) -> dict[str, Comparison]:
    """Compare each metric's gains on the same rows, two or more, by one bootstrap of them.

    Bounds and p-values agree: `lower` is above the bar exactly where `p_value` is at most alpha.
    """
    if not gains:
        return {}
    rng = np.random.default_rng(seed)
    rows = len(next(iter(gains.values())).values)
    means = {metric: float(each.values.mean()) for metric, each in gains.items()}
    left = np.stack([_residuals(each, means[metric]) for metric, each in gains.items()], axis=1)  # (rows + 2, metrics)
    left = _grouped(left, rng)
    errors = np.sqrt((left**2).sum(axis=0)) / rows
    found = _statistics(left, resamples, rng)  # (resamples, metrics), sorted
    return {
        metric: _compared(each, means[metric], float(errors[at]), found[:, at], bars[metric], alpha)
        for at, (metric, each) in enumerate(gains.items())
    }


def _residuals(gains: Gains, mean: float) -> Floats:
    """What each row is above the mean, and the two rows that were not seen."""
    return np.append(gains.values - mean, (gains.reach, -gains.reach))


def _grouped(left: Floats, rng: np.random.Generator) -> Floats:
    """Sums over random groups of rows, whose sizes differ by one at most, when there are more than `GROUPS` rows."""
    if len(left) <= GROUPS:
        return left
    starts = np.linspace(0, len(left), GROUPS, endpoint=False).astype(np.int64)
    return np.asarray(np.add.reduceat(rng.permutation(left), starts), np.float64)


def _statistics(left: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """Sorted t statistics of the resamples, (resamples, metrics); the rows that they are drawn from sum to 0."""
    columns = np.concatenate([left, left**2], axis=1)
    sums = np.concatenate([counts @ columns for counts in _counts(len(left), resamples, rng)])
    total, squares = np.split(sums, 2, axis=1)
    variance = np.maximum(squares - total**2 / len(left), 0.0)
    certain = variance <= 1e-12 * (left**2).sum(axis=0)  # none of the rows that differ was drawn
    ratio = total / np.sqrt(np.where(certain, 1.0, variance))
    return np.sort(np.where(certain, np.where(np.abs(total) > 0, np.copysign(np.inf, total), 0.0), ratio), axis=0)


def _counts(rows: int, resamples: int, rng: np.random.Generator) -> Iterator[Floats]:
    """Yield how often each row is drawn, (some resamples, rows)."""
    most = max(CELLS // rows, 1)
    for start in range(0, resamples, most):
        here = min(most, resamples - start)
        drawn = rng.integers(rows, size=(here, rows), dtype=np.int32)
        drawn += np.arange(here, dtype=np.int32)[:, None] * rows
        yield np.bincount(drawn.ravel(), minlength=here * rows).reshape(here, rows).astype(np.float64)


def _compared(gains: Gains, gain: float, error: float, found: Floats, bar: float, alpha: float) -> Comparison:
    if not error:
        low, high = gain - gains.over, gain + gains.under  # a score that allows no difference
        return Comparison(gain, low, high, float(low <= bar), float(high >= 0), 0.0, gains.over)
    rank = max(int(alpha * (len(found) + 1)), 1)  # so many statistics may lie beyond
    lower, upper = gain - error * float(found[-rank]), gain - error * float(found[rank - 1])
    rows, freedom = len(gains.values), len(gains.values) - 1
    return Comparison(
        gain,
        max(min(lower, gain - gains.reach * -math.expm1(math.log(alpha) / rows)) - gains.over, -gains.reach),
        min(upper + gains.under, gains.reach),
        max(_p((gain - gains.over - bar) / error, found, freedom), _unseen(gain - gains.over - bar, gains.reach, rows)),
        _p(-(gain + gains.under) / error, -found[::-1], freedom),
        error,
        gains.over,
    )


def _unseen(distance: float, reach: float, rows: int) -> float:
    """The chance that no row shows losses of `reach` that are as frequent as it takes to lose `distance`."""
    return float((1 - min(max(distance / reach, 0.0), 1.0)) ** rows)


def _p(seen: float, found: Floats, freedom: int) -> float:
    """The share of sorted statistics that reach the one seen; where that is too few to say, Student's t at most."""
    beyond = len(found) - int(np.searchsorted(found, seen, side="left"))
    share = (beyond + 1) / (len(found) + 1)
    return share if beyond >= TOLD else min(share, float(stats.t.sf(seen, freedom)))
