"""The teacher's answers in the student's tokens: which of them stand where one of the teacher's tokens stood."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distill.alignment.alignment import NONE, Alignment
from distill.alignment.pieces import plain, spoken, written
from distill.alignment.spans import Span, spans
from distill.alignment.vocabulary import shared_share, token_map
from distill.errors import InputError
from distill.prompts import Tokenizer


class Answer(NamedTuple):
    """One answer of S tokens of the student."""

    ids: NDArray[np.int32]  # (S,)
    theirs: NDArray[np.int32]  # (S,) number of the teacher's token that is compared, NONE where none is
    matched: NDArray[np.bool_]  # (S,) both say the same token; elsewhere what is compared are sorted probabilities
    cut: bool  # it had more tokens
    unknown: int  # of its tokens stand for something that the student's tokenizer cannot write


@dataclass(frozen=True)
class Report:
    """How much of what the teacher said the student's tokens could take over."""

    answer_tokens: int  # of the student
    matched_tokens: int  # that stand where the same token of the teacher stood: their distributions are compared
    ranked_tokens: int  # that begin where some token of the teacher began: sorted probabilities are compared
    shared_vocabulary: float  # share of the teacher's tokens that the student has
    cut_answers: int  # longer than the student may answer
    unknown_tokens: int  # of the student's answer tokens that say nothing but that it has no token for that text

    @property
    def aligned_share(self) -> float:
        """Share of the student's answer tokens that stand where the same token of the teacher stood."""
        return self.matched_tokens / max(1, self.answer_tokens)

    def told(self) -> str:
        """Return the report in words."""
        cut = f"; {self.cut_answers} answers are cut to student.max_new_tokens" if self.cut_answers else ""
        cut += f"; {self.unknown_tokens} tokens are unknown to the student's tokenizer" if self.unknown_tokens else ""
        return (
            f"another tokenizer: {self.aligned_share:.1%} of {self.answer_tokens} answer tokens aligned, "
            f"{self.ranked_tokens / max(1, self.answer_tokens):.1%} compared by rank, {self.shared_vocabulary:.1%} of "
            f"the teacher's vocabulary shared{cut}"
        )


class Aligner:
    """Makes the student's answers out of the teacher's.

    stops: the teacher's tokens that end an answer; end: the student's. An answer has at most `longest` tokens, as
    those that the student gives.
    """

    def __init__(self, teacher: Tokenizer, student: Tokenizer, *, stops: Sequence[int], end: int, longest: int) -> None:
        self.teacher, self.plain = teacher, plain(student)
        self.unknown = NONE if student.unk_token_id in (None, end) else int(student.unk_token_id)
        self.stops, self.end, self.longest = set(stops), end, longest
        self.token_map = token_map(teacher, student, stops, end)
        self._known: dict[bytes, Answer] = {}

    def answer(self, said: NDArray[np.int32]) -> Answer:
        """Return the student's answer for the teacher's tokens; one without any text is its end alone."""
        key = said.tobytes()
        if key not in self._known:
            self._known[key] = self._answer(said)
        return self._known[key]

    def align(self, answers: Iterable[NDArray[np.int32]]) -> tuple[Alignment, Report]:
        """Return the answers of some rows, and how much of them is aligned."""
        found = [self.answer(said) for said in answers]
        empty = [np.zeros(0, np.int32)]
        made = Alignment(
            np.concatenate([row.ids for row in found] or empty),
            np.cumsum([0, *(len(row.ids) for row in found)]),
            np.concatenate([row.theirs for row in found] or empty),
            np.concatenate([row.matched for row in found] or [np.zeros(0, np.bool_)]),
            self.token_map,
        )
        matched, compared = int(made.matched.sum()), int((made.theirs != NONE).sum())
        return made, Report(
            answer_tokens=len(made.answers),
            matched_tokens=matched,
            ranked_tokens=compared - matched,
            shared_vocabulary=shared_share(self.token_map),
            cut_answers=sum(row.cut for row in found),
            unknown_tokens=sum(row.unknown for row in found),
        )

    def _answer(self, said: NDArray[np.int32]) -> Answer:
        ended = bool(len(said)) and int(said[-1]) in self.stops
        body = said[:-1] if ended else said
        text, ends = spoken(self.teacher, body)
        ids, borders = written(self.plain, text)
        theirs, matched = np.full(len(ids) + 1, NONE, np.int32), np.zeros(len(ids) + 1, np.bool_)
        for span in spans(ends, borders):
            self._compare(span, body, ids, theirs, matched)
        if ended:
            theirs[-1], matched[-1] = len(body), True
        whole = len(ids) + (ended or not ids)
        kept = slice(0, min(whole, self.longest))
        answer = np.array([*ids, self.end], np.int32)
        unknown = int((answer[kept] == self.unknown).sum())
        return Answer(answer[kept], theirs[kept], matched[kept], whole > self.longest, unknown)

    def _compare(
        self, span: Span, body: NDArray[np.int32], ids: list[int], theirs: NDArray[np.int32], matched: NDArray[np.bool_]
    ) -> None:
        """Say what is compared in a span: token by token where both cut it alike, else where it begins.

        There both go on from the same text; further inside each has read something else.
        """
        (first, last), (own, end) = span
        if last - first == end - own and self.token_map[body[first:last]].tolist() == ids[own:end]:
            theirs[own:end], matched[own:end] = np.arange(first, last), True
        else:
            theirs[own] = first


def end_of(folder: Path, tokenizer: Tokenizer) -> int:
    """Return the token that ends a student's answers."""
    return int(stops_of(folder, tokenizer)[0] if tokenizer.eos_token_id is None else tokenizer.eos_token_id)


def stops_of(folder: Path, tokenizer: Tokenizer) -> list[int]:
    """Return the tokens that end a checkpoint's answers, in order; InputError when there is none."""
    from transformers import AutoConfig, GenerationConfig

    from distill.generation import stop_tokens

    try:
        own = GenerationConfig.from_pretrained(str(folder))
    except OSError:  # the checkpoint has none of its own
        own = GenerationConfig.from_model_config(AutoConfig.from_pretrained(str(folder)))
    return stop_tokens(own, tokenizer)


def require(report: Report, least: float, teacher: str, student: str, slack: float = 1.0) -> None:
    """Raise InputError, with the share, when fewer of the answers' tokens are aligned than teacher.min_aligned.

    slack: of so few answers that their share may be off, how much of `least` is enough.
    """
    if report.aligned_share < slack * least:
        raise InputError(
            f"{report.matched_tokens} of {report.answer_tokens} answer tokens, {report.aligned_share:.1%}, of the "
            f"student {student!r} stand where the same token of teacher {teacher!r} stood, but teacher.min_aligned is "
            f"{least:.1%} (they share {report.shared_vocabulary:.1%} of the teacher's vocabulary): choose a student "
            "whose tokenizer is nearer to the teacher's, or lower teacher.min_aligned; what the teacher said is kept"
        )
