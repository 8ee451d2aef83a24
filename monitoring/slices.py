"""What is compared: rows of a slice, and what both models score on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from monitoring.calibration import calibration_gains
from monitoring.comparison import Comparison
from monitoring.errors import InputError
from monitoring.judging_settings import METRICS, Better, JudgingSettings
from monitoring.means import Gains, compare_means
from monitoring.proportions import compare_proportions

Floats = npt.NDArray[np.float64]
Kind = Literal["fresh", "old", "golden", "teacher_errors", "segment", "lm_eval", "packaged"]
KINDS: tuple[Kind, ...] = ("fresh", "old", "golden", "teacher_errors", "segment", "lm_eval", "packaged")
CALIBRATION = "calibration_error"
AGREEMENT = "teacher_agreement"  # may have fewer rows than the slice: those of which the teacher's answer is known
LARGEST = 1e100  # score: sums of squares stay finite
MAX_VALUES = 50  # of a column with more those with rows enough make segments, and the others are told of together
MISSING = "(missing)"


@dataclass(frozen=True)
class Paired:
    """Scores of the same rows by both models, shape (rows,) each, any finite numbers.

    Of calibration_error each row has two, shape (rows, 2): the confidence in [0, 1], and 1 where the answer was right,
    else 0. `better` and `bound` None: as the metric's own definition says. A row that differs by more than `bound`
    counts as one that differs by so much: no sample shows how much a row that it lacks would lose. A gate needs one.
    """

    champion: ArrayLike
    challenger: ArrayLike
    better: Better | None = None
    bound: float | None = None

    def of(self, here: npt.NDArray[np.bool_]) -> "Paired":
        """Return the scores of some of the rows, (rows,)."""
        return replace(self, champion=np.asarray(self.champion)[here], challenger=np.asarray(self.challenger)[here])


@dataclass(frozen=True)
class Slice:
    """Rows that are compared by themselves: the scores by metric, and of a segment the meta_ column it is from.

    fresh            the window that the challenger learned from, to be gained on
    old, golden      to be kept
    segment          one value of a meta_ column, to be kept but for `judging.segment_factor` margins
    teacher_errors   rows on which the champion missed the teacher; chosen by its failures, so any challenger seems
                     better on them: to be kept is little to ask, and the other slices say more
    lm_eval          one task's rows, which have the metric lm_eval alone
    packaged         the student as it serves beside its own checkpoint, in the champion's place; what of the gates its
                     answers' text tells
    """

    kind: Kind
    scores: Mapping[str, Paired]
    column: str = ""


def segments_of(
    scores: Mapping[str, Paired],
    labels: Mapping[str, Sequence[object] | npt.NDArray[np.object_]],
    settings: JudgingSettings,
) -> tuple[dict[str, Slice], list[str]]:
    """Return a slice, named "COLUMN = VALUE", for each value of the meta_ columns, whose values are (rows,) each.

    With them what makes none: where there are more than 50, the values of too few rows. A missing value is one like the
    others.
    """
    found, left_out = {}, []
    for column, values in labels.items():
        names = np.array([MISSING if _is_missing(value) else str(value) for value in values], object)
        kept, few = values_of(column, names, settings)
        left_out += few
        for value in kept:
            here = names == value
            part = {metric: each.of(here) for metric, each in scores.items()}
            found[f"{column} = {value}"] = Slice("segment", part, column)
    return found, left_out


def values_of(column: str, names: npt.NDArray[np.object_], settings: JudgingSettings) -> tuple[list[str], list[str]]:
    """Return the values of a column, (rows,) of str, that make segments, and in words what is left out.

    Of more than 50 values those make none that have fewer rows than judging.segment_rows.
    """
    values, rows = np.unique(names, return_counts=True)
    few = rows < settings.segment_rows
    if len(values) <= MAX_VALUES or not few.any():
        return list(values), []
    told = (
        f"{column}: {few.sum()} of {len(values)} values have fewer than judging.segment_rows = {settings.segment_rows} "
        f"rows each, {rows[few].sum():,} rows in all"
    )
    return list(values[~few]), [told]


def rows_of(part: Slice) -> int:
    """Return how many rows a slice has."""
    return max(len(np.asarray(paired.champion)) for paired in part.scores.values())


def better_of(metric: str, paired: Paired) -> Better:
    """Return which direction is better; InputError for a metric that is not known and does not say so itself."""
    if paired.better is not None:
        return paired.better
    if metric not in METRICS:
        raise InputError(f"metric {metric!r} is not known: say in Paired whether higher or lower is better")
    return METRICS[metric].better


def bound_of(metric: str, paired: Paired) -> float | None:
    """Return how much a row can gain or lose at most, None where nobody says."""
    if paired.bound is None and metric == "lm_eval" and not _are_shares(paired):
        return None  # a task may have a metric of any kind
    return paired.bound if paired.bound is not None or metric not in METRICS else METRICS[metric].bound


def margin_of(kind: Kind, metric: str, settings: JudgingSettings) -> float | None:
    """Return the largest loss that is accepted, 0 where it has to be better, None where nothing is asked."""
    if kind == "fresh" and metric == settings.superior:
        return 0.0
    margin = settings.margins.get(metric)
    return margin * settings.segment_factor if margin is not None and kind == "segment" else margin


def check(name: str, part: Slice, settings: JudgingSettings) -> None:
    """Refuse a slice that cannot be compared: InputError names it and what is wrong."""
    if part.kind not in KINDS:
        raise InputError(f"slice {name!r} is of kind {part.kind!r}: there are {', '.join(KINDS)}")
    if not part.scores:
        raise InputError(f"slice {name!r} has no scores at all")
    wanted = [metric for metric in settings.margins if metric != "lm_eval"]
    if part.kind == "fresh" and settings.superior:
        wanted.append(settings.superior)
    if part.kind == "packaged":
        wanted = ["exact_match"]
    for metric in ["lm_eval"] if part.kind == "lm_eval" else wanted:
        if metric not in part.scores:
            raise InputError(f"slice {name!r} has no scores of {metric}, which judging asks for: score its rows")
    for metric, paired in part.scores.items():
        _check_scores(name, metric, paired)
        better_of(metric, paired)
        _check_bound(name, part.kind, metric, paired, settings)
    rows = {metric: len(np.asarray(paired.champion)) for metric, paired in part.scores.items() if metric != AGREEMENT}
    if len(set(rows.values())) > 1:
        raise InputError(f"slice {name!r} has not the same rows in every metric: {rows}")


def compare(part: Slice, settings: JudgingSettings) -> dict[str, Comparison]:
    """Compare both models in every metric of two or more rows; gains are above 0 where they are better.

    Scores that are all 0 or 1 are compared as proportions, exactly, the others by the bootstrap.
    """
    found: dict[str, Comparison] = {}
    gains: dict[str, Gains] = {}
    bars = {metric: -(margin_of(part.kind, metric, settings) or 0.0) for metric in part.scores}
    for metric, paired in part.scores.items():
        champion, challenger = np.asarray(paired.champion, np.float64), np.asarray(paired.challenger, np.float64)
        if len(champion) < 2:
            continue
        if metric == CALIBRATION:
            gains[metric] = calibration_gains(champion, challenger)
            continue
        if better_of(metric, paired) == "lower":
            champion, challenger = challenger, champion
        if are_binary(champion) and are_binary(challenger):
            gained, lost = int((challenger > champion).sum()), int((challenger < champion).sum())
            found[metric] = compare_proportions(gained, lost, len(champion), bars[metric], settings.alpha)
        else:
            gains[metric] = _gains(challenger - champion, bound_of(metric, paired))
    found |= compare_means(gains, bars, settings.alpha, settings.resamples, settings.seed)
    return {metric: found[metric] for metric in part.scores if metric in found}


def _is_missing(value: Any) -> bool:
    import pandas as pd

    return bool(pd.isna(value)) or value == ""  # pd.NA is equal to nothing, and not unequal either


def are_binary(scores: Floats) -> bool:
    """Return whether every score is 0 or 1."""
    return bool(((scores == 0) | (scores == 1)).all())


def _are_shares(paired: Paired) -> bool:
    both = np.concatenate([np.asarray(paired.champion, np.float64), np.asarray(paired.challenger, np.float64)])
    return bool(((both >= 0) & (both <= 1)).all())


def _gains(seen: Floats, bound: float | None) -> Gains:
    """Gains of each row up to the bound; without one the largest seen stands for it, which is enough for no gate."""
    return Gains(seen, float(np.abs(seen).max())) if bound is None else Gains(np.clip(seen, -bound, bound), bound)


def _check_bound(name: str, kind: Kind, metric: str, paired: Paired, settings: JudgingSettings) -> None:
    """Refuse what is asked of a metric whose rows may lose any amount, or never as much as the margin."""
    shares = metric in METRICS and METRICS[metric].unit == "share" and metric != "lm_eval"
    if shares and not _are_shares(paired):
        raise InputError(f"slice {name!r} has {metric} scores below 0 or above 1: they must lie between 0 and 1")
    margin, bound = margin_of(kind, metric, settings), bound_of(metric, paired)
    if margin is None:
        return
    if bound is None:
        raise InputError(
            f"slice {name!r}: nobody says how much a row can lose in {metric}, so no number of rows shows that little "
            'is lost: set `bound` of its function ("redistill.metrics"), or leave it out of judging.gates and '
            "judging.superior; tasks of lm_eval need scores between 0 and 1"
        )
    if margin >= bound:
        raise InputError(
            f"slice {name!r}: {metric} may lose {margin:g} (judging.gates, and of a segment times "
            f"judging.segment_factor), and a row cannot lose more than {bound:g}: lower one of them"
        )


def _check_scores(name: str, metric: str, paired: Paired) -> None:
    wide = metric == CALIBRATION
    arrays = [np.asarray(paired.champion, np.float64), np.asarray(paired.challenger, np.float64)]
    if arrays[0].shape != arrays[1].shape or arrays[0].ndim != 1 + wide or (wide and arrays[0].shape[1] != 2):
        raise InputError(
            f"slice {name!r} has {arrays[0].shape} {metric} scores of the champion and {arrays[1].shape} of the "
            f"challenger: both need {'confidence and correctness' if wide else 'one score'} for each of the same rows"
        )
    for who, scores in zip(("champion", "challenger"), arrays, strict=True):
        if bad := int((~(np.abs(scores) < LARGEST)).sum()):
            told = f"{bad} {metric} scores of the {who} are no finite numbers, or {LARGEST:g} and more"
            raise InputError(f"slice {name!r}: {told}: score again")
        if wide and not ((scores >= 0) & (scores <= 1)).all():
            raise InputError(f"slice {name!r}: confidence and correctness of the {who} must lie between 0 and 1")
