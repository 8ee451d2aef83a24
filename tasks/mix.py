"""Mixing: what the teacher said is audited, and each row is trained with its weight, or reported with a reason.

signals/mixture.safetensors       the rows that are trained
signals/rows.parquet              every row that came in, with what became of it; no prompts
signals/teacher_errors.parquet    the rows that are held out because the champion fails on them; no prompts
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distill import mixture
from distill.errors import Failure
from distill.mixing import audit, duplicates, replay, selection
from distill.mixing.selection import Candidates, Chosen
from distill.obtained import Obtained
from distill.signals import SignalStore
from distill.teachers.protocol import ENDINGS, FILTERED, WHOLE, AnswerSignal
from tasks import learned, watch
from tasks.run import Run

if TYPE_CHECKING:
    from distill.alignment.alignment import Alignment
    from tasks.teaching import Teaching

ROWS_FILE, MIXTURE_FILE = "rows.parquet", "mixture.safetensors"


@dataclass(frozen=True)
class Heard:
    """What the teacher, and for the window's rows the champion, answered to N rows."""

    texts: NDArray[np.str_]  # (N,) the teacher's answers
    answers: NDArray[np.int64]  # (N,) equal numbers for equal answers
    logprob: NDArray[np.float64]  # (N,) the teacher's mean token log-probability, NaN where it gives none
    champion: NDArray[np.object_]  # (N,) the champion's answers, None where it was not asked
    ending: NDArray[np.uint8]  # (N,) of ENDINGS, how the teacher's answer came to its end, as far as it says

    @property
    def withheld(self) -> NDArray[np.bool_]:
        """Where the teacher gave no answer: filtered, refused or empty, (N,)."""
        return self.ending >= FILTERED

    @property
    def differs(self) -> NDArray[np.bool_]:
        """Where the champion is known to answer otherwise, (N,)."""
        known = np.array([text is not None for text in self.champion], np.bool_)
        given = np.array([text or "" for text in self.champion], str)
        found: NDArray[np.bool_] = known & ~self.withheld & (np.char.strip(given) != np.char.strip(self.texts))
        return found


def heard(run: Run, rows: pd.DataFrame, start: Path, obtained: Obtained, settings: "Teaching") -> Heard:
    """Return what was answered to the rows whose signals were obtained; the champion answers what the log lacks."""
    from tasks.teaching import asked_with

    store, tokenizer = SignalStore(settings.signals), asked_with(start, settings)
    signals = [store.get(key.tobytes()) for key in obtained.keys]
    texts = tokenizer.batch_decode([signal.answer for signal in signals], skip_special_tokens=True)
    logprob = [audit.mean_logprob(signal) for signal in signals]
    champion = np.full(len(rows), None, object)
    if run.request.champion:
        is_new = ~rows["replay"].to_numpy()
        asked = rows[is_new]
        known = watch.answered(
            asked, Path(run.request.champion.checkpoint), settings, "mixture: champion's answers",
            run.request.champion.version,
        )  # fmt: skip
        champion[is_new] = known["response"].astype(str).to_numpy(object)
    spoken = np.array(texts, str)
    ending = [signal.ending[0] if isinstance(signal, AnswerSignal) else WHOLE for signal in signals]
    return Heard(
        spoken, np.unique(spoken, return_inverse=True)[1], np.array(logprob), champion, np.array(ending, np.uint8)
    )


def labelled(rows: pd.DataFrame, told: Heard) -> NDArray[np.float64]:
    """Return whether each row's label is the teacher's answer, 1 or 0, and NaN where one of them is missing, (N,)."""
    label = rows["reference"]
    same = np.char.strip(label.fillna("").to_numpy(str)) == np.char.strip(told.texts)
    return np.where(label.isna() | told.withheld, np.nan, same.astype(np.float64))


def to_sample(rows: pd.DataFrame, told: Heard, right: NDArray[np.float64], settings: "Teaching") -> NDArray[np.int64]:
    """Return the rows of the window to sample answers for, those that the champion answers differently first.

    Those that a label speaks against are in quarantine without it.
    """
    if not settings.audit.samples:
        return np.zeros(0, np.int64)
    open_ = (
        ~rows["replay"].to_numpy()
        & ~told.withheld
        & ~(right == 0 if settings.audit.labels else np.zeros(len(rows), np.bool_))
    )
    order = replay.random_order(rows["request_id"], settings.training.seed)
    return audit.sampled_rows(open_, told.differs, order, settings.audit.sample_rows)


def mix(
    run: Run,
    rows: pd.DataFrame,
    prompts: list[NDArray[np.int32]],
    told: Heard,
    agreed: NDArray[np.float64],
    settings: "Teaching",
) -> Chosen:
    """Return what becomes of each row; agreed: (N,) share of a row's samples that are its answer, NaN without any.

    Raises Failure when no row is left to be trained.
    """
    same, right = duplicates.same(prompts), labelled(rows, told)
    agreed = audit.shared(same, agreed)
    against = audit.contradicted(same, right)
    refused = audit.quarantine(against, agreed, told.logprob, settings.audit, told.withheld)
    held = rows["held_before"].to_numpy(dtype=bool)
    refused = np.where(np.isin(same, same[held]), selection.HELD_BEFORE, refused)
    chosen = selection.choose(
        Candidates(
            prompts,
            told.answers,
            told.logprob,
            rows["replay"].to_numpy(),
            told.differs,
            refused,
            replay.random_order(rows["request_id"], settings.training.seed),
        ),
        settings.mixture,
    )
    if not len(chosen.trained):
        told_counts = ", ".join(f"{n} {name}" for name, n in selection.counts(chosen.outcome).items() if n)
        raise Failure(
            f"of {len(rows)} rows none is left to learn from ({told_counts}): the teacher is not to be trusted on this "
            "window; mend the labels or the teacher, or loosen the settings of [audit]"
        )
    return chosen


def write(
    folder: Path,
    rows: pd.DataFrame,
    prompts: list[NDArray[np.int32]],
    obtained: Obtained,
    told: Heard,
    chosen: Chosen,
    alignment: "Alignment | None" = None,
) -> dict[str, Any]:
    """Write the mixture and its two tables, and return the counts: all rows, and how many each outcome has.

    prompts: in the student's tokens. alignment: of the rows that are trained, where the teacher's tokens are others.
    """
    trained = chosen.trained
    mixture.save(
        folder / MIXTURE_FILE,
        [prompts[at] for at in trained],
        obtained.keys[trained],
        chosen.weights[trained],
        alignment=alignment,
    )
    right = labelled(rows, told)
    names = rows["request_id"].to_numpy(str)
    table = rows[["request_id", "timestamp", "window", "segment", "replay"]].assign(
        outcome=chosen.outcome,
        weight=chosen.weights,
        learned_as=np.where(chosen.outcome == selection.TRAINED, names, names[chosen.stands]),
        teacher_logprob=told.logprob,
        champion_differs=told.differs,
        label_agrees=pd.Series(right == 1, dtype="boolean").mask(np.isnan(right)),
    )
    table.to_parquet(folder / ROWS_FILE, index=False)
    held = chosen.outcome == selection.HELD
    errors = {"request_id": names, "teacher_response": told.texts, "champion_response": told.champion}
    pd.DataFrame({name: values[held] for name, values in errors.items()}).to_parquet(
        folder / learned.ERRORS_FILE, index=False
    )
    labels = int((~np.isnan(right)).sum())
    counts = {"rows": len(rows), "labelled_rows": labels, "outcomes": selection.counts(chosen.outcome)}
    if told.ending.any():  # else they are all whole, or it is not known
        counts["answers"] = {name: int((told.ending == at).sum()) for at, name in enumerate(ENDINGS)}
    return counts
