"""Answers that are sampled from a teacher to audit its greedy ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distill.mixture_settings import AuditSettings
from distill.settings import StudentSettings, TrainingSettings
from distill.teacher_settings import TeacherSettings
from monitoring.settings import TrafficSettings
from tasks import mix, teach
from tasks.teaching import Teaching

PROMPTS = ["The printer does not print", "log in", "invoice"]


def test_a_sample_that_says_the_same_with_other_blanks_around_it_agrees(
    endpoint: Callable[..., str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    def reply(posted: dict[str, Any]) -> Any:
        drawn = {0: " billing", 1: "billing\n", 2: "account"}[posted["seed"]] if "seed" in posted else "billing"
        return 200, {}, {"model": "big", "choices": [{"message": {"content": drawn}, "finish_reason": "stop"}]}

    settings = Teaching(
        StudentSettings(max_new_tokens=16),
        TeacherSettings(backend="openai", served_model="big", urls=(endpoint(reply),)),
        TrainingSettings(divergence="none"), TrafficSettings(), str(tmp_path / "signals"), tmp_path / "db",
        audit=AuditSettings(samples=3),
    )  # fmt: skip
    file = tmp_path / "asked.npy"
    asked = teach.ask(PROMPTS, tiny_checkpoint, settings, file, "rows")
    none = np.zeros(len(PROMPTS), np.uint8)
    told = mix.Heard(np.array(["billing"] * 3), none.astype(np.int64), none * np.nan, none.astype(object), none)
    agreed, bought = teach.sampled(asked, np.array([0, 2]), told, tiny_checkpoint, settings, file)
    np.testing.assert_allclose(agreed, [2 / 3, np.nan, 2 / 3])
    assert [part.bought_rows for part in bought] == [2, 2, 2]
