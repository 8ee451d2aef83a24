"""What settings of teacher and training ask of each other and cannot have."""

from distill.settings import TeacherSettings, TrainingSettings


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
    if training.mode == "on_policy" and training.nodes > 1:
        return (
            "on-policy rounds are started one after the other from one machine: set training.nodes to 1 (several "
            "processes are fine), or training.mode to off_policy",
            ("training.mode", "training.nodes"),
        )
    if training.mode == "on_policy" and teacher.backend not in ("local", "sglang"):
        return (
            f"teacher.backend {teacher.backend!r} says nothing of answers that it has not given: set training.mode to "
            "off_policy, or use a teacher that scores them",
            ("training.mode", "teacher.backend"),
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
