"""What the rounds of an on-policy training buy of the teacher is counted once, in the round that bought it."""

from pathlib import Path
from typing import Any

import numpy as np
from prefect.logging import disable_run_logger

from distill.on_policy_settings import OnPolicySettings
from distill.prepare import prepare
from distill.request import TrainRequest
from distill.settings import StudentSettings, TeacherSettings, TrainingSettings
from distill.signals import SignalStore
from distill.trainer import train
from monitoring.settings import TrafficSettings
from tasks import rounds
from tasks.teaching import Teaching
from tests.tasks.test_purchases import run_in

PROMPTS = [f"the printer {n} does not print" for n in range(12)]


def test_an_answer_that_the_student_gives_again_in_a_later_round_is_not_paid_again(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    student = StudentSettings(base=str(tiny_checkpoint), max_prompt_tokens=96, max_new_tokens=4)
    teacher = TeacherSettings(model=str(tiny_checkpoint), top_k=4, device="cpu", signals=str(tmp_path / "signals"))
    training = TrainingSettings(mode="on_policy", tokens_per_step=150, epochs=2.0, learning_rate=1e-9, device="cpu")
    request = prepare(
        PROMPTS, student=student, teacher=teacher, training=training, output=tmp_path / "t", on_line=lambda line: None
    )
    before, run = len(SignalStore(request.signals)), run_in(tmp_path / "runs")
    policy = OnPolicySettings(rounds=2, share=1.0, temperature=1e-6)  # so cold that it says the same each time
    teaching = Teaching(
        student, teacher, training, TrafficSettings(), request.signals, tmp_path / "decisions.db", on_policy=policy
    )
    with disable_run_logger():
        found = rounds.learn(run, request, teaching, lambda path: train(TrainRequest.load(path)))
    scored = len(SignalStore(request.signals)) - before
    assert (found["bought_rows"], found["reused_rows"]) == (scored, 2 * len(PROMPTS) - scored)
    assert [each["bought_rows"] for each in found["rounds"]] == [scored, 0]
    asked = [np.load(file) for file in sorted(run.folder.glob("*.asked.npy"))]
    assert sum(map(len, asked)) == scored == len(PROMPTS)
    drawn = [each["rows"] for each in found["rounds"]]
    assert found["rows"] == {name: sum(rows[name] for rows in drawn) for name in drawn[0]}
    assert bool(found["not_reached_because"]) == bool(found["rows"]["not_reached"])


def test_rows_that_no_step_of_their_round_took_are_told_of_whichever_round_it_was() -> None:
    def of(training: int, missed: int, why: str) -> dict[str, Any]:
        rows = {"mixture": 12, "training": training, "validation": 2, "not_reached": missed}
        return {"rows": rows, "not_reached_because": why}

    assert rounds._rows([of(7, 3, "its round has no more steps"), of(10, 0, "")]) == {
        "rows": {"mixture": 22, "training": 17, "not_reached": 3, "validation": 2},
        "not_reached_because": "its round has no more steps",
    }
