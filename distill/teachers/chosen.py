"""Settings -> the teacher that they name."""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from distill.errors import InputError
from distill.generation import Sampling
from distill.settings import StudentSettings
from distill.teacher_settings import TeacherSettings
from distill.teachers.local import LocalTeacher
from distill.teachers.openai import OpenAITeacher
from distill.teachers.sglang import SGLangTeacher
from distill.teachers.spoken import Spoken

AnyTeacher: TypeAlias = LocalTeacher | SGLangTeacher | OpenAITeacher
API_KEY = "REDISTILL_TEACHER_API_KEY"  # in the environment, never in a settings file


def teacher_of(
    student: StudentSettings,
    teacher: TeacherSettings,
    drawn: Sampling | None = None,
    *,
    urls: Sequence[str] | Callable[[], Sequence[str]] | None = None,
    api_key: str = "",
    spoken: Spoken | None = None,
) -> AnyTeacher:
    """Return the teacher of these settings. Of drawn answers one log-probability is kept: nobody learns from them.

    urls: of SGLang servers, in place of those in the settings. api_key: what they were started with; empty: that of
    the environment, if any. spoken: the prompts as text, without which a teacher of backend openai cannot be.
    """
    limits: dict[str, Any] = {
        "api_key": api_key or os.environ.get(API_KEY, ""),
        "concurrency": teacher.concurrency,
        "request_seconds": teacher.request_seconds,
        "outage_seconds": teacher.outage_seconds,
        "job_seconds": teacher.job_seconds or float("inf"),
    }
    if teacher.backend == "openai":
        if spoken is None:
            raise InputError("teacher.backend openai reads text, and here token ids alone are known: use another one")
        return OpenAITeacher(
            teacher.served_model,
            teacher.urls,
            spoken=spoken,
            max_new_tokens=student.max_new_tokens,
            revision=teacher.revision,
            endpoint=teacher.endpoint,
            limit_name=teacher.limit_name,
            drawn=drawn,
            **limits,
        )
    options: dict[str, Any] = {
        "top_k": teacher.top_k,
        "max_new_tokens": student.max_new_tokens,
        "drawn": drawn,
        "signals_format": "topk:1" if drawn else teacher.signals_format,
        "cross_tokenizer": teacher.cross_tokenizer,
    }
    if teacher.backend == "local":
        return LocalTeacher(teacher.model, batch_size=teacher.batch_size, device=teacher.device, **options)
    return SGLangTeacher(teacher.model, teacher.urls if urls is None else urls, **limits, **options)
