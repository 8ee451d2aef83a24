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
