"""Which run a request gets: the one that was begun, unless it has ended or can never end well."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from deployments.errors import Failure
from deployments.registry import Registry, connect
from deployments.verification import hashes
from tasks import approve, plan, ship
from tasks.run import Request, Run, run_stage

REQUEST = Request(
    retrain_id="", student="helpdesk", window="", profile_window="", window_digest="", window_rows=1, force=False,
    teacher="", settings={}, champion=None,
)  # fmt: skip
Fault = Callable[[Run, Registry], None]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    folder = tmp_path_factory.mktemp("registry")
    return connect(f"sqlite:///{folder}/mlflow.db", str(folder / "mlartifacts"), "helpdesk", 60)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A retrain that has trained and judged a student."""
    found, retrain_id = plan._latest(REQUEST, tmp_path, again=False)
    assert found is None
    request = REQUEST.model_copy(update={"retrain_id": retrain_id})
    run = plan._new(request, tmp_path, pd.DataFrame({"request_id": ["q1"]}), None)

    def trained(folder: Path) -> dict[str, str]:
        (folder / "student").mkdir()
        (folder / "student" / "config.json").write_text("{}")
        return {"student_sha256": hashes(folder / "student")["sha256"]}

    def judged(folder: Path) -> dict[str, str]:
        (folder / "verdict.json").write_text("{}")
        return {"outcome": "pass", "reason": ""}

    run_stage(run, "train", trained, inputs={})
    run_stage(run, "judge", judged, inputs={})
    return run


def student_changed_before_it_was_registered(run: Run, registry: Registry) -> None:
    (run.stage("train") / "student" / "config.json").write_text('{"changed": 1}')
    ship.register.fn(run, registry, run.stage("train") / "student")


def student_changed_after_it_was_registered(run: Run, registry: Registry) -> None:
    student = run.stage("train") / "student"
    run_stage(run, "register", lambda _: {"hashes": hashes(student)}, inputs={})
    (student / "config.json").write_text('{"changed": 1}')
    ship.check_files(run, student)


def verdict_changed_after_the_answer(run: Run, registry: Registry) -> None:
    approve._write(run, True, "Ada", "")
    (run.stage("judge") / "verdict.json").write_text('{"changed": 1}')
    approve.approval(run, "1", settings=None)  # type: ignore[arg-type]


def rolled_back_before_the_end_was_written(run: Run, registry: Registry) -> None:
    version = registry.client.create_model_version("helpdesk", "nowhere", tags={"rolled_back_at": "2026-01-01"}).version
    ship.promote.fn(run, registry, str(version))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (student_changed_before_it_was_registered, r"not what the training wrote.*start a new retrain \(--again\)"),
        (student_changed_after_it_was_registered, r"not what was registered.*make the student anew \(--again\)"),
        (verdict_changed_after_the_answer, "answered on another verdict.*--again makes a new retrain"),
        (rolled_back_before_the_end_was_written, "promoted and then rolled back.*with --again for a new retrain"),
    ],
)
def test_where_again_is_told_to_be_the_way_out_it_makes_a_new_retrain(
    fault: Fault, said: str, run: Run, registry: Registry
) -> None:
    runs, name = run.folder.parent, run.folder.name
    assert plan._latest(REQUEST, runs, again=True)[0] == run, "one that was only killed goes on"
    with pytest.raises(Failure, match=said), run.marked_if_spoiled():
        fault(run, registry)
    assert plan._latest(REQUEST, runs, again=False) == (run, f"{name}-2"), "what was changed may be put back"
    assert plan._latest(REQUEST, runs, again=True) == (None, f"{name}-2")
    assert json.loads((run.folder / "spoiled.json").read_text())["reason"]
    second = plan._new(REQUEST.model_copy(update={"retrain_id": f"{name}-2"}), runs, pd.DataFrame({"a": [1]}), None)
    assert plan._latest(REQUEST, runs, again=True)[0] == second, "a new one that was killed goes on too"
