"""Rows whose signals are in the store -> their answers in the tokens of a student with another tokenizer."""

from pathlib import Path

from distill.alignment.alignment import Alignment
from distill.alignment.answers import Aligner, Report, end_of, require, stops_of
from distill.prompts import Tokenizer
from distill.signals import Keys, SignalStore
from distill.teachers.chosen import AnyTeacher
from distill.teachers.of_checkpoint import OfCheckpoint


def aligned(
    store: SignalStore,
    keys: Keys,
    teacher: AnyTeacher,
    student: Tokenizer,
    start: Path,
    *,
    max_new_tokens: int,
    least: float,
    slack: float = 1.0,
) -> tuple[Alignment | None, Report | None]:
    """Return the alignment of some rows' answers and a report of it, or None where both have one tokenizer.

    start: the student's checkpoint. Raises InputError when the aligned share is below `slack` times `least`.
    """
    if not isinstance(teacher, OfCheckpoint) or teacher.asked_with(student) is student:
        return None, None
    aligner = Aligner(
        teacher.tokenizer,
        student,
        stops=stops_of(teacher.folder, teacher.tokenizer),
        end=end_of(start, student),
        longest=max_new_tokens,
    )
    alignment, report = aligner.align(store.get(key.tobytes()).answer for key in keys)
    require(report, least, teacher.model, str(start), slack)
    return alignment, report
