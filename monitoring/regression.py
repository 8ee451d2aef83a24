"""Compares challenger and champion on the same rows and decides: pass, fail or inconclusive.

    verdict = judge({"fresh 2016": Slice(champion, challenger, "fresh")}, JudgingSettings())

On a fresh slice the challenger has to be better, on an old one not worse by the margin or more. A mean never decides:
one-sided confidence bounds do. "No significant difference" would not show that nothing was lost, a non-inferiority
test does. Every slice has to pass (an intersection-union test), so the level of each is that of the whole, and no
correction for their number is made: a bad challenger gets through only if it does on the very slice where it is bad.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict
from scipy import stats

from monitoring.errors import InputError
from monitoring.settings import JudgingSettings

POWER = 0.8  # of the number of rows that an inconclusive check asks for [probability]

Outcome = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Slice:
    """Scores of the same rows by both models, shape (rows,), higher is better: 0 or 1, or any finite numbers."""

    champion: ArrayLike
    challenger: ArrayLike
    kind: Literal["fresh", "old"]
    metric: str = "exact_match"


class Check(BaseModel):
    """One slice's comparison; the bounds are one-sided at `alpha` each, None where there are too few rows for any."""

    model_config = ConfigDict(frozen=True)

    slice: str
    metric: str
    kind: Literal["fresh", "old"]
    rows: int
    champion: float | None
    challenger: float | None
    difference: float | None
    lower: float | None
    upper: float | None
    margin: float
    outcome: Outcome
    why: str


class Verdict(BaseModel):
    """What all checks say together, and why."""

    model_config = ConfigDict(frozen=True)

    outcome: Outcome
    reason: str
    checks: list[Check]


@dataclass(frozen=True)
class Comparison:
    """Difference of means (challenger - champion), its one-sided bounds, and the statistic of `difference = bar`."""

    difference: float
    lower: float
    upper: float
    statistic: float


def judge(slices: Mapping[str, Slice], settings: JudgingSettings) -> Verdict:
    """Check every slice: any fail fails, all pass pass, everything else is inconclusive.

    Raises InputError without slices, for scores of unequal length and for scores that are not finite numbers.
    """
    if not slices:
        raise InputError("there is no slice to judge: give held-out rows of the window, at least")
    checks = [_check(name, part, settings) for name, part in slices.items()]
    outcome: Outcome = "pass"
    for worse in ("inconclusive", "fail"):
        if any(check.outcome == worse for check in checks):
            outcome = worse
    reason = "; ".join(check.why for check in checks if check.outcome == outcome)
    return Verdict(outcome=outcome, reason=reason, checks=checks)


def compare(champion: ArrayLike, challenger: ArrayLike, bar: float, alpha: float) -> Comparison:
    """Compare paired scores, shape (rows,), two or more: Tango's score interval for 0/1, else a paired t interval."""
    first, second = np.asarray(champion, float), np.asarray(challenger, float)
    if np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all():
        gained, lost = int((second > first).sum()), int((second < first).sum())
        return compare_proportions(gained, lost, len(first), bar, alpha)
    differences = second - first  # (rows,)
    difference, error = float(differences.mean()), float(stats.sem(differences))
    reach = float(stats.t.ppf(1 - alpha, len(differences) - 1)) * error
    return Comparison(difference, difference - reach, difference + reach, _ratio(difference - bar, error))


def compare_proportions(gained: int, lost: int, rows: int, bar: float, alpha: float) -> Comparison:
    """Compare paired proportions of which `gained` rows went from 0 to 1 and `lost` rows from 1 to 0.

    Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample design,
    Statistics in Medicine 17 (1998), 891-908.
    """
    z = float(stats.norm.ppf(1 - alpha))
    lower, upper = _lower_bound(gained, lost, rows, z), -_lower_bound(lost, gained, rows, z)
    return Comparison((gained - lost) / rows, lower, upper, _score(gained, lost, rows, bar))


def _score(gained: int, lost: int, rows: int, delta: float) -> float:
    """Tango's statistic of `difference = delta`, standard normal if that is so; it falls as delta grows."""
    # The likeliest share of lost rows under that hypothesis solves a q^2 + b q + c = 0.
    a = 2 * rows
    b = (2 * rows - gained + lost) * delta - gained - lost
    c = -lost * delta * (1 - delta)
    q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = rows * (2 * q + delta * (1 - delta))
    return _ratio(gained - lost - rows * delta, math.sqrt(max(variance, 0.0)))


def _lower_bound(gained: int, lost: int, rows: int, z: float) -> float:
    """The smallest difference whose score is not above z, by bisection between -1 and the estimate."""
    low, high = -1.0, (gained - lost) / rows
    for _ in range(50):  # to 2e-15
        middle = (low + high) / 2
        if _score(gained, lost, rows, middle) > z:
            low = middle
        else:
            high = middle
    return high


def _ratio(value: float, error: float) -> float:
    """Value / error, where an error of 0 means that nothing is uncertain."""
    if error > 0:
        return value / error
    return math.copysign(math.inf, value) if value else 0.0


def _check(name: str, part: Slice, settings: JudgingSettings) -> Check:
    champion, challenger = _paired(name, part)
    rows, margin = len(champion), settings.margin if part.kind == "old" else 0.0
    found = compare(champion, challenger, -margin, settings.alpha) if rows > 1 else None
    outcome, because = _decide(rows, found, part.kind, settings)
    return Check(
        slice=name,
        metric=part.metric,
        kind=part.kind,
        rows=rows,
        champion=float(champion.mean()) if rows else None,
        challenger=float(challenger.mean()) if rows else None,
        difference=float((challenger - champion).mean()) if rows else None,
        lower=found.lower if found else None,
        upper=found.upper if found else None,
        margin=margin,
        outcome=outcome,
        why=f"{name}: {because}",
    )


def _decide(rows: int, found: Comparison | None, kind: str, settings: JudgingSettings) -> tuple[Outcome, str]:
    """The outcome of one check and the sentence that says why."""
    if found is None or rows < settings.min_rows:
        missing = settings.min_rows - rows
        return (
            "inconclusive",
            f"{rows} held-out rows, {missing} more are needed (judging.min_rows = {settings.min_rows})",
        )
    bar = 0.0 if kind == "fresh" else -settings.margin
    claim = "it is better" if kind == "fresh" else f"it loses less than {settings.margin:g}"
    numbers = (
        f"challenger - champion = {found.difference:+.4f} on {rows} rows, "
        f"between {found.lower:+.4f} and {found.upper:+.4f} (one-sided {1 - settings.alpha:.0%} bounds)"
    )
    if found.lower > bar:
        return "pass", f"{numbers}: {claim}"
    if found.upper < bar:
        return "fail", f"{numbers}: " + (
            "it is worse" if kind == "fresh" else f"it loses more than {settings.margin:g}"
        )
    return "inconclusive", f"{numbers}: whether {claim} stays open; {_rows_wanted(rows, found, settings)}"


def _rows_wanted(rows: int, found: Comparison, settings: JudgingSettings) -> str:
    """How many rows would decide, if their scores fell out as these did: statistics grow with the root of the rows."""
    wanted = float(stats.norm.ppf(1 - settings.alpha) + stats.norm.ppf(POWER))
    if abs(found.statistic) < wanted / 1000:
        return "the difference lies on the bound itself, more rows like these would not decide"
    needed = math.ceil(rows * (wanted / found.statistic) ** 2)
    return f"about {needed} rows like these would decide ({POWER:.0%} sure)"


def _paired(name: str, part: Slice) -> tuple[np.ndarray, np.ndarray]:
    """Both models' scores, shape (rows,), checked."""
    champion, challenger = np.asarray(part.champion, float), np.asarray(part.challenger, float)
    if champion.ndim != 1 or champion.shape != challenger.shape:
        raise InputError(
            f"slice {name!r} has {champion.shape} scores of the champion and {challenger.shape} of the challenger: "
            "both need one score for each of the same rows"
        )
    for who, scores in (("champion", champion), ("challenger", challenger)):
        bad = int((~np.isfinite(scores)).sum())
        if bad:
            raise InputError(
                f"slice {name!r}: {bad} {part.metric} scores of the {who} are no finite numbers: score again"
            )
    if part.kind not in ("fresh", "old"):
        raise InputError(
            f"slice {name!r} is of kind {part.kind!r}: say 'fresh' (to be gained on) or 'old' (to be kept)"
        )
    return champion, challenger
