"""Answers of people: what cannot be kept is refused before anything is changed."""

from pathlib import Path

import pytest

from deployments.errors import Failure, InputError
from tasks import approve
from tasks.run import Request, Run, run_stage


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A retrain whose challenger waits for an answer."""
    request = Request(
        retrain_id="r1", student="helpdesk", window="", profile_window="", window_digest="", window_rows=1,
        force=False, teacher="", settings={}, champion=None,
    )  # fmt: skip
    run = Run(tmp_path / "runs" / "r1", request)
    run.folder.mkdir(parents=True)

    def judged(folder: Path) -> dict[str, str]:
        (folder / "verdict.json").write_text("{}")
        return {"outcome": "pass", "reason": ""}

    run_stage(run, "judge", judged, inputs={})
    return run


@pytest.mark.parametrize(
    ("by", "note", "said"),
    [
        ("x" * 201, "", "--by: .*at most 200 characters"),
        ("", "", "--by: .*at least 1 character"),
        ("Ada", "x" * 1001, "--note: .*at most 1000 characters"),
        ("M\udcfcller", "", "--by: .*valid string"),
        ("Ada", "a\0b", "--note: holds a null byte"),
    ],
)
def test_an_answer_that_cannot_be_kept_is_refused_and_nothing_is_written(
    by: str, note: str, said: str, run: Run
) -> None:
    with pytest.raises(InputError, match=said):
        approve.give(run, by, note)
    assert not run.stage(approve.STAGE).exists()


def test_an_answer_that_was_kept_and_no_registry_can_keep_is_named_with_what_to_do(run: Run) -> None:
    """One of an earlier redistill, or of a form that checks less."""
    approve._write(run, True, "M\udcfcller", "")
    with pytest.raises(Failure, match=r"approved_by of retrain r1 is not UTF-8.*approval' and give the answer anew"):
        approve.tags(run)
