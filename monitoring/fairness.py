"""Is a challenger even over the segments of each meta_ column? Worst segment and gap, by Fairlearn's metric frame.

The gap between the best and the worst of several segments is never 0, even if nothing but chance parts them; so the
means of the segments are drawn anew around those seen (both models' together, as they answered the same rows), and
the bounds of gap and worst segment decide. Bird et al., Fairlearn, Microsoft MSR-TR-2020-32 (2020).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from monitoring.errors import InputError
from monitoring.judging_settings import JudgingSettings
from monitoring.slices import Slice, better_of

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
    labels = np.repeat(np.array(list(parts), object), [len(scores) for scores in champion])
    frame = _frame(np.concatenate(champion), np.concatenate(challenger), labels)
    higher = better_of(metric, next(iter(parts.values())).scores[metric]) == "higher"
    gaps = frame.difference(method="between_groups")
    worst = frame.group_min() if higher else frame.group_max()
    by_group = frame.by_group["challenger"].astype(float)
    sign = 1.0 if higher else -1.0
    change = sign * float(worst["challenger"] - worst["champion"])
    gap, gap_upper, worst_lower = float(gaps["challenger"]), *_bounds(champion, challenger, sign, settings)
    gap_lower, worst_upper = 2 * gap - gap_upper, 2 * change - worst_lower
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
        f"{float(gaps['champion']):.4f}), surely at most {gap_upper:.4f}, {settings.fairness_gap:g} is accepted; "
        f"from the champion's worst to the challenger's, {lowest}, it is {change:+.4f}, surely at least "
        f"{worst_lower:+.4f}, -{limit:g} is accepted",
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


def _bounds(
    champion: Sequence[Floats], challenger: Sequence[Floats], sign: float, settings: JudgingSettings
) -> tuple[float, float]:
    """The upper bound of the challenger's gap, and the lower one of how its worst segment changes, at alpha each."""
    rng = np.random.default_rng(settings.seed)
    drawn = np.stack(
        [
            rng.multivariate_normal(
                [before.mean(), after.mean()],
                np.cov(before, after) / len(before),
                size=settings.resamples,
            )
            for before, after in zip(champion, challenger, strict=True)
        ],
        axis=1,
    )  # (resamples, segments, 2)
    after = drawn[:, :, 1]
    gap = after.max(axis=1) - after.min(axis=1)
    worst = (sign * drawn).min(axis=1)  # (resamples, 2)
    change = worst[:, 1] - worst[:, 0]
    return float(np.quantile(gap, 1 - settings.alpha)), float(np.quantile(change, settings.alpha))
