"""What the rounds of an on-policy training cost: an answer is bought once, and every row is told of."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prefect.logging import disable_run_logger

from distill.errors import InputError
from distill.on_policy_settings import OnPolicySettings
from distill.prepare import prepare
from distill.request import TrainRequest
from distill.settings import StudentSettings, TrainingSettings
from distill.signals import SignalStore
from distill.teacher_settings import TeacherSettings
from distill.trainer import train
from monitoring.settings import TrafficSettings
from tasks import rounds
from tasks.run import Request, Run
from tasks.teaching import Teaching

PROMPTS = [f"the printer {n} does not print" for n in range(12)]


@pytest.fixture
def teaching(tiny_checkpoint: Path, tmp_path: Path, checkpoint_maker: Callable[..., Path]) -> Teaching:
    """Settings of a student that answers greedily, as good as, and learns nothing: it says the same in each round."""
    return Teaching(
        StudentSettings(base=str(tiny_checkpoint), max_prompt_tokens=96, max_new_tokens=6),
        TeacherSettings(model=str(checkpoint_maker(tmp_path / "teacher", seed=3)), top_k=8, device="cpu"),
        TrainingSettings(mode="on_policy", device="cpu", epochs=3.0, learning_rate=1e-12, tokens_per_step=150),
        TrafficSettings(),
        str(tmp_path / "out" / "signals"),
        tmp_path / "decisions.db",
        metrics=tmp_path / "teacher.prom",
        on_policy=OnPolicySettings(rounds=3, share=1.0, temperature=1e-4),
    )


def run_in(folder: Path) -> Run:
    folder.mkdir()
    request = Request(
        retrain_id="r1", student="s", window="w", profile_window="w", window_digest="d", window_rows=1, force=False,
        teacher="t", settings={}, champion=None,
    )  # fmt: skip
    return Run(folder, request)


def test_an_answer_that_is_given_in_several_rounds_is_counted_as_bought_in_the_first_alone(
    teaching: Teaching, tmp_path: Path
) -> None:
    request = prepare(
        PROMPTS, student=teaching.student, teacher=teaching.teacher, training=teaching.training,
        output=tmp_path / "out", on_line=lambda line: None,
    )  # fmt: skip
    before = len(SignalStore(request.signals))
    teaching = replace(teaching, signals=request.signals)
    with disable_run_logger():
        came = rounds.learn(run_in(tmp_path / "r1"), request, teaching, lambda path: train(TrainRequest.load(path)))
    bought = len(SignalStore(request.signals)) - before
    assert [each["own"]["rows"] for each in came["rounds"]] == [12] * 3
    assert [each["bought_rows"] for each in came["rounds"]] == [bought, 0, 0]
    assert came["bought_rows"] == came["cost"]["bought"]["rows"] == bought
    assert came["reused_rows"] == 36 - bought


def test_a_student_that_sglang_is_to_sample_needs_it_before_the_teacher_is_paid(
    teaching: Teaching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDISTILL_SGLANG_PYTHON", "/nowhere/python")
    asked = teaching.on_policy.model_copy(update={"sampler": "sglang"})
    with pytest.raises(InputError, match=r"on_policy\.sampler sglang without on_policy\.urls: '/nowhere/python' is no"):
        rounds.check(teaching.training, asked)
    rounds.check(teaching.training, asked.model_copy(update={"urls": ("http://a:1",)}))
    rounds.check(teaching.training, teaching.on_policy)


def test_rows_that_no_step_of_their_round_took_are_told_of_whichever_round_it_was() -> None:
    def of(training: int, missed: int, why: str) -> dict[str, Any]:
        rows = {"mixture": 12, "training": training, "validation": 2, "not_reached": missed}
        return {"rows": rows, "not_reached_because": why}

    assert rounds._rows([of(7, 3, "its round has no more steps"), of(10, 0, "")]) == {
        "rows": {"mixture": 22, "training": 17, "not_reached": 3, "validation": 2},
        "not_reached_because": "its round has no more steps",
    }
