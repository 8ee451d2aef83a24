"""Settings -> the teacher that they name, as one that scores answers which another model has given."""

import os
from collections.abc import Callable, Sequence

from distill.errors import InputError
from distill.teacher_settings import TeacherSettings
from distill.teachers.chosen import API_KEY
from distill.teachers.local_scores import LocalScores
from distill.teachers.sglang_scores import SGLangScores


def scorer_of(
    teacher: TeacherSettings, *, urls: Sequence[str] | Callable[[], Sequence[str]] | None = None, api_key: str = ""
) -> LocalScores | SGLangScores:
    """Return the teacher of these settings; urls and api_key as of distill.teachers.chosen.

    Raises InputError for a teacher that answers and says nothing of the answers of others.
    """
    # One token is made after what is scored.
    options = {"top_k": teacher.top_k, "max_new_tokens": 1, "signals_format": teacher.signals_format}
    if teacher.backend == "local":
        return LocalScores(teacher.model, batch_size=teacher.batch_size, device=teacher.device, **options)
    if teacher.backend != "sglang":
        raise InputError(
            f"teacher.backend {teacher.backend!r} says nothing of answers it has not given: set training.mode to "
            "off_policy, or use a local teacher or SGLang"
        )
    return SGLangScores(
        teacher.model,
        teacher.urls if urls is None else urls,
        api_key=api_key or os.environ.get(API_KEY, ""),
        concurrency=teacher.concurrency,
        request_seconds=teacher.request_seconds,
        outage_seconds=teacher.outage_seconds,
        job_seconds=teacher.job_seconds or float("inf"),
        **options,
    )
