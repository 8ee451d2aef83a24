"""Compares challenger and champion on the same rows and decides: pass, fail or inconclusive.

    slices = {"fresh 2016": Slice("fresh", {"exact_match": Paired(champion, challenger)})}
    verdict = judge(slices, JudgingSettings())

On a fresh slice the challenger has to be better in one metric, and nowhere worse in a gate by its margin or more. A
mean never decides: one-sided tests do. "No significant difference" would not show that nothing was lost, a
non-inferiority test does. Every gate has to pass on every slice (an intersection-union test; Berger, Technometrics 24
(1982), 295-300), so the level of each is that of the whole, and no correction for their number is made: a bad
challenger gets through only if it does on the very slice where it is bad. Naming slices as harmed is another question,
asked of all of them at once: there Holm's correction keeps the chance of naming any without cause at alpha.

From the command line: python -m monitoring.regression SCORES_A SCORES_B
"""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict
from scipy import stats
from threadpoolctl import threadpool_limits

from monitoring import budgets as costs
from monitoring.budgets import Budget as Budget
from monitoring.budgets import Cost as Cost
from monitoring.calibration import calibration_error
from monitoring.comparison import Comparison
from monitoring.errors import InputError
from monitoring.fairness import Fairness as Fairness
from monitoring.fairness import fairness
from monitoring.judging_settings import Better, JudgingSettings
from monitoring.slices import CALIBRATION, better_of, bound_of, check, compare, margin_of, rows_of
from monitoring.slices import Kind as Kind
from monitoring.slices import Paired as Paired
from monitoring.slices import Slice as Slice
from monitoring.statistics import holm

POWER = 0.8  # of the number of rows that an inconclusive check asks for [probability]
SHOWN = 5  # slices by name in the reason of a pass

Outcome = Literal["pass", "fail", "inconclusive"]


class Check(BaseModel):
    """One metric on one slice, in the metric's own unit; bounds are one-sided at `alpha` each.

    Bounds and p-values are None where there are too few rows for any, `margin` and `p_value` where nothing is asked.
    `p_value` is of what would forbid it (worse by the margin or more; on the fresh slice: not better), `p_worse` of
    "nothing is lost". `rows_needed` is how many rows in all would decide, where that can be said.
    """

    model_config = ConfigDict(frozen=True)

    slice: str
    kind: Kind
    metric: str
    better: Better
    rows: int
    champion: float | None
    challenger: float | None
    difference: float | None
    lower: float | None
    upper: float | None
    margin: float | None
    p_value: float | None
    p_worse: float | None
    outcome: Literal["pass", "fail", "inconclusive", "reported"]
    harmed: bool = False
    rows_needed: int | None = None
    why: str


class Verdict(BaseModel):
    """What all checks say together, and why.

    `harmed` names the slices that are surely worse than before in some metric, gate or not, if only by less than the
    margin; `left_out` says of which segments there were too few rows.
    """

    model_config = ConfigDict(frozen=True)

    outcome: Outcome
    reason: str
    checks: list[Check]
    budgets: list[Budget] = []
    fairness: list[Fairness] = []
    harmed: list[str] = []
    left_out: list[str] = []


def judge(slices: Mapping[str, Slice], settings: JudgingSettings, budgets: Sequence[Cost] = ()) -> Verdict:
    """Check every gate on every slice, and every budget: any fail fails, all pass pass, else it is inconclusive.

    Raises InputError without slices, for a slice that lacks a gate, and for scores that are not finite numbers or not
    of the same rows.
    """
    if not slices:
        raise InputError("there is no slice to judge: give held-out rows of the window, at least")
    for name, part in slices.items():
        check(name, part, settings)
    spent = costs.decide(budgets)
    judged = {name: part for name, part in slices.items() if not _too_small(part, settings)}
    even = fairness(judged, settings) if settings.fairness else []
    with threadpool_limits(1, "blas"):  # for products this small the threads of BLAS wait for each other
        checks = [one for name, part in judged.items() for one in _checks(name, part, settings)]
    checks = _with_harm(checks, settings.alpha)
    outcome, reason = _together(checks, [*even, *spent])
    return Verdict(
        outcome=outcome,
        reason=reason,
        checks=checks,
        budgets=spent,
        fairness=even,
        harmed=list(dict.fromkeys(one.slice for one in checks if one.harmed)),
        left_out=[
            f"{name}: {rows_of(part)} rows, fewer than judging.segment_rows = {settings.segment_rows}"
            for name, part in slices.items()
            if name not in judged
        ],
    )


def _too_small(part: Slice, settings: JudgingSettings) -> bool:
    return part.kind in ("segment", "teacher_errors") and rows_of(part) < settings.segment_rows


def _checks(name: str, part: Slice, settings: JudgingSettings) -> list[Check]:
    """Each metric of one slice."""
    found = compare(part, settings)
    return [_check(name, part, metric, found.get(metric), settings) for metric in part.scores]


def _check(name: str, part: Slice, metric: str, found: Comparison | None, settings: JudgingSettings) -> Check:
    paired = part.scores[metric]
    rows = len(np.asarray(paired.champion))
    better = better_of(metric, paired)
    sign = 1.0 if better == "higher" else -1.0
    margin = margin_of(part.kind, metric, settings)
    outcome, needed, because = _decide(rows, found, sign, margin, bound_of(metric, paired), settings)
    lower, upper = _ends(found, sign) if found else (None, None)
    return Check(
        slice=name,
        kind=part.kind,
        metric=metric,
        better=better,
        rows=rows,
        champion=_value(metric, paired.champion),
        challenger=_value(metric, paired.challenger),
        difference=sign * found.gain + 0.0 if found else None,
        lower=lower,
        upper=upper,
        margin=margin,
        p_value=found.p_value if found and margin is not None else None,
        p_worse=found.p_worse if found else None,
        outcome=outcome,
        rows_needed=needed,
        why=f"{name}, {metric}: {because}",
    )


def _ends(found: Comparison, sign: float) -> tuple[float, float]:
    """The bounds of the difference, the smaller first; 0 is no negative one."""
    low, high = sorted((sign * found.lower + 0.0, sign * found.upper + 0.0))
    return low, high


def _value(metric: str, scores: ArrayLike) -> float | None:
    """What one model has in a metric; None without rows."""
    array = np.asarray(scores, np.float64)
    if not len(array):
        return None
    return calibration_error(array) if metric == CALIBRATION else float(array.mean())


def _decide(
    rows: int,
    found: Comparison | None,
    sign: float,
    margin: float | None,
    bound: float | None,
    settings: JudgingSettings,
) -> tuple[Literal["pass", "fail", "inconclusive", "reported"], int | None, str]:
    """The outcome of one check, how many rows would decide, and the sentence that says why."""
    if found is None or rows < settings.min_rows:
        said = f"{rows} rows, {settings.min_rows - rows} more are needed (judging.min_rows = {settings.min_rows})"
        return ("reported" if margin is None else "inconclusive"), settings.min_rows, said
    ends = _ends(found, sign)
    numbers = (
        f"challenger - champion = {sign * found.gain + 0.0:+.4f} on {rows} rows, between {ends[0]:+.4f} and "
        f"{ends[1]:+.4f} (one-sided {1 - settings.alpha:.0%} bounds)"
    )
    if margin is None:
        return "reported", None, numbers
    claim = f"it loses less than {margin:g}" if margin else "it is better"
    if found.p_value <= settings.alpha:
        return "pass", None, f"{numbers}: {claim}"
    if found.upper < -margin:
        return "fail", None, f"{numbers}: " + (f"it loses more than {margin:g}" if margin else "it is worse")
    needed, told = _rows_wanted(rows, found, margin, settings.alpha, bound)
    return "inconclusive", needed, f"{numbers}: whether {claim} stays open; {told}"


def _rows_wanted(
    rows: int, found: Comparison, margin: float, alpha: float, bound: float | None
) -> tuple[int | None, str]:
    """How many rows would decide, if their scores fell out as these did: statistics grow with the root of the rows."""
    wanted = float(stats.norm.ppf(1 - alpha) + stats.norm.ppf(POWER)) * found.error
    distance = found.gain + margin  # from the bar; the slack is in the way of passing, not of failing
    wanted += found.slack if distance > 0 else 0.0
    if abs(distance) * 1000 < wanted or not distance:
        return None, "the difference lies on the bound itself, more rows like these would not decide"
    # In fewer rows a loss of the margin may go unseen, whatever else they show.
    share = margin / bound if bound else 0.0
    fewest = math.log(alpha) / math.log1p(-share) if 0 < share < 1 else 0.0
    needed = max(math.ceil(rows * (wanted / distance) ** 2), math.ceil(fewest), rows + 1)
    return needed, f"about {needed} rows like these would decide ({POWER:.0%} sure), {needed - rows} more"


def _with_harm(checks: list[Check], alpha: float) -> list[Check]:
    """Mark where something is surely lost: p-values that no loss is to be seen, corrected over all checks (Holm)."""
    adjusted = holm([1.0 if check.p_worse is None else check.p_worse for check in checks])
    return [check.model_copy(update={"harmed": p <= alpha}) for check, p in zip(checks, adjusted, strict=True)]


def _together(checks: list[Check], others: Sequence[Fairness | Budget]) -> tuple[Outcome, str]:
    """The worst outcome among them and why; what is surely worse without being asked about is said besides."""
    found: list[Check | Fairness | Budget] = [*checks, *others]
    harm = [f"{one.slice} ({one.metric})" for one in checks if one.harmed and one.outcome in ("pass", "reported")]
    beside = f"; surely worse, though not forbidden: {', '.join(harm)}" if harm else ""
    outcomes: tuple[Outcome, ...] = ("fail", "inconclusive")
    for outcome in outcomes:
        if told := [one.why for one in found if one.outcome == outcome]:
            return outcome, "; ".join(told) + beside
    passed = [one for one in checks if one.outcome == "pass"]
    if not passed:
        return "inconclusive", "no gate was asked about: judging.gates names none that these slices have" + beside
    better = [one.why for one in passed if one.margin == 0]
    kept = [one.slice for one in passed if one.margin]
    told = better + ([f"nothing is lost beyond its margin on {_few(kept)}"] if kept else [])
    return "pass", "; ".join(told) + beside


def _few(names: list[str]) -> str:
    distinct = list(dict.fromkeys(names))
    return (
        ", ".join(distinct)
        if len(distinct) <= SHOWN
        else f"{', '.join(distinct[:SHOWN])} and {len(distinct) - SHOWN} more"
    )


if __name__ == "__main__":
    from monitoring.regression_command import main

    sys.exit(main())
