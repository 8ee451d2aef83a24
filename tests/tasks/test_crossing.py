"""A teacher with another tokenizer is tried out on a few rows before all are asked about."""

from dataclasses import replace
from pathlib import Path

import pytest

from distill.obtained import Obtained, nothing
from distill.settings import StudentSettings, TrainingSettings
from distill.teacher_settings import TeacherSettings
from distill.teachers.spent import Effort, Spent
from monitoring.settings import TrafficSettings
from tasks import crossing
from tasks.teaching import Teaching


@pytest.mark.parametrize(("prompts", "tried"), [(4 * crossing.TRIED - 1, 0), (1000, crossing.TRIED)])
def test_what_it_took_to_try_it_out_is_not_forgotten_and_its_rows_are_not_counted_twice(
    prompts: int, tried: int, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    teacher = TeacherSettings(model=str(tiny_checkpoint), cross_tokenizer=True, device="cpu")
    settings = Teaching(
        StudentSettings(), teacher, TrainingSettings(), TrafficSettings(), str(tmp_path / "signals"), tmp_path / "db"
    )
    asked: list[str] = []

    def ask(some: list[str]) -> Obtained:
        asked.extend(some)
        return replace(nothing(), effort=Effort(2.0, 640, 64, Spent(requests=len(some), retries=1)))

    found = crossing.try_out([f"prompt {n}" for n in range(prompts)], tiny_checkpoint, settings, ask)
    assert (len(set(asked)), len(found.keys)) == (tried, 0)
    assert (found.effort.seconds, bool(found.effort.spent)) == ((2.0, True) if tried else (0.0, False))
