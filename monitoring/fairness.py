"""Is a challenger even over the segments of each meta_ column? Worst segment and gap, by Fairlearn's metric frame.

The gap between the best and the worst of several segments is never 0, even if nothing but chance parts them, and the
worst one seen is worse than any truly is; so bounds decide, each at alpha, whichever segments are best and worst:

    gap at most      the largest bound of a pair's difference: the two that are furthest apart are among the pairs
    gap at least     the largest of any two, either way around, at alpha divided by their number (Bonferroni)
    worst at least   what the segment that changes for the worse most surely keeps: the worst one loses no more
    worst at most    the least, over segments, of what one is surely below every segment of the champion, itself among
                     them, at alpha divided by their number

The first and the third are intersection-union tests (Berger, Technometrics 24 (1982), 295-300) and need no correction.
Two segments have no row in common: the bounds of their means give that of their difference (Zou and Donner, Statistics
in Medicine 27 (2008), 1693-1702; of shares Newcombe, ibid. 17 (1998), 873-890). The metric frame is Fairlearn's, Bird
et al., Microsoft MSR-TR-2020-32 (2020).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy import stats

from monitoring.errors import InputError
from monitoring.judging_settings import JudgingSettings
from monitoring.proportions import share_between
from monitoring.slices import Slice, are_binary, better_of, bound_of, compare

Floats = npt.NDArray[np.float64]


class Fairness(BaseModel):
    """One gate over the segments of one column; `gap_upper` and `worst_lower` are the bounds that decide.

    Numbers are None, and `worst` is empty, where fewer than two segments have rows enough.
    `worst_change` is how much better (worse, below 0) the challenger's worst segment is than the champion's worst.
    """

    model_config = ConfigDict(frozen=True)

    column: str
    metric: str
    segments: int
    worst: str = ""
    champion_worst: float | None = None
    challenger_worst: float | None = None
    worst_change: float | None = None
    worst_lower: float | None = None
    champion_gap: float | None = None
    challenger_gap: float | None = None
    gap_upper: float | None = None
    outcome: Literal["pass", "fail", "inconclusive"]
    why: str


def fairness(slices: Mapping[str, Slice], settings: JudgingSettings) -> list[Fairness]:
    """Return how even each gate is over the segments of each column that has two or more with rows enough of it.

    One inconclusive result where there is no such column or gate. Raises InputError when Fairlearn is not installed.
    """
    columns: dict[str, dict[str, Slice]] = {}
    for name, part in slices.items():
        if part.kind == "segment":
            columns.setdefault(part.column or name.partition(" = ")[0], {})[name] = part
    found = [
        _of_column(column, metric, parts, settings)
        for column, parts in columns.items()
        if len(parts) > 1
        for metric in fair_metrics(settings)
    ]
    if not found:
        why = (
            "judging.fairness is on, but no meta_ column has two segments with judging.segment_rows = "
            f"{settings.segment_rows} rows and a gate that is a mean of rows: log such columns, lower it, or turn "
            "fairness off"
        )
        return [_open("", "", 0, why)]
    return found


def fair_metrics(settings: JudgingSettings) -> list[str]:
    """Return the gates that fairness can be said of: those that are means of a segment's rows."""
    return [metric for metric in settings.margins if metric not in ("calibration_error", "lm_eval")]


def _of_column(column: str, metric: str, parts: Mapping[str, Slice], settings: JudgingSettings) -> Fairness:
    """One gate over one column's segments, but those with fewer of the metric's own rows than judging.segment_rows."""
    rows = {name: len(np.asarray(part.scores[metric].champion)) for name, part in parts.items()}
    large = {name: part for name, part in parts.items() if rows[name] >= settings.segment_rows}
    few = ", ".join(f"{name} ({rows[name]} rows)" for name in parts if name not in large)
    without = f"; left out, fewer than judging.segment_rows = {settings.segment_rows}: {few}" if few else ""
    if len(large) < 2:
        why = f"fairness over {column}, {metric}: {len(large)} segments have rows enough, two are needed"
        return _open(column, metric, len(large), why + without)
    found = _even(column, metric, large, settings)
    return found.model_copy(update={"why": found.why + without})


def _open(column: str, metric: str, segments: int, why: str) -> Fairness:
    """What is said where nothing can be."""
    return Fairness(column=column, metric=metric, segments=segments, outcome="inconclusive", why=why)


def _even(column: str, metric: str, parts: Mapping[str, Slice], settings: JudgingSettings) -> Fairness:
    champion, challenger = (
        [np.asarray(getattr(part.scores[metric], who), np.float64) for part in parts.values()]
        for who in ("champion", "challenger")
    )
    paired = next(iter(parts.values())).scores[metric]
    bound = cast(float, bound_of(metric, paired))  # a gate has one
    labels = np.repeat(np.array(list(parts), object), [len(scores) for scores in champion])
    frame = _frame(np.concatenate(champion), np.concatenate(challenger), labels)
    higher = better_of(metric, paired) == "higher"
    gaps = frame.difference(method="between_groups")
    worst = frame.group_min() if higher else frame.group_max()
    by_group = frame.by_group["challenger"].astype(float)
    sign = 1.0 if higher else -1.0
    change = sign * float(worst["challenger"] - worst["champion"])
    gap = float(gaps["challenger"])
    gap_lower, gap_upper = _gap(challenger, bound, settings.alpha)
    worst_lower = _worst_lower(metric, parts, settings)
    worst_upper = _worst_upper(champion, challenger, sign, bound, settings.alpha)
    limit = settings.margins[metric] * settings.segment_factor
    outcome: Literal["pass", "fail", "inconclusive"] = "inconclusive"
    if gap_lower > settings.fairness_gap or worst_upper < -limit:
        outcome = "fail"
    elif gap_upper <= settings.fairness_gap and worst_lower > -limit:
        outcome = "pass"
    lowest = str(by_group.idxmin() if higher else by_group.idxmax())
    return Fairness(
        column=column,
        metric=metric,
        segments=len(parts),
        worst=lowest,
        champion_worst=float(worst["champion"]),
        challenger_worst=float(worst["challenger"]),
        worst_change=change,
        worst_lower=worst_lower,
        champion_gap=float(gaps["champion"]),
        challenger_gap=gap,
        gap_upper=gap_upper,
        outcome=outcome,
        why=f"fairness over {column}, {metric}: the gap between best and worst segment is {gap:.4f} (champion "
        f"{float(gaps['champion']):.4f}), surely {gap_lower:.4f} to {gap_upper:.4f}, {settings.fairness_gap:g} is "
        f"accepted; from the champion's worst to the challenger's, {lowest}, it is {change:+.4f}, surely "
        f"{worst_lower:+.4f} to {worst_upper:+.4f}, -{limit:g} is accepted",
    )


def _frame(champion: Floats, challenger: Floats, labels: npt.NDArray[np.object_]) -> Any:
    try:
        from fairlearn.metrics import MetricFrame
    except ImportError as error:
        raise InputError(
            "judging.fairness needs Fairlearn: pip install 'redistill[fairness]', or turn judging.fairness off"
        ) from error
    means = {
        "champion": lambda champion, challenger: float(np.mean(champion)),
        "challenger": lambda champion, challenger: float(np.mean(challenger)),
    }
    return MetricFrame(metrics=means, y_true=champion, y_pred=challenger, sensitive_features=labels)


def _gap(scores: Sequence[Floats], bound: float, alpha: float) -> tuple[float, float]:
    """The bounds of how far the best segment is from the worst, at alpha each."""
    pairs = ~np.eye(len(scores), dtype=np.bool_)  # either way around
    at_most, surely = (
        _differ_at_most(ends, ends)[pairs]
        for ends in (_ends(scores, bound, alpha), _ends(scores, bound, alpha / int(pairs.sum())))
    )
    return max(float(-surely.min()), 0.0), float(at_most.max())


def _worst_lower(metric: str, parts: Mapping[str, Slice], settings: JudgingSettings) -> float:
    """The lower bound, at alpha, of the segment's change that is the least, and so of the worst one's."""
    alone = (replace(part, scores={metric: part.scores[metric]}) for part in parts.values())
    return min(compare(part, settings)[metric].lower for part in alone)


def _worst_upper(
    champion: Sequence[Floats], challenger: Sequence[Floats], sign: float, bound: float, alpha: float
) -> float:
    """The upper bound, at alpha, of how much better the challenger's worst segment is than the champion's worst."""
    alpha /= len(champion)
    before, after = (np.sort(sign * _ends(scores, bound, alpha), axis=1) for scores in (champion, challenger))
    above = _differ_at_most(after, before)
    changes = [sign * (now - then) for then, now in zip(champion, challenger, strict=True)]
    np.fill_diagonal(above, [change.mean() + _error(change, bound, alpha) for change in changes])  # the same rows
    return float(above.max(axis=1).min())


def _differ_at_most(first: Floats, second: Floats) -> Floats:
    """The upper bound of each of the first means less each of the second, (first, second), by the ends of both."""
    (_, mean, high), (low, other, _) = first.T, second.T
    differences: Floats = np.subtract.outer(mean, other) + np.hypot.outer(high - mean, other - low)
    return differences


def _ends(scores: Sequence[Floats], bound: float, alpha: float) -> Floats:
    """The lower bound, at alpha, of each segment's mean, the mean and its upper bound, (segments, 3)."""
    found = []
    for each in scores:
        mean = float(each.mean())
        if are_binary(each):
            low, high = share_between(int(each.sum()), len(each), alpha)
        else:
            error = _error(each, bound, alpha)
            low, high = mean - error, mean + error
        found.append((low, mean, high))
    return np.array(found)


def _error(scores: Floats, bound: float, alpha: float) -> float:
    """How far a mean may be from the one seen, either way: Student's t, with two rows and losses not seen as in means.

    Unlike a bootstrap's, its level may be as small as many pairs of segments ask for.
    """
    rows = len(scores)
    error = math.sqrt(float(((scores - scores.mean()) ** 2).sum()) + 2 * bound**2) / rows
    return max(float(stats.t.isf(alpha, rows - 1)) * error, bound * -math.expm1(math.log(alpha) / rows))
