"""Which answers of the teacher are not to be learned: a label, its own samples or its own doubt speak against them.

A wrong answer that is learned costs more than a right one that is left out, so such rows are put in quarantine:
counted and reported, with the reason, instead of learned. Equal numbers stand for equal prompts and equal answers.
"""

import numpy as np
from numpy.typing import NDArray

from distill.mixture_settings import AuditSettings
from distill.teachers.protocol import AnswerSignal, AnySignal, HiddenSignal

LABEL, SAMPLES, UNSURE = "quarantined_label", "quarantined_samples", "quarantined_unsure"
WITHHELD = "quarantined_withheld"  # there is no answer: filtered, refused or empty


def contradicted(prompts: NDArray[np.int64], right: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return for which rows the labels of their prompt are against the teacher's answer, (N,).

    right: (N,) 1 where a row's label is the teacher's answer, 0 where it is another one, NaN where there is none. The
    rows of one prompt vote, those without a label go with them; at evens the teacher is believed.
    """
    vote = np.nan_to_num(1.0 - 2.0 * right)  # 1 against it, -1 for it, 0 where there is no label
    _, prompt = np.unique(prompts, return_inverse=True)
    against: NDArray[np.bool_] = (np.bincount(prompt, vote, minlength=1) > 0)[prompt]
    return against


def agreement(same: NDArray[np.bool_], given: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the share of a row's samples that are its greedy answer, (N,), NaN where none was given.

    same, given: (samples, N). A sample that an endpoint withheld says nothing, neither for the answer nor against it.
    """
    count = given.sum(0)
    share: NDArray[np.float64] = np.where(count > 0, (same & given).sum(0) / np.maximum(count, 1), np.nan)
    return share


def shared(prompts: NDArray[np.int64], agreed: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `agreed` with what is known of a prompt for all its rows, (N,): the least, as they have one answer.

    A row that was not sampled itself would else be learned in the place of its duplicate in quarantine.
    """
    _, prompt = np.unique(prompts, return_inverse=True)
    least = np.full(int(prompt.max(initial=-1)) + 1, np.inf)
    np.minimum.at(least, prompt, np.where(np.isnan(agreed), np.inf, agreed))
    found = least[prompt]
    return np.where(np.isinf(found), np.nan, found)


def mean_logprob(signal: AnySignal) -> float:
    """Return the mean log-probability of an answer's tokens [nats/token].

    A token that is not among the k likeliest has at most the tail's probability, which is taken for it. NaN where the
    teacher gave nothing but the answer.
    """
    if isinstance(signal, AnswerSignal):
        return float("nan")
    if isinstance(signal, HiddenSignal):
        return float(signal.logprobs.astype(np.float64).mean())
    with np.errstate(divide="ignore"):  # an empty tail has no probability at all
        least = np.log(signal.tail.astype(np.float64))
    kept = signal.ids == signal.answer[:, None]
    own = np.where(kept, signal.logprobs.astype(np.float64), -np.inf).max(1)
    return float(np.where(kept.any(1), own, least).mean())


def sampled_rows(
    eligible: NDArray[np.bool_], first: NDArray[np.bool_], order: NDArray[np.uint64], count: int
) -> NDArray[np.int64]:
    """Return at most `count` eligible rows to ask for samples, sorted: those of `first` before the others."""
    rows = np.flatnonzero(eligible)
    chosen = rows[np.lexsort((order[rows], ~first[rows]))][:count]
    return np.sort(chosen)


def quarantine(
    against: NDArray[np.bool_],
    agreed: NDArray[np.float64],
    logprob: NDArray[np.float64],
    settings: AuditSettings,
    withheld: NDArray[np.bool_] | None = None,
) -> NDArray[np.str_]:
    """Return why each row is in quarantine, (N,); empty where it is not.

    against: of `contradicted`. agreed: of `agreement`, NaN where no sample was asked for. logprob: of `mean_logprob`.
    withheld: where the teacher gave no answer.
    """
    doubtful = logprob < settings.min_logprob if settings.min_logprob else np.zeros(len(logprob), np.bool_)
    with np.errstate(invalid="ignore"):
        divided = agreed < settings.agreement
    missing = np.zeros(len(logprob), np.bool_) if withheld is None else withheld
    signs = [(missing, WITHHELD), (against & settings.labels, LABEL), (divided, SAMPLES), (doubtful, UNSURE)]
    reasons: NDArray[np.str_] = np.select([sign for sign, _ in signs], [name for _, name in signs], "")
    return reasons
