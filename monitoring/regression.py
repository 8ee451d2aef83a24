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
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict
from scipy import stats

from monitoring import budgets as costs
from monitoring.budgets import Budget, Cost
from monitoring.comparison import Comparison, compare
from monitoring.errors import InputError
from monitoring.judging_settings import METRICS, Better, JudgingSettings
from monitoring.statistics import holm

POWER = 0.8  # of the number of rows that an inconclusive check asks for [probability]

Kind = Literal["fresh", "old", "golden", "teacher_errors", "segment", "lm_eval"]
Outcome = Literal["pass", "fail", "inconclusive"]
KINDS: tuple[Kind, ...] = ("fresh", "old", "golden", "teacher_errors", "segment", "lm_eval")
SMALL: tuple[Kind, ...] = ("teacher_errors", "segment")  # these are left out when they have too few rows


@dataclass(frozen=True)
class Paired:
    """Scores of the same rows by both models, shape (rows,) each, any finite numbers.

    Of calibration_error each row has two, shape (rows, 2): the confidence in [0, 1], and 1 where the answer was right,
    else 0. `better` None: as the metric's own definition says.
    """

    champion: ArrayLike
    challenger: ArrayLike
    better: Better | None = None


@dataclass(frozen=True)
class Slice:
    """Rows that are compared by themselves: the scores by metric, and of a segment the meta_ column it is from.

    fresh            the window that the challenger learned from, to be gained on
    old, golden      to be kept
    segment          one value of a meta_ column, to be kept but for `segment_factor` margins
    teacher_errors   rows on which the champion missed the teacher; chosen by its failures, so any challenger seems
                     better on them: to be kept is little to ask, and the other slices say more
    lm_eval          one task's rows, which have the metric lm_eval alone
    """

    kind: Kind
    scores: Mapping[str, Paired]
    column: str = ""


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
        _checked(name, part, settings)
    spent = costs.decide(budgets)
    small = {name: part for name, part in slices.items() if _too_small(part, settings)}
    checks = [
        _check(name, part, metric, settings)
        for name, part in slices.items()
        if name not in small
        for metric in part.scores
    ]
    checks = _with_harm(checks, settings.alpha)
    outcome, reason = _together(checks, spent)
    return Verdict(
        outcome=outcome,
        reason=reason,
        checks=checks,
        budgets=spent,
        harmed=list(dict.fromkeys(check.slice for check in checks if check.harmed)),
        left_out=[
            f"{name}: {_rows(part)} rows, fewer than judging.segment_rows = {settings.segment_rows}"
            for name, part in small.items()
        ],
    )


def _checked(name: str, part: Slice, settings: JudgingSettings) -> None:
    """Refuse a slice that cannot be compared."""
    if part.kind not in KINDS:
        raise InputError(f"slice {name!r} is of kind {part.kind!r}: there are {', '.join(KINDS)}")
    wanted = list(settings.margins) + ([settings.superior] if part.kind == "fresh" and settings.superior else [])
    for metric in ["lm_eval"] if part.kind == "lm_eval" else wanted:
        if metric != "lm_eval" and metric not in part.scores:
            raise InputError(f"slice {name!r} has no scores of {metric}, which judging asks for: score it, or no gate")
    if not part.scores:
        raise InputError(f"slice {name!r} has no scores at all")
    shapes = {metric: np.shape(paired.champion)[:1] for metric, paired in part.scores.items()}
    if len(set(shapes.values())) > 1:
        raise InputError(f"slice {name!r} has other rows in one metric than in another: {shapes}")
    for metric, paired in part.scores.items():
        _check_scores(name, metric, paired)


def _check_scores(name: str, metric: str, paired: Paired) -> None:
    wide = metric == "calibration_error"
    arrays = [np.asarray(paired.champion, float), np.asarray(paired.challenger, float)]
    if arrays[0].shape != arrays[1].shape or arrays[0].ndim != 1 + wide or (wide and arrays[0].shape[1] != 2):
        raise InputError(
            f"slice {name!r} has {arrays[0].shape} {metric} scores of the champion and {arrays[1].shape} of the "
            f"challenger: both need {'confidence and correctness' if wide else 'one score'} for each of the same rows"
        )
    for who, scores in zip(("champion", "challenger"), arrays, strict=True):
        if bad := int((~np.isfinite(scores)).sum()):
            raise InputError(f"slice {name!r}: {bad} {metric} scores of the {who} are no finite numbers: score again")
        if wide and not ((scores >= 0) & (scores <= 1)).all():
            raise InputError(f"slice {name!r}: confidences and correctness of the {who} must lie between 0 and 1")
    _better(metric, paired)


def _better(metric: str, paired: Paired) -> Better:
    if paired.better is not None:
        return paired.better
    if metric not in METRICS:
        raise InputError(f"metric {metric!r} is not known: say in Paired whether higher or lower is better")
    return METRICS[metric].better


def _rows(part: Slice) -> int:
    return len(np.asarray(next(iter(part.scores.values())).champion))


def _too_small(part: Slice, settings: JudgingSettings) -> bool:
    return part.kind in SMALL and _rows(part) < settings.segment_rows


def _check(name: str, part: Slice, metric: str, settings: JudgingSettings) -> Check:
    paired = part.scores[metric]
    champion, challenger = np.asarray(paired.champion, float), np.asarray(paired.challenger, float)
    better, rows = _better(metric, paired), len(champion)
    sign = 1.0 if better == "higher" else -1.0
    margin = _margin(part.kind, metric, settings)
    found = compare(sign * champion, sign * challenger, -(margin or 0.0), settings.alpha) if rows > 1 else None
    outcome, needed, because = _decide(rows, found, sign, margin, settings)
    low, high = ("lower", "upper") if sign > 0 else ("upper", "lower")
    return Check(
        slice=name,
        kind=part.kind,
        metric=metric,
        better=better,
        rows=rows,
        champion=float(champion.mean()) if rows else None,
        challenger=float(challenger.mean()) if rows else None,
        difference=sign * found.gain if found else None,
        lower=sign * float(getattr(found, low)) if found else None,
        upper=sign * float(getattr(found, high)) if found else None,
        margin=margin,
        p_value=found.p_value if found and margin is not None else None,
        p_worse=found.p_worse if found else None,
        outcome=outcome,
        rows_needed=needed,
        why=f"{name}, {metric}: {because}",
    )


def _margin(kind: Kind, metric: str, settings: JudgingSettings) -> float | None:
    """The largest loss that is accepted, 0 where it has to be better, None where nothing is asked."""
    if kind == "fresh" and metric == settings.superior:
        return 0.0
    margin = settings.margins.get(metric)
    return margin * settings.segment_factor if margin is not None and kind == "segment" else margin


def _decide(
    rows: int, found: Comparison | None, sign: float, margin: float | None, settings: JudgingSettings
) -> tuple[Literal["pass", "fail", "inconclusive", "reported"], int | None, str]:
    """The outcome of one check, how many rows would decide, and the sentence that says why."""
    if found is None or rows < settings.min_rows:
        said = f"{rows} rows, {settings.min_rows - rows} more are needed (judging.min_rows = {settings.min_rows})"
        return ("reported" if margin is None else "inconclusive"), settings.min_rows, said
    ends = sorted((sign * found.lower, sign * found.upper))
    numbers = (
        f"challenger - champion = {sign * found.gain:+.4f} on {rows} rows, between {ends[0]:+.4f} and {ends[1]:+.4f} "
        f"(one-sided {1 - settings.alpha:.0%} bounds)"
    )
    if margin is None:
        return "reported", None, numbers
    claim = f"it loses less than {margin:g}" if margin else "it is better"
    if found.p_value <= settings.alpha:
        return "pass", None, f"{numbers}: {claim}"
    if found.upper < -margin:
        return "fail", None, f"{numbers}: " + (f"it loses more than {margin:g}" if margin else "it is worse")
    needed, told = _rows_wanted(rows, found, margin, settings.alpha)
    return "inconclusive", needed, f"{numbers}: whether {claim} stays open; {told}"


def _rows_wanted(rows: int, found: Comparison, margin: float, alpha: float) -> tuple[int | None, str]:
    """How many rows would decide, if their scores fell out as these did: statistics grow with the root of the rows."""
    wanted = float(stats.norm.ppf(1 - alpha) + stats.norm.ppf(POWER))
    distance = abs(found.gain + margin)
    if distance * 1000 < wanted * found.error or not distance:
        return None, "the difference lies on the bound itself, more rows like these would not decide"
    needed = max(math.ceil(rows * (wanted * found.error / distance) ** 2), rows + 1)
    return needed, f"about {needed} rows like these would decide ({POWER:.0%} sure), {needed - rows} more"


def _with_harm(checks: list[Check], alpha: float) -> list[Check]:
    """Mark where something is surely lost: p-values that no loss is to be seen, corrected over all checks (Holm)."""
    adjusted = holm([1.0 if check.p_worse is None else check.p_worse for check in checks])
    return [check.model_copy(update={"harmed": p <= alpha}) for check, p in zip(checks, adjusted, strict=True)]


def _together(checks: list[Check], spent: list[Budget]) -> tuple[Outcome, str]:
    """The worst outcome among them, and the sentences of those that have it."""
    found = [(check.outcome, check.why) for check in checks] + [(one.outcome, one.why) for one in spent]
    for outcome in ("fail", "inconclusive", "pass"):
        if told := [why for each, why in found if each == outcome]:
            return outcome, "; ".join(told)  # type: ignore[return-value]
    return "inconclusive", "nothing was asked: judging.gates names no metric, and every budget is without limit"


if __name__ == "__main__":
    from monitoring.regression_command import main

    sys.exit(main())
