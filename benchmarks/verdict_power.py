"""python -m benchmarks.verdict_power [--rows N ...] [--slices N] [--runs N]

How often a verdict is right. For paired proportions worked out exactly, as sums over all tables: how often a slice, and
how often ten, pass when the challenger is as good as the champion, and when it is worse by the margin. For means by
simulation with fixed seeds: how often each way to bound a mean misses the truth on either side, at 5 %. Prints a
Markdown section for RESULTS.md.
"""

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from benchmarks.machine import machine
from monitoring.judging_settings import LIKELIHOOD_BOUND, JudgingSettings
from monitoring.means import Gains, compare_means
from monitoring.proportions import p_not_above, score

Floats = npt.NDArray[np.float64]

MARGIN, ALPHA = JudgingSettings().margin, JudgingSettings().alpha
CHANGED = (0.01, 0.02, 0.05, 0.10, 0.20)  # share of rows on which the models differ
BOUND = LIKELIHOOD_BOUND
# The mean of a lognormal variable of which nothing counts beyond the bound.
BOUNDED = float(np.exp(0.5) * special.ndtr(np.log(BOUND) - 1) + BOUND * special.ndtr(-np.log(BOUND)))
WAYS = ("Student's t", "percentile", "BCa", "studentised", "ours")


@cache
def least_gained(rows: int, bar: float, most: int, exact: bool = True) -> Floats:
    """Return how many gained rows it takes to pass with 0, 1, ..., `most` lost ones, (most + 1,), exact or by Tango."""
    found: list[int] = []
    for lost in range(most + 1):
        low, step = found[-1] if found else 0, 1  # never fewer than with one lost row less
        high = low
        while high <= rows - lost and not _passes(high, lost, rows, bar, exact):
            low, high, step = high + 1, high + step, 2 * step
        high = min(high, rows - lost + 1)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if _passes(middle, lost, rows, bar, exact) else (middle + 1, high)
        found.append(low)
    return np.array(found, np.float64)


def _passes(gained: int, lost: int, rows: int, bar: float, exact: bool) -> bool:
    if exact:
        return p_not_above(gained, lost, rows, bar) <= ALPHA
    return float(special.ndtr(-score(np.array([gained]), np.array([lost]), rows, bar)[0])) <= ALPHA


def passes(rows: int, gain: float, loss: float, bar: float, exact: bool = True) -> float:
    """Return the chance to pass where a row is gained with chance `gain` and lost with chance `loss`."""
    most = min(rows, int(stats.binom.isf(1e-9, rows, loss)) // 64 * 64 + 64)
    lost = np.arange(most + 1)
    enough = stats.binom.sf(least_gained(rows, bar, most, exact) - 1, rows - lost, gain / (1 - loss))
    return float((stats.binom.pmf(lost, rows, loss) * enough).sum())


def proportions(all_rows: list[int], slices: int) -> list[str]:
    """Return the tables of levels and of power."""
    level = [
        "| rows a slice | changed | exact: worse by the margin passes | Tango's score alone | equal passes "
        f"| all of {slices} equal pass | better by 3 points is seen |",
        "|---|---|---|---|---|---|---|",
    ]
    for rows in all_rows:
        for changed in (share for share in CHANGED if share >= MARGIN):
            print(f"{rows} rows, {changed:.0%} changed ...", file=sys.stderr)
            worse = ((changed - MARGIN) / 2, (changed + MARGIN) / 2)
            equal = passes(rows, changed / 2, changed / 2, -MARGIN)
            seen = f"{passes(rows, (changed + 0.03) / 2, (changed - 0.03) / 2, 0.0):.1%}" if changed >= 0.03 else ""
            level.append(
                f"| {rows:,} | {changed:.0%} | {passes(rows, *worse, -MARGIN):.2%} "
                f"| {passes(rows, *worse, -MARGIN, exact=False):.2%} | {equal:.1%} | {equal**slices:.1%} | {seen} |"
            )
    return level


def _overlaps(rng: np.random.Generator, rows: int, runs: int) -> tuple[Floats, float]:
    """Gains of an overlap: most are 0, and a few more are lost than gained."""
    which = rng.random((rows, runs))
    size = rng.random((rows, runs))
    return np.where(which < 0.06, size, 0.0) - np.where((which >= 0.06) & (which < 0.16), size, 0.0), -0.02


def _rare(rng: np.random.Generator, rows: int, runs: int) -> tuple[Floats, float]:
    """Every 37th row loses nearly everything, and nothing else changes."""
    return -np.where(rng.random((rows, runs)) < 0.02 / 0.75, 0.5 + 0.5 * rng.random((rows, runs)), 0.0), -0.02


def _likelihoods(rng: np.random.Generator, rows: int, runs: int) -> tuple[Floats, float]:
    """Losses of a likelihood, skewed to one side, each up to the bound."""
    return -np.minimum(rng.lognormal(0, 1, (rows, runs)), BOUND), -BOUNDED


def _gains(rng: np.random.Generator, rows: int, runs: int) -> tuple[Floats, float]:
    """The same to the other side."""
    return np.minimum(rng.lognormal(0, 1, (rows, runs)), BOUND), BOUNDED


def _forgotten(chance: float, nats: float) -> Callable[[np.random.Generator, int, int], tuple[Floats, float]]:
    """A few rows lose many nats, in the mean the margin, and nothing else changes: a sample may hold none of them."""
    return lambda rng, rows, runs: (np.where(rng.random((rows, runs)) < chance, -nats, 0.0), -chance * nats)


def _even(rng: np.random.Generator, rows: int, runs: int) -> tuple[Floats, float]:
    return rng.laplace(-0.05, 0.3, (rows, runs)), -0.05


WORLDS: dict[str, Callable[[np.random.Generator, int, int], tuple[Floats, float]]] = {
    "overlaps": _overlaps,
    "rare losses": _rare,
    "likelihoods, skewed down": _likelihoods,
    "likelihoods, skewed up": _gains,
    "likelihoods, 1 % lose 5 nats": _forgotten(0.01, 5.0),
    "likelihoods, 0.5 % lose 10 nats": _forgotten(0.005, 10.0),
    "even": _even,
}


def missed(world: str, rows: int, runs: int, resamples: int = 2000) -> dict[str, tuple[float, float]]:
    """Return how often the lower and the upper bound of each way miss the truth."""
    values, truth = WORLDS[world](np.random.default_rng(rows), rows, runs)
    means, left = values.mean(axis=0), values - values.mean(axis=0)
    error = left.std(axis=0, ddof=1) / np.sqrt(rows)
    draws = np.random.default_rng(0)
    counts = np.stack([np.bincount(draws.integers(rows, size=rows), minlength=rows) for _ in range(resamples)])
    shift = counts @ left / rows  # (resamples, runs)
    spread = np.maximum(counts @ left**2 / rows - shift**2, 0.0) / rows
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.nan_to_num(shift / np.sqrt(spread), nan=0.0)
    rank = int(ALPHA * (resamples + 1))
    shift, ratio = np.sort(shift, axis=0), np.sort(ratio, axis=0)
    reach = float(stats.t.ppf(1 - ALPHA, rows - 1)) * error
    found = {
        "Student's t": (means - reach, means + reach),
        "percentile": (means + shift[rank - 1], means + shift[-rank]),
        "BCa": _bca(means, left, shift),
        "studentised": (means - error * ratio[-rank], means - error * ratio[rank - 1]),
    }
    gains = {str(run): Gains(values[:, run], BOUND if "likelihoods" in world else 1.0) for run in range(runs)}
    ours = compare_means(gains, dict.fromkeys(gains, truth), ALPHA, resamples, 0).values()
    found["ours"] = np.array([one.lower for one in ours]), np.array([one.upper for one in ours])
    return {
        way: (float((lower > truth).mean()), float((upper < truth).mean())) for way, (lower, upper) in found.items()
    }


def _bca(means: Floats, left: Floats, shift: Floats) -> tuple[Floats, Floats]:
    """Efron's accelerated, bias-corrected percentiles (JASA 82 (1987), 171-185)."""
    resamples = len(shift)
    bias = special.ndtri(np.clip((shift < 0).mean(axis=0), 1 / resamples, 1 - 1 / resamples))
    squares = np.maximum((left**2).sum(axis=0), 1e-100)
    acceleration = (left**3).sum(axis=0) / (6 * squares**1.5)
    ends = []
    for z in (special.ndtri(ALPHA), special.ndtri(1 - ALPHA)):
        share = special.ndtr(bias + (bias + z) / (1 - acceleration * (bias + z)))
        at = np.clip((share * resamples).astype(np.int64), 0, resamples - 1)
        ends.append(means + shift[at, np.arange(shift.shape[1])])
    return ends[0], ends[1]


def _both(lower: float, upper: float) -> str:
    return f"{lower:.1%} / {upper:.1%}"


def section(given: argparse.Namespace) -> str:
    """Return the Markdown of both."""
    lines = [
        f"## How often a verdict is right, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"`python -m benchmarks.verdict_power`, {machine('numpy', 'scipy')}",
        "",
        f"One slice of paired proportions, margin {MARGIN:g}, alpha {ALPHA:g}; chances are summed over all tables:",
        "",
        *proportions(given.rows, given.slices),
        "",
        f"Bounds of paired means, {given.runs} runs: how often the lower / the upper one misses the truth, 5 % is "
        "asked for. Ours is the studentised bootstrap with two rows that were not seen:",
        "",
        f"| gains | rows | {' | '.join(WAYS)} |",
        "|---|---|" + "---|" * len(WAYS),
    ]
    for world in WORLDS:
        for rows in (100, 300, 1000, 2000):
            print(f"{world}, {rows} rows ...", file=sys.stderr)
            found = missed(world, rows, given.runs)
            lines.append(f"| {world} | {rows:,} | {' | '.join(_both(*found[way]) for way in WAYS)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdict_power", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rows", type=int, nargs="+", default=[200, 300, 500, 1000, 2000], metavar="N",
                        help="of a slice")  # fmt: skip
    parser.add_argument("--slices", type=int, default=10, metavar="N", help="that all have to pass")
    parser.add_argument("--runs", type=int, default=1000, metavar="N", help="of each simulation")
    print(section(parser.parse_args()))


if __name__ == "__main__":
    main()
