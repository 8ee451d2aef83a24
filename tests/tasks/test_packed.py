"""8-bit weights are judged beside the checkpoint they are made from: what they lose is in the verdict."""

from pathlib import Path

import pandas as pd
import pytest

from deployments.settings import PackagingSettings
from distill import scoring
from distill.settings import StudentSettings, TrainingSettings
from distill.teacher_settings import TeacherSettings
from monitoring import row_metrics
from monitoring.feature_settings import REFUSAL
from monitoring.judging_settings import JudgingSettings
from monitoring.regression import judge
from monitoring.settings import TrafficSettings
from tasks import packed
from tasks.teaching import Teaching

SMALL = PackagingSettings(format="onnx-int8", agreement_rows=200)


@pytest.fixture(scope="module")
def teaching(tmp_path_factory: pytest.TempPathFactory) -> Teaching:
    student = StudentSettings(max_prompt_tokens=64, max_new_tokens=8)
    folder = tmp_path_factory.mktemp("packed")
    return Teaching(
        student, TeacherSettings(), TrainingSettings(), TrafficSettings(), str(folder / "signals"), folder / "ledger.db"
    )


@pytest.fixture(scope="module")
def rows(tiny_checkpoint: Path) -> pd.DataFrame:
    """Rows that the checkpoint answers rightly, all of them, and one that no service takes."""
    prompts = [f"the printer {number} does not print" for number in range(220)] + ["a\0b"]
    said = scoring.score(tiny_checkpoint, prompts, max_prompt_tokens=64, max_new_tokens=8).responses
    found = pd.DataFrame({"prompt": prompts, "target": said, "slice": "fresh"})
    for metric in ("exact_match", "token_f1"):
        found[f"challenger_{metric}"] = getattr(row_metrics, metric)(said, said)
    found["challenger_refusal_rate"] = row_metrics.refusal_rate(said, REFUSAL)
    return found


def test_a_prompt_that_is_too_long_for_any_request_of_the_service_is_not_asked() -> None:
    rows = pd.DataFrame({"prompt": ["short", "ü" * 600, "x" * 600, "x" * 2000, " "]})
    small = PackagingSettings(max_body_bytes=1024)
    assert packed.servable(rows, small)["prompt"].tolist() == ["short", "x" * 600]


def test_a_student_that_is_packed_as_it_is_has_no_slice_of_its_own(
    rows: pd.DataFrame, tiny_checkpoint: Path, teaching: Teaching
) -> None:
    assert packed.measure(tiny_checkpoint, rows, PackagingSettings(), teaching, REFUSAL) == ({}, [])


def test_8_bit_weights_that_answer_otherwise_than_their_checkpoint_fail_by_name(
    rows: pd.DataFrame, tiny_checkpoint: Path, teaching: Teaching
) -> None:
    slices, costs = packed.measure(tiny_checkpoint, rows, SMALL, teaching, REFUSAL)  # random weights are never sure
    verdict = judge(slices, JudgingSettings(), costs)
    (check,) = (each for each in verdict.checks if each.metric == "exact_match")
    assert (check.slice, check.kind, check.rows) == ("8-bit weights on fresh", "packaged", 200)
    assert check.champion == 1.0, "the checkpoint stands for the champion"
    assert check.challenger is not None
    assert check.challenger < 0.9
    assert verdict.outcome == "fail"
    assert verdict.reason.startswith("8-bit weights on fresh")


def test_agreement_and_speed_stand_in_the_verdict_and_forbid_nothing(
    rows: pd.DataFrame, tiny_checkpoint: Path, teaching: Teaching
) -> None:
    unknown = rows.assign(target="what neither says", challenger_exact_match=0.0, challenger_token_f1=0.0)
    slices, costs = packed.measure(tiny_checkpoint, unknown, SMALL, teaching, REFUSAL)
    verdict = judge(slices, JudgingSettings(), costs)
    assert verdict.outcome == "pass", "nothing is lost where nothing was right"
    told = {budget.name: budget for budget in verdict.budgets}
    assert {"8-bit answers that differ", "8-bit tokens that differ", "8-bit time of a token", "8-bit size"} <= set(told)
    assert 0 < told["8-bit answers that differ"].challenger < 1
    assert 0 < told["8-bit size"].challenger < 1
    assert {budget.outcome for budget in verdict.budgets} == {"reported"}
