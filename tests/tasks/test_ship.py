"""What serves must be what was registered: promotions and rollbacks of students whose files were changed."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from deployments.errors import Failure
from deployments.registry import Registry, connect
from deployments.verification import hashes
from flows import settings, wiring
from tasks import ship
from tasks.run import Champion, Request, Run, read_json, write_json

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schema") / "mlflow.db"
    connect(f"sqlite:///{path}", "", "helpdesk", 60)
    return path


@pytest.fixture
def registry(schema: Path, tmp_path: Path) -> Registry:
    shutil.copy(schema, tmp_path / "mlflow.db")
    return connect(f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "mlartifacts"), "helpdesk", 10)


def finished(registry: Registry, folder: Path, number: int) -> Run:
    """A run whose student is registered as version `number`, with all stages before its promotion done."""
    student = folder / "runs" / f"r{number}" / "train" / "student"
    student.mkdir(parents=True)
    save_file({"layer": np.arange(64, dtype=np.float32) + number}, student / "model.safetensors")
    (student / "tokenizer.json").write_text(json.dumps({"model": number}))
    run_id = registry.record(f"r{number}", params={}, metrics=[], tags={}, artifacts=[])
    tags = hashes(student)
    version = registry.register(f"r{number}", run_id, student, tags).version
    before = None
    if number > 1:
        before = Champion(
            version=str(number - 1), checkpoint="", digest="", retrain_id=f"r{number - 1}", trained=[], profiled=[]
        )
    request = Request(
        retrain_id=f"r{number}", student="helpdesk", window="", profile_window="", window_digest="", window_rows=1,
        force=False, teacher="", settings={}, champion=before,
    )  # fmt: skip
    run = Run(folder / "runs" / f"r{number}", request)
    results = {"register": {"version": version, "run_id": run_id, "hashes": tags}, "profile": {}}
    for stage, result in results.items():
        (run.folder / stage).mkdir()
        write_json(run.folder / stage / "manifest.json", {"stage": stage, "end": "2026-01-01T00:00", "result": result})
    write_json(run.folder / "profile" / "profile.json", {"of": f"r{number}"})
    return run


def stored(registry: Registry, version: str) -> Path:
    return registry.fetch(version, Path("unused"))


def flip(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-16])


def change_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({"model": "of somebody else"}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (flip, r"weights model.safetensors has SHA-256 \w{64}, registered was \w{64}"),
        (cut_short, r"weights model.safetensors is truncated: its header tells of \d+ bytes, found are \d+"),
        (change_tokenizer, r"the tokenizer is a foreign one: tokenizer.json has SHA-256 \w{64}, registered was"),
    ],
)
def test_a_changed_student_is_neither_promoted_nor_rolled_back_to(
    change: Callable[[Path], None], said: str, registry: Registry, tmp_path: Path
) -> None:
    runs = [finished(registry, tmp_path, number) for number in (1, 2, 3)]
    ship.promote.fn(runs[0], registry, "1")
    ship.promote.fn(runs[1], registry, "2")
    change(stored(registry, "3"))
    with pytest.raises(Failure, match=said):
        ship.promote.fn(runs[2], registry, "3")
    change(stored(registry, "1"))
    with pytest.raises(Failure, match=said):
        ship.rollback.fn(registry, tmp_path / "runs", "worse")
    assert registry.aliased() == {"champion": "2", "previous": "1", "challenger": "3"}
    assert [move.to for move in registry.moves()] == ["1", "2"]
    assert not (runs[2].folder / "promote").exists()


def test_an_answer_that_cannot_be_stored_stops_a_promotion_before_it_moves_the_champion(
    registry: Registry, tmp_path: Path
) -> None:
    run = finished(registry, tmp_path, 1)
    said = {"approved": True, "by": "Ada", "note": "M\udcfcller", "at": "2026-01-01T00:00:00+00:00"}
    (run.folder / "approval").mkdir()
    write_json(run.folder / "approval" / "manifest.json", {"stage": "approval", "result": said})
    with pytest.raises(Failure, match="approval_note of retrain r1 is not UTF-8"):
        ship.promote.fn(run, registry, "1")
    assert registry.aliased() == {"challenger": "1"}
    assert registry.moves() == []


def test_a_rollback_leads_back_to_the_profile_of_the_version_that_serves(registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2):
        ship.promote.fn(finished(registry, tmp_path, number), registry, str(number))
    with pytest.raises(Failure, match="champion 1 was to be taken out"):
        ship.rollback.fn(registry, tmp_path / "runs", "worse", expected="1")
    undone = ship.rollback.fn(registry, tmp_path / "runs", "worse", expected="2")
    assert undone == {"from": "2", "to": "1", "reason": "worse", "profile": str(tmp_path / "runs" / "r1" / "profile")}


def test_what_the_registered_student_must_be_is_known_to_the_package(registry: Registry, tmp_path: Path) -> None:
    run = finished(registry, tmp_path, 1)
    assert ship.registered_hashes(run) == hashes(stored(registry, "1"))


KILLED = """
import os, shutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from dying import die_before_call
from mlflow import MlflowClient
from flows import settings, wiring
from tasks import ship
from tasks.plan import open_run

WRITES = [name for name in dir(MlflowClient) if name.startswith(("create_", "set_", "delete_", "log_"))]
what, base, calls = sys.argv[2], Path(sys.argv[3]), 0
while True:
    folder = Path(shutil.copytree(base, base.parent / f"killed{calls}"))
    child = os.fork()
    if child == 0:
        chosen = settings.load(None, {"workspace": str(folder), "student": {"name": "helpdesk"}})
        registry = wiring.registry(chosen, wiring.Places(chosen))
        die_before_call(calls, *((MlflowClient, write) for write in WRITES))
        if what == "promotion":
            ship.promote.fn(open_run(folder / "runs" / "r3"), registry, "3")
        else:
            ship.rollback.fn(registry, folder / "runs", "worse")
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(status, flush=True)
    if status == 0:
        break
    calls += 1
"""


@pytest.mark.integration
@pytest.mark.parametrize(
    ("what", "before", "after", "writes"),
    [("promotion", "2", "3", 8), ("rollback", "2", "1", 7)],  # the former also says who let it through
)
def test_after_a_sigkill_at_any_write_the_next_start_finds_registry_and_profile_agreed(
    what: str, before: str, after: str, writes: int, registry: Registry, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tmp_path, base, ignore=lambda *_: {"base"})
    registry = connect(f"sqlite:///{base}/mlflow.db", "", "helpdesk", 10)
    for number in (1, 2, 3):
        run = finished(registry, base, number)
        write_json(run.folder / "request.json", run.request.model_dump())
        if number < 3:
            ship.promote.fn(run, registry, str(number))
    command = [sys.executable, "-c", KILLED, str(ROOT / "tests" / "distill"), what, str(base)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert [int(status) for status in done.stdout.split()] == [9] * writes + [0], done.stderr
    for calls in range(writes + 1):
        folder = tmp_path / f"killed{calls}"
        chosen = settings.load(None, {"workspace": str(folder), "student": {"name": "helpdesk"}})
        found = wiring.registry(chosen, wiring.Places(chosen))  # as every flow begins
        champion = found.champion()
        assert champion is not None
        assert champion.version == (before if calls == 0 else after)
        profile = read_json(folder / "runs" / champion.tags["retrain_id"] / "profile" / "profile.json")
        assert profile == {"of": f"r{champion.version}"}
        assert found.recover() == ""
        if what == "promotion":  # the retrain that is started again finds it done, or does it
            result = ship.promote.fn(Run(folder / "runs" / "r3", run.request), found, "3")
            assert result["champion"] == "3"
            assert found.aliased() == {"champion": "3", "previous": "2"}


@pytest.mark.integration
def test_a_rollback_that_is_repeated_after_a_sigkill_goes_back_only_once(registry: Registry, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tmp_path, base, ignore=lambda *_: {"base"})
    registry = connect(f"sqlite:///{base}/mlflow.db", "", "helpdesk", 10)
    for number in (1, 2, 3):
        ship.promote.fn(finished(registry, base, number), registry, str(number))
    command = [sys.executable, "-c", KILLED, str(ROOT / "tests" / "distill"), "rollback", str(base)]
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    for calls in range(7):
        folder = tmp_path / f"killed{calls}"
        chosen = settings.load(None, {"workspace": str(folder), "student": {"name": "helpdesk"}})
        found = wiring.registry(chosen, wiring.Places(chosen), recover=False)  # as flows.rollback begins
        undone = ship.rollback.fn(found, folder / "runs", "worse")
        assert (undone["from"], undone["to"]) == ("3", "2")
        assert found.aliased() == {"champion": "2", "previous": "1"}
