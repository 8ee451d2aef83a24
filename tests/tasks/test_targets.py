"""What held-out rows are judged by: their labels, else what the teacher answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from distill.errors import Failure
from distill.settings import StudentSettings, TrainingSettings
from distill.teacher_settings import TeacherSettings
from monitoring.settings import TrafficSettings
from tasks import targets as judged_by
from tasks.slices import HeldOut
from tasks.teaching import Teaching


def test_rows_whose_answers_were_all_withheld_cannot_be_judged_by(
    endpoint: Callable[..., str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    def reply(posted: dict[str, Any]) -> Any:
        return 200, {}, {"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}

    settings = Teaching(
        StudentSettings(),
        TeacherSettings(backend="openai", served_model="big", urls=(endpoint(reply),)),
        TrainingSettings(divergence="none"), TrafficSettings(), str(tmp_path / "signals"), tmp_path / "db",
    )  # fmt: skip
    rows = pd.DataFrame({"prompt": ["log in", "invoice"], "reference": [None, None]})
    held_out, file = [HeldOut("fresh", "fresh", rows)], tmp_path / "asked.npy"
    with pytest.raises(Failure, match="none of 2 held-out rows has a label, and the teacher withheld"):
        judged_by.with_targets(held_out, tiny_checkpoint, settings, file)
    labelled = [HeldOut("fresh", "fresh", rows.assign(reference=[None, "billing"]))]
    (targets,), cost = judged_by.with_targets(labelled, tiny_checkpoint, settings, file)
    assert targets["target"].tolist() == ["billing"]
    assert cost["targets_by_teacher"] == 0
