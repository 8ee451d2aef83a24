"""By which settings the teacher is asked, and the teacher that they name."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from distill.checkpoint import resolve
from distill.errors import InputError
from distill.on_policy_settings import OnPolicySettings
from distill.settings import AuditSettings, MixtureSettings, StudentSettings, TeacherSettings, TrainingSettings
from monitoring.settings import TrafficSettings
from tasks import teacher_server

if TYPE_CHECKING:
    from distill.generation import Sampling
    from distill.teachers.local import LocalTeacher
    from distill.teachers.local_scores import LocalScores
    from distill.teachers.sglang import SGLangTeacher
    from distill.teachers.sglang_scores import SGLangScores


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
    on_policy: OnPolicySettings = field(default_factory=OnPolicySettings)


def teacher_of(settings: Teaching, drawn: "Sampling | None" = None) -> "LocalTeacher | SGLangTeacher":
    """Return the teacher that the settings name; its weights are loaded when it is asked."""
    from distill.teachers import chosen

    asked, key = settings.teacher, api_key(settings)
    urls = teacher_server.addresses(asked, str(resolve(asked.model, "teacher.model")), key)
    return chosen.teacher_of(settings.student, asked, drawn, urls=urls, api_key=key)


def scorer_of(settings: Teaching) -> "LocalScores | SGLangScores":
    """Return the same teacher as one that scores answers which it has not given."""
    from distill.teachers import scorers

    asked, key = settings.teacher, api_key(settings)
    urls = teacher_server.addresses(asked, str(resolve(asked.model, "teacher.model")), key)
    return scorers.scorer_of(asked, urls=urls, api_key=key)


def api_key(settings: Teaching) -> str:
    """Return the servers' API key where a Secret block holds it."""
    return _secret(settings.teacher.api_key_secret)


def _secret(name: str) -> str:
    """Return what a Prefect Secret block holds, nothing without a name; InputError where there is no such block."""
    if not name:
        return ""
    from prefect.blocks.system import Secret

    try:
        return str(cast("Secret[str]", Secret.load(name)).get())
    except ValueError as error:
        raise InputError(
            f"teacher.api_key_secret {name!r}: Prefect has no such Secret block; make one, or set the key in the "
            "environment instead"
        ) from error
