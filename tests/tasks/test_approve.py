"""Answers of people: what cannot be kept is refused, and one finds the flow run that waits, or is about to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.exceptions import NotPausedError
from prefect.settings import PREFECT_API_URL

from deployments.errors import Failure, InputError
from tasks import approve
from tasks.run import Request, Run, run_stage, write_json


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


class Server:
    """A Prefect server as far as `give` sees it: each call of `resume` takes the next of `replies`, the last for good.

    The moment between a flow run's note that it waits and its pause cannot be caused from outside.
    """

    def __init__(self, *replies: Exception | None) -> None:
        self.replies, self.asked = list(replies), 0

    def resume(self, flow_run: UUID, run_input: dict[str, Any]) -> None:
        self.asked += 1
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if reply is not None:
            raise reply


@contextmanager
def at_work(run: Run, *, waits: bool = True) -> Iterator[None]:
    """A process that holds the run's lock, with its note that it waits for an answer."""
    with run.locked(lambda: None):
        if waits:
            write_note(run)
        yield


def write_note(run: Run) -> None:
    write_json(run.folder / approve.WAITING, {"flow_run": uuid4(), "api": PREFECT_API_URL.value(), "process": 1})


def test_an_answer_given_right_before_the_flow_run_pauses_reaches_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    not_yet = RuntimeError("Cannot resume this run: Run input schema not found.")
    server = Server(NotPausedError("not paused"), not_yet, None)
    monkeypatch.setattr(approve, "resume_flow_run", server.resume)
    monkeypatch.setattr(approve, "POLL", 0.01)
    with at_work(run):
        assert approve._resumed(run, "Ada", "")
    assert server.asked == 3


def test_an_answer_given_before_the_flow_run_says_that_it_waits_reaches_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, looks = Server(None), []

    def look(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            write_note(run)

    monkeypatch.setattr(approve, "resume_flow_run", server.resume)
    monkeypatch.setattr("tasks.approve.time.sleep", look)
    with at_work(run, waits=False):
        assert approve._resumed(run, "Ada", "")
    assert (server.asked, len(looks)) == (1, 3)


def test_a_flow_run_that_holds_the_retrain_and_takes_no_answer_is_named_with_what_to_do(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approve, "resume_flow_run", Server(NotPausedError("it is running")).resume)
    monkeypatch.setattr(approve, "POLL", 0.01)
    monkeypatch.setattr(approve, "PATIENCE", 0.1)
    said = r"waits for the answer on retrain r1 and has not taken it.*NotPausedError: it is running.*its process 1;"
    with at_work(run), pytest.raises(Failure, match=said):
        approve._resumed(run, "Ada", "")


def test_an_answer_to_a_process_that_was_killed_while_it_waited_is_for_the_next_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(None)
    monkeypatch.setattr(approve, "resume_flow_run", server.resume)
    with at_work(run):
        pass
    assert not approve._resumed(run, "Ada", "")
    assert server.asked == 0
