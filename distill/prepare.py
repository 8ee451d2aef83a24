"""Prompts, a teacher and a student -> the request of a training: the teacher is asked, the rows are written down."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill import mixture
from distill.disagreement import disagreement
from distill.errors import Failure, InputError
from distill.request import TrainRequest
from distill.settings import StudentSettings, TrainingSettings
from distill.teacher_settings import TeacherSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from distill.prompts import Encoded
    from distill.signals import Keys, SignalStore
    from distill.teachers.chosen import AnyTeacher


def prepare(
    prompts: Sequence[str],
    *,
    student: StudentSettings,
    teacher: TeacherSettings,
    training: TrainingSettings | None = None,
    output: str | Path,
    on_line: Callable[[str], None] = print,
) -> TrainRequest:
    """Ask the teacher about each prompt that its store lacks, and return what distill.trainer.train takes.

    `output` gets mixture.safetensors, signals/ (unless teacher.signals names another store) and request.json; each
    prompt is a row of it, and what is cut or bought is told to `on_line`. Raises InputError before the teacher is
    loaded when there is nothing to learn, a checkpoint is missing, the tokenizers differ and teacher.cross_tokenizer is
    false, the settings contradict each other or `output` cannot be written, and after it was asked when `output` has
    another training, or fewer tokens than teacher.min_aligned are aligned; Failure when it withheld all of its answers.
    What an endpoint withheld is no row, and is told.
    """
    from distill.alignment.rows import aligned
    from distill.buying import obtain
    from distill.checkpoint import resolve
    from distill.prompts import encode, load_tokenizer
    from distill.signals import SignalStore
    from distill.teachers.chosen import teacher_of
    from distill.teachers.spoken import spoken
    from distill.training import belonging, places

    training, folder = training or TrainingSettings(), Path(output).expanduser().absolute()
    _check(prompts, teacher, training)
    start = resolve(student.base, "student.base").absolute()
    tokenizer = load_tokenizer(start)
    encoded = encode(tokenizer, prompts, student.max_prompt_tokens)
    texts = spoken(tokenizer, prompts, encoded) if teacher.backend == "openai" else None
    asked = teacher_of(student, teacher, spoken=texts)
    asked.check(tokenizer, teacher.top_k)
    places.writable(folder)
    asked_with = asked.asked_with(tokenizer)
    heard = encoded if asked_with is tokenizer else encode(asked_with, prompts, student.max_prompt_tokens)
    _fits(start, max(map(len, encoded.ids)) + student.max_new_tokens)
    _tell_truncated(encoded, "", student, on_line)
    if heard is not encoded:
        _tell_truncated(heard, " in the teacher's tokens", student, on_line)
    signals = _place(teacher.signals, folder / "signals")
    store = SignalStore(signals)
    found = obtain(store, asked, heard.ids, progress=_tenths(on_line))
    on_line(
        f"teacher: {len(prompts)} prompts, {found.bought_rows} asked and {found.reused_rows} found again "
        f"({found.bought_tokens} and {found.reused_tokens} tokens)"
    )
    learned, alignment = _answered(store, found.keys, on_line), None
    if teacher.cross_tokenizer:
        alignment, report = aligned(
            store, found.keys, asked, tokenizer, start, max_new_tokens=student.max_new_tokens, least=teacher.min_aligned
        )
        if report:
            on_line(report.told())
    request = TrainRequest(
        start=str(start),
        mixture=str(folder / "mixture.safetensors"),
        signals=signals,
        output=str(folder),
        epochs=training.epochs,
        learning_rate=training.learning_rate,
        settings=training,
        **_beside(asked, training),
    )
    partial = folder / "mixture.safetensors.partial"
    mixture.save(partial, [encoded.ids[at] for at in learned], found.keys[learned], alignment=alignment)
    belonging.check(request, partial)  # else the request of a finished training would be written over
    os.replace(partial, request.mixture)
    request.save(folder / "request.json")
    return request


def _tell_truncated(encoded: "Encoded", whose: str, student: StudentSettings, on_line: Callable[[str], None]) -> None:
    if encoded.truncated:
        on_line(
            f"{encoded.truncated} of {len(encoded.ids)} prompts are longer than student.max_prompt_tokens = "
            f"{student.max_prompt_tokens}{whose}: they lost the beginning of their text"
        )


def _beside(asked: "AnyTeacher", training: TrainingSettings) -> dict[str, Any]:
    """Return what a request has to say of the teacher, whose weights most trainings do without."""
    from distill.teachers.openai import OpenAITeacher

    if isinstance(asked, OpenAITeacher) or not (training.live_teacher or asked.kind != "topk"):
        return {}
    return {"teacher": str(asked.folder.absolute()), "teacher_sha256": asked.digest}


def _answered(store: "SignalStore", keys: "Keys", on_line: Callable[[str], None]) -> "NDArray[np.int64]":
    """Return the rows that the teacher answered, which are all but for some that an endpoint withheld."""
    from distill.signals import withheld

    missing = withheld(store, keys)
    if missing.all():
        raise Failure(f"the teacher withheld its answers to all {len(keys)} prompts: there is nothing to learn")
    if missing.any():
        on_line(
            f"teacher: {missing.sum()} of {len(keys)} answers were filtered, refused or empty: they are not learned"
        )
    return np.flatnonzero(~missing)


def _check(prompts: Sequence[str], teacher: TeacherSettings, training: TrainingSettings) -> None:
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError("prompts are to be a list of texts: give one string a prompt")
    if not prompts:
        raise InputError("there are no prompts: give those that the student is to answer as the teacher does")
    if wrong := disagreement(teacher, training):
        raise InputError(wrong[0])


def _fits(start: Path, tokens: int) -> None:
    """Raise InputError when a prompt and an answer of so many tokens together exceed the student's context."""
    from transformers import AutoConfig

    context = getattr(AutoConfig.from_pretrained(str(start)).get_text_config(), "max_position_embeddings", None)
    if context is not None and tokens > context:
        raise InputError(
            f"the longest prompt and an answer take {tokens} tokens, the student {str(start)!r} has a context of "
            f"{context}: lower student.max_prompt_tokens or student.max_new_tokens"
        )


def _place(given: str, default: Path) -> str:
    """Return where the signals lie, from everywhere on this machine."""
    return given if "://" in given else str(Path(given).expanduser().absolute() if given else default)


def _tenths(on_line: Callable[[str], None]) -> Callable[[int, int], None]:
    told = 0

    def progress(done: int, total: int) -> None:
        nonlocal told
        if done * 10 // total > told:
            told = done * 10 // total
            on_line(f"teacher: {done} of {total} prompts")

    return progress
