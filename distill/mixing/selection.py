"""What becomes of each row that was drawn: it is trained, with its weight, or reported with the reason why not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill.errors import Failure
from distill.mixing import audit, duplicates
from distill.mixture_settings import MixtureSettings

TRAINED = "trained"
DUPLICATE, NEAR_DUPLICATE = "duplicate_exact", "duplicate_near"
HELD, HELD_BEFORE = "held_for_teacher_error", "held_before"
OUTCOMES = (
    TRAINED,
    DUPLICATE,
    NEAR_DUPLICATE,
    audit.LABEL,
    audit.SAMPLES,
    audit.UNSURE,
    audit.WITHHELD,
    HELD,
    HELD_BEFORE,
)


@dataclass(frozen=True)
class Candidates:
    """What is known of N rows when they are chosen from; those of the window stand before those of the replay."""

    prompts: Sequence[NDArray[np.int32]]
    answers: NDArray[np.int64]  # (N,) equal numbers for equal answers of the teacher
    logprob: NDArray[np.float64]  # (N,) the teacher's mean token log-probability
    replay: NDArray[np.bool_]  # (N,)
    differs: NDArray[np.bool_]  # (N,) the champion answers otherwise; False where that is not known
    refused: NDArray[np.str_]  # (N,) why a row is not to be learned, as decided before; empty: it may be
    order: NDArray[np.uint64]  # (N,) a random number for each row


@dataclass(frozen=True)
class Chosen:
    """What became of N rows."""

    outcome: NDArray[np.str_]  # (N,) one of OUTCOMES
    stands: NDArray[np.int64]  # (N,) the row that is learned in a duplicate's place; a row's own number otherwise
    weights: NDArray[np.float32]  # (N,) 0 unless trained; those of the trained have mean 1

    @property
    def trained(self) -> NDArray[np.int64]:
        """The numbers of the rows that are trained, sorted."""
        return np.flatnonzero(self.outcome == TRAINED)


def choose(rows: Candidates, settings: MixtureSettings) -> Chosen:
    """Return what becomes of each row.

    In this order: what was refused stays out; of equal prompts the first is kept, and of nearly equal ones with the
    same answer too (another answer is a boundary to be learned, not a duplicate); the teacher-error set is drawn from
    rows that stand for no other, so that little weight is lost with them.
    """
    outcome = np.where(rows.refused == "", TRAINED, rows.refused).astype(f"<U{max(map(len, OUTCOMES))}")
    stands = np.arange(len(outcome))
    left = np.flatnonzero(outcome == TRAINED)
    stands[left] = left[duplicates.same([rows.prompts[int(at)] for at in left])]
    outcome[stands != np.arange(len(stands))] = DUPLICATE
    left = np.flatnonzero(outcome == TRAINED)
    if settings.near_duplicates:
        prompts = [rows.prompts[int(at)] for at in left]
        stands[left] = left[duplicates.near(prompts, rows.answers[left], settings.near_duplicates)]
        outcome[left[stands[left] != left]] = NEAR_DUPLICATE
        stands = stands[stands]  # an exact duplicate of a near one
    outcome[_teacher_errors(rows, outcome == TRAINED, stands, settings)] = HELD
    return Chosen(outcome, stands, _weights(rows, outcome, stands, settings))


def counts(outcome: NDArray[np.str_]) -> dict[str, int]:
    """Return how many rows each outcome has, in the order of OUTCOMES; Failure unless these are all the rows."""
    found = {name: int((outcome == name).sum()) for name in OUTCOMES}
    if sum(found.values()) != len(outcome):
        unknown = sorted(set(outcome.tolist()) - set(OUTCOMES))
        raise Failure(f"{len(outcome)} rows came in, {sum(found.values())} are accounted for: {unknown} is no outcome")
    return found


def _teacher_errors(
    rows: Candidates, left: NDArray[np.bool_], stands: NDArray[np.int64], settings: MixtureSettings
) -> NDArray[np.int64]:
    """Return the rows of the window that are held out because the teacher is sure and the champion differs."""
    alone = np.bincount(stands, minlength=len(stands)) == 1
    sure = rows.logprob >= settings.sure_logprob
    eligible = np.flatnonzero(left & ~rows.replay & rows.differs & sure & alone)
    count = min(settings.error_rows, int(len(eligible) * settings.error_share))
    return eligible[np.argsort(rows.order[eligible], kind="stable")[:count]]


def _weights(
    rows: Candidates, outcome: NDArray[np.str_], stands: NDArray[np.int64], settings: MixtureSettings
) -> NDArray[np.float32]:
    """Return what each row counts, (N,).

    A row counts for its duplicates too: the mean over the mixture stays the mean over the traffic, which is what the
    verdict is about; leaving them out only saves the time of learning them again.
    """
    found = np.zeros(len(outcome), np.float32)
    trained = np.flatnonzero(outcome == TRAINED)
    if not len(trained):
        return found
    times = np.bincount(stands, minlength=len(stands))[trained].astype(np.float64)
    _, answer = np.unique(rows.answers[trained], return_inverse=True)
    frequency = np.bincount(answer, times)[answer]
    weights = times * frequency**-settings.class_balance * np.where(rows.differs[trained], settings.drift_weight, 1.0)
    weights = capped(weights, settings.max_weight)
    found[trained] = weights / weights.mean()
    return found


def capped(weights: NDArray[np.float64], most: float) -> NDArray[np.float64]:
    """Return the weights cut so that none is more than `most` times their mean after cutting.

    One row of great weight would fill a step's gradient, and clipping would then take away what the weight was for.
    """
    rows, largest = len(weights), np.sort(weights)[::-1]
    k = np.arange(rows)[most * np.arange(rows) < rows]
    rest = np.cumsum(largest[::-1])[::-1][k]  # the sum of all but the k largest
    caps = most * rest / (rows - most * k)  # with the k largest cut at c: c = most * (k * c + rest) / rows
    fits = largest[k] <= caps * (1 + 1e-12)
    cut: NDArray[np.float64] = np.minimum(weights, caps[fits.argmax()] if fits.any() else largest[-1])
    return cut
