"""Paired proportions: the exact unconditional test that the challenger gains more than a bar, and its bounds.

Of n rows some are gained (wrong before, right now), some lost, and the others say nothing. With p and q the chances of
the two, p - q is what is asked about and q is a nuisance. Tables are ordered by Tango's score statistic, and the
p-value of `p - q <= delta` is the largest chance, over q, of a table at least as extreme as the one seen: no
approximation stands between the level and the truth, however few rows changed. The region is convex (one more gained
row or one lost less never leaves it), so that the largest chance lies on p - q = delta (Röhmel and Mansmann,
Biometrical Journal 41 (1999), 149-170). q is looked for only in its own 1 - 1e-6 confidence interval, and 1e-6 is added
(Berger and Boos, JASA 89 (1994), 1012-1016): on a grid, and on a finer one around what is largest there, without which
a level of 0.05 was exceeded by up to 0.001. Bounds are where the same test turns.
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import special

from monitoring.comparison import Comparison

Floats = npt.NDArray[np.float64]

GAMMA = 1e-6  # chance that the nuisance is not where it is looked for, added to p
NUISANCES = 32  # values of q that are tried at a time: they are a fraction of its standard error apart
REACH = 6.0  # standard deviations of the number of lost rows that are summed over; beyond lies less than 1e-8
EXACT_UP_TO = 1000  # rows gained and lost; from there on Tango's statistic is normal to within 0.2 points of level
STEPS = 12  # of the search for a bound, at most
PRECISION = 2e-5  # of a bound


@lru_cache(maxsize=100_000)
def compare_proportions(gained: int, lost: int, rows: int, bar: float, alpha: float) -> Comparison:
    """Compare proportions of `rows` pairs of which `gained` went from 0 to 1 and `lost` from 1 to 0.

    Bounds and p-values agree: `lower` is above `bar` exactly where `p_value` is at most alpha.
    """
    p_value, p_worse = p_not_above(gained, lost, rows, bar), p_not_above(lost, gained, rows, 0.0)
    lower = _lower(gained, lost, rows, alpha, [(bar, p_value)])
    known = [(0.0, p_worse)]
    if bar:
        known.append((-bar, p_not_above(lost, gained, rows, -bar)))
    upper = -_lower(lost, gained, rows, alpha, known)
    error = math.sqrt(max(gained + lost + 1.0 - (gained - lost) ** 2 / rows, 1.0)) / rows  # at least one row may change
    return Comparison((gained - lost) / rows, lower, upper, p_value, p_worse, error)


def p_not_above(gained: int, lost: int, rows: int, delta: float) -> float:
    """Return the p-value of "the challenger gains delta or less"."""
    if delta <= -1:
        return 0.0
    if delta >= 1:
        return 1.0
    seen = float(score(np.array([gained]), np.array([lost]), rows, delta)[0])
    if gained + lost > EXACT_UP_TO:
        return float(special.ndtr(-seen))
    low, high = share_between(lost, rows, GAMMA / 2)
    low, high = max(low, -delta), min(high, (1 - delta) / 2)
    if low > high:  # no such chance of a lost row goes with delta: all that do gain more, or all gain less
        return GAMMA if gained - lost > rows * delta else 1.0
    roots = np.linspace(math.sqrt(low), math.sqrt(high), NUISANCES)
    largest = 0.0
    for _ in range(2):  # the second time around the largest of the first
        chances = _chances(seen, roots**2, rows, delta)
        largest, at = max(largest, float(chances.max())), int(chances.argmax())
        roots = np.linspace(roots[max(at - 1, 0)], roots[min(at + 1, NUISANCES - 1)], NUISANCES)
    return min(1.0, largest + GAMMA)


@lru_cache(maxsize=1000)
def share_between(count: int, rows: int, alpha: float) -> tuple[float, float]:
    """Return bounds of a share, at alpha each (Clopper and Pearson, Biometrika 26 (1934), 404-413)."""
    low = float(special.betaincinv(count, rows - count + 1, alpha)) if count else 0.0
    high = float(special.betaincinv(count + 1, rows - count, 1 - alpha)) if count < rows else 1.0
    return low, high


def score(gained: npt.NDArray[np.int64], lost: npt.NDArray[np.int64], rows: int, delta: float | Floats) -> Floats:
    """Return Tango's statistic of `difference = delta`, about standard normal if that is so; it falls as delta grows.

    Equivalence test and confidence interval for the difference in proportions for the paired-sample design, Statistics
    in Medicine 17 (1998), 891-908.
    """
    # The likeliest share of lost rows under that hypothesis solves a q^2 + b q + c = 0.
    a = 2 * rows
    b = (2 * rows - gained + lost) * delta - gained - lost
    c = -lost * delta * (1 - delta)
    q = (np.sqrt(np.maximum(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = np.maximum(rows * (2 * q + delta * (1 - delta)), 0.0)
    value = gained - lost - rows * delta
    uncertain = variance > 1e-12
    certain = np.where(np.abs(value) > 1e-9, np.copysign(np.inf, value), 0.0)
    return np.where(uncertain, value / np.sqrt(np.where(uncertain, variance, 1.0)), certain)


def _chances(seen: float, nuisances: Floats, rows: int, delta: float) -> Floats:
    """The chance of a table whose score is at least the one seen, for each share of lost rows on p - q = delta."""
    spread = REACH * np.sqrt(rows * nuisances * (1 - nuisances)) + 8
    first = np.clip(np.floor(rows * nuisances - spread), 0, rows).astype(np.int64)  # (nuisances,)
    last = np.clip(np.ceil(rows * nuisances + spread), 0, rows).astype(np.int64)
    lost = first[:, None] + np.arange((last - first).max() + 1)  # (nuisances, lost)
    here = lost <= last[:, None]
    lost = np.minimum(lost, rows)
    every = np.arange(first[0], last[-1] + 1)
    at = np.minimum(lost, last[-1]) - first[0]
    least = _least_gained(seen, every, rows, delta)[at]
    q = nuisances[:, None]
    rest = rows - lost
    ways = special.gammaln(rows + 1) - special.gammaln(every + 1) - special.gammaln(rows - every + 1)
    log_chance = ways[at] + special.xlogy(lost, q) + special.xlog1py(rest, -q)
    share = np.clip((q + delta) / np.maximum(1 - q, 1e-300), 0.0, 1.0)  # gained, of the rows that are not lost
    beyond = special.betainc(np.maximum(least, 1), np.maximum(rest - least, 0) + 1.0, share)
    beyond = np.where(least <= 0, 1.0, np.where(least > rest, 0.0, beyond))
    return np.asarray((np.exp(log_chance) * beyond * here).sum(axis=1), np.float64)


def _least_gained(seen: float, lost: npt.NDArray[np.int64], rows: int, delta: float) -> npt.NDArray[np.int64]:
    """The fewest gained rows, for each number of lost ones, that are as extreme; rows + 1: none are."""
    low, high = np.zeros_like(lost), rows - lost + 1
    while (low < high).any():
        middle = (low + high) // 2
        enough = score(middle, lost, rows, delta) >= seen - 1e-9
        low, high = np.where(enough | (low >= high), low, middle + 1), np.where(enough, middle, high)
    high = np.where(high > rows - lost, rows + 1, high)
    return np.asarray(np.minimum.accumulate(high[::-1])[::-1])  # convex, whatever rounding says


def _lower(gained: int, lost: int, rows: int, alpha: float, known: list[tuple[float, float]]) -> float:
    """The largest delta that is refused at alpha; `known` are some with their p-values, and it keeps to them."""
    low = max([-1.0, *(delta for delta, p in known if p <= alpha)])
    high = min([1.0, *(delta for delta, p in known if p > alpha and delta > low)])
    z = float(special.ndtri(1 - alpha))
    tango = _tango(gained, lost, rows, z, low, high)
    if gained + lost > EXACT_UP_TO:
        return tango
    width = max(((gained - lost) / rows - tango) / z, 1e-3 / math.sqrt(rows))  # a standard error
    at = tango - 0.05 * width
    for _ in range(STEPS):
        if high - low < PRECISION or not low < at < high:
            at = (low + high) / 2
            if high - low < PRECISION:
                break
        p = p_not_above(gained, lost, rows, at)
        low, high = (at, high) if p <= alpha else (low, at)
        off = float(special.ndtri(min(max(p, 1e-9), 1 - 1e-9))) + z  # about (at - bound) / width
        if abs(off) * width < PRECISION and p <= alpha:
            break
        at -= (off + 0.5 * PRECISION / width) * width
    return low


def _tango(gained: int, lost: int, rows: int, z: float, low: float, high: float) -> float:
    """The largest delta between the two whose score is above z, which it is for all below."""
    for _ in range(5):  # to 2e-9
        points = np.linspace(low, high, 65)
        refused = int((score(np.array([gained]), np.array([lost]), rows, points) > z).cumprod().sum())
        low, high = float(points[max(refused - 1, 0)]), float(points[min(refused, 64)])
    return low
