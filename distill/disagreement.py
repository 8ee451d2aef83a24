"""What settings of teacher and training ask of each other and cannot have."""

from distill.mixture_settings import AuditSettings, MixtureSettings
from distill.on_policy_settings import OnPolicySettings
from distill.settings import TrainingSettings
from distill.teacher_settings import TeacherSettings

_NOTHING_ELSE = "teacher.backend openai gives answers and says nothing of how likely they are"


def disagreement(teacher: TeacherSettings, training: TrainingSettings) -> tuple[str, tuple[str, ...]] | None:
    """Return what the training asks of teacher or processes and will not get, and the keys concerned; None if nothing.

    It is known before the teacher is paid.
    """
    hidden = teacher.signals_format.startswith("hidden")
    if (all_processes := training.nodes * training.processes) % training.replicas:
        return (
            f"{training.nodes} x {training.processes} processes cannot be divided among {training.replicas} replicas: "
            f"set training.replicas to a divisor of {all_processes}",
            ("training.replicas", "training.processes", "training.nodes"),
        )
    if training.mode == "on_policy" and (wrong := _no_rounds(teacher, training)):
        return wrong
    if teacher.backend == "openai":
        return _answers_alone(teacher, training)
    if teacher.cross_tokenizer and (hidden or training.live_teacher):
        return (
            "of a teacher with another tokenizer a student learns the likeliest tokens alone, which are text: set "
            "teacher.signals_format to topk:K and training.live_teacher to false, or teacher.cross_tokenizer to false",
            ("teacher.cross_tokenizer", "teacher.signals_format", "training.live_teacher"),
        )
    if training.live_teacher:
        return None
    if training.attention_weight:
        return (
            "attention maps are not stored: set training.live_teacher to true, or training.attention_weight to 0",
            ("training.attention_weight", "training.live_teacher"),
        )
    if training.hidden_weight and not hidden:
        return (
            "hidden states are not among top-k signals: set training.live_teacher to true, or teacher.signals_format "
            "to hidden:bf16",
            ("training.hidden_weight", "training.live_teacher", "teacher.signals_format"),
        )
    if training.hidden_weight and training.layers != "last":
        return (
            "signals hold the last layer's states alone: set training.layers to last, or training.live_teacher to true",
            ("training.layers", "training.live_teacher"),
        )
    if training.temperature != 1 and not hidden:
        return (
            "the mass of the tail of top-k is known at temperature 1 alone: set training.temperature to 1, or "
            "training.live_teacher to true, or teacher.signals_format to hidden:bf16",
            ("training.temperature", "training.live_teacher", "teacher.signals_format"),
        )
    return None


def _no_rounds(teacher: TeacherSettings, training: TrainingSettings) -> tuple[str, tuple[str, ...]] | None:
    """Return why a student cannot learn from its own answers so, as `disagreement`."""
    if training.nodes > 1:
        return (
            "on-policy rounds are started one after the other from one machine: set training.nodes to 1 (several "
            "processes are fine), or training.mode to off_policy",
            ("training.mode", "training.nodes"),
        )
    if teacher.backend == "openai":
        return (
            f"{_NOTHING_ELSE}, so that it cannot score the student's own: set training.mode to off_policy, or use "
            "another teacher",
            ("training.mode", "teacher.backend"),
        )
    if training.divergence == "none":
        return (
            "the student's own answers are learned by a divergence alone: set training.divergence, or training.mode to "
            "off_policy",
            ("training.mode", "training.divergence"),
        )
    if teacher.cross_tokenizer:
        return (
            "a teacher with another tokenizer cannot score the student's own answers, which are its tokens: set "
            "training.mode to off_policy, or teacher.cross_tokenizer to false",
            ("training.mode", "teacher.cross_tokenizer"),
        )
    return None


def shared(
    teacher: TeacherSettings, training: TrainingSettings, policy: OnPolicySettings
) -> tuple[str, tuple[str, ...]] | None:
    """Return which servers would have to be several at once, or cannot be, as `disagreement`."""
    if teacher.backend == "sglang" and teacher.serve and teacher.urls:
        return (
            "a retrain that starts a server itself asks no other: set teacher.serve to false, or teacher.urls to none",
            ("teacher.serve", "teacher.urls"),
        )
    asked = {url.rstrip("/") for url in teacher.urls if teacher.backend == "sglang"}
    if training.mode != "on_policy" or policy.sampler != "sglang":
        return None
    from distill.teachers.servers import is_address  # with the HTTP client, which a teacher of this process needs not

    if wrong := [url for url in policy.urls if not is_address(url)]:
        return f"{wrong[0]!r} is no http:// or https:// address", ("on_policy.urls",)
    if both := asked & {url.rstrip("/") for url in policy.urls}:
        return (
            f"{min(both)} would be given the student's weights and be the teacher no more: the student needs servers "
            "of its own in on_policy.urls",
            ("on_policy.urls", "teacher.urls"),
        )
    return None


def unknown(
    teacher: TeacherSettings, mixture: MixtureSettings, audit: AuditSettings
) -> tuple[str, tuple[str, ...]] | None:
    """Return what mixture and audit would have to know of the teacher's certainty and will not, as `disagreement`."""
    if teacher.backend != "openai":
        return None
    wanted = {
        "mixture.error_share": (mixture.error_share, "the teacher-error set takes answers that the teacher is sure of"),
        "audit.min_logprob": (audit.min_logprob, "the audit would leave out answers that it is unsure of"),
    }
    if not (found := {key: why for key, (value, why) in wanted.items() if value}):
        return None
    told = f"{_NOTHING_ELSE}, and {', and '.join(found.values())}: set {' and '.join(found)} to 0"
    return told, ("teacher.backend", *found)


def _answers_alone(teacher: TeacherSettings, training: TrainingSettings) -> tuple[str, tuple[str, ...]] | None:
    """Return all at once what cannot be had of a teacher that gives answers alone."""
    named = {"teacher.served_model": teacher.served_model, "teacher.urls": teacher.urls}
    if missing := [key for key, value in named.items() if not value]:
        told = f"teacher.backend openai asks a model by its name at an endpoint: set {' and '.join(missing)}"
        return told, ("teacher.backend", *missing)
    if teacher.endpoint == "completions" and teacher.limit_name != "max_tokens":
        return (
            "/v1/completions knows max_tokens alone: set teacher.limit_name to it, or teacher.endpoint to chat",
            ("teacher.endpoint", "teacher.limit_name"),
        )
    wrong = {
        "training.divergence": (training.divergence != "none", "none"),
        "training.live_teacher": (training.live_teacher, "false"),
        "training.hidden_weight": (bool(training.hidden_weight), "0"),
        "training.attention_weight": (bool(training.attention_weight), "0"),
        "training.temperature": (training.temperature != 1, "1"),
        "teacher.signals_format": (bool(teacher.signals_format), "empty"),
        "teacher.serve": (teacher.serve, "false"),
        "teacher.cross_tokenizer": (teacher.cross_tokenizer, "false"),
    }
    if not (found := {key: value for key, (is_wrong, value) in wrong.items() if is_wrong}):
        return None
    remedies = ", ".join(f"{key} to {value}" for key, value in found.items())
    weight = "; training.cross_entropy_weight = 1 lets the answers count" if "training.divergence" in found else ""
    told = f"{_NOTHING_ELSE}, so that cross entropy on them is all that can be learned: set {remedies}{weight}"
    return told, ("teacher.backend", *found)
