"""By which settings the teacher is asked, and the teacher that they name."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from distill.checkpoint import resolve
from distill.errors import InputError
from distill.mixture_settings import AuditSettings, MixtureSettings
from distill.on_policy_settings import OnPolicySettings
from distill.settings import StudentSettings, TrainingSettings
from distill.teacher_settings import TeacherSettings
from monitoring.settings import TrafficSettings
from tasks import teacher_server

if TYPE_CHECKING:
    from distill.generation import Sampling
    from distill.prompts import Encoded
    from distill.teachers.chosen import AnyTeacher
    from distill.teachers.local_scores import LocalScores
    from distill.teachers.sglang_scores import SGLangScores
    from distill.teachers.spoken import Spoken


@dataclass(frozen=True)
class Teaching:
    """The settings that the teacher is asked by, and the store of its signals."""

    student: StudentSettings
    teacher: TeacherSettings
    training: TrainingSettings
    traffic: TrafficSettings
    signals: str
    ledger: Path
    mixture: MixtureSettings = field(default_factory=MixtureSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    metrics: Path | None = None  # textfile that counts what was asked
    on_policy: OnPolicySettings = field(default_factory=OnPolicySettings)


def teacher_of(settings: Teaching, drawn: "Sampling | None" = None, spoken: "Spoken | None" = None) -> "AnyTeacher":
    """Return the teacher that the settings name; its weights are loaded when it is asked. spoken: of `spoken_to`."""
    from distill.teachers import chosen

    asked, key = settings.teacher, api_key(settings)
    if asked.backend == "openai":
        return chosen.teacher_of(settings.student, asked, drawn, api_key=key, spoken=spoken)
    urls = teacher_server.addresses(asked, str(resolve(asked.model, "teacher.model")), key)
    return chosen.teacher_of(settings.student, asked, drawn, urls=urls, api_key=key)


def spoken_to(settings: Teaching, tokenizer: Any, prompts: Sequence[str], encoded: "Encoded") -> "Spoken | None":
    """Return the prompts as text for a teacher that reads text; None for one that reads the student's tokens."""
    if settings.teacher.backend != "openai":
        return None
    from distill.teachers.spoken import spoken

    return spoken(tokenizer, prompts, encoded)


def asked_with(start: Path, settings: Teaching) -> Any:
    """Return the tokenizer of what the teacher is asked and answers: the student's, or its own where they may differ.

    start: the student's checkpoint. Raises InputError for one that signals could not teach.
    """
    from distill.prompts import load_tokenizer

    tokenizer = load_tokenizer(start)
    return teacher_of(settings).asked_with(tokenizer) if settings.teacher.cross_tokenizer else tokenizer


def scorer_of(settings: Teaching) -> "LocalScores | SGLangScores":
    """Return the same teacher as one that scores answers which it has not given."""
    from distill.teachers import scorers

    asked, key = settings.teacher, api_key(settings)
    urls = teacher_server.addresses(asked, str(resolve(asked.model, "teacher.model")), key)
    return scorers.scorer_of(asked, urls=urls, api_key=key)


def api_key(settings: Teaching) -> str:
    """Return the servers' API key where a Secret block holds it."""
    return secret(settings.teacher.api_key_secret, "teacher.api_key_secret")


def secret(name: str, setting: str) -> str:
    """Return what a Prefect Secret block holds, nothing without a name; InputError where there is no such block."""
    if not name:
        return ""
    from prefect.blocks.system import Secret

    try:
        return str(cast("Secret[str]", Secret.load(name)).get())
    except ValueError as error:
        raise InputError(
            f"{setting} {name!r}: Prefect has no such Secret block; make one, or set the key in the environment instead"
        ) from error
