import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments import runs
from deployments.connection import file_lock, masked, reach_database
from deployments.errors import Failure, InputError
from deployments.registry import Registry, Version, connect

WRITES = [
    "create_run",
    "log_batch",
    "log_artifact",
    "set_terminated",
    "create_logged_model",
    "log_model_artifacts",
    "finalize_logged_model",
    "create_model_version",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_model_version_tag",
    "delete_model_version_tag",
]


@pytest.fixture(scope="session")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schema") / "mlflow.db"
    reach_database(path, 10)
    return path


@pytest.fixture
def uri(tmp_path: Path, schema: Path) -> str:
    folder = tmp_path / "a workspace"
    folder.mkdir()
    shutil.copy(schema, folder / "mlflow.db")
    return f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture
def registry(uri: str) -> Registry:
    return connect(uri, "", "student", 10)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "model.safetensors").write_bytes(bytes(range(256)))
    return folder


def recorded(registry: Registry, retrain_id: str) -> str:
    return registry.record(retrain_id, params={}, metrics=[], tags={}, artifacts=[])


def registered(registry: Registry, retrain_id: str, checkpoint: Path) -> Version:
    run_id = recorded(registry, retrain_id)
    return registry.register(retrain_id, run_id, checkpoint, {"verdict": "pass", "window": "2016"})


def promoted(registry: Registry, checkpoint: Path, versions: int) -> None:
    for number in range(1, versions + 1):
        version = registered(registry, f"r{number}", checkpoint).version
        registry.promote(version, None if number == 1 else str(number - 1))


def served(registry: Registry) -> tuple[str | None, str | None, str | None]:
    found = registry.champion(), registry.previous(), registry.challenger()
    champion, previous, challenger = (None if version is None else version.version for version in found)
    return champion, previous, challenger


class Cut:
    """An MLflow client whose n-th write fails before it is made, as when the process or the store dies there."""

    def __init__(self, client: Any, fail_at: int) -> None:
        self.client, self.left = client, fail_at

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        if name in WRITES:
            self.left -= 1
            if self.left == 0:
                raise OSError(f"cut before {name}")
        return method


def cut(registry: Registry, fail_at: int) -> Registry:
    return replace(registry, client=Cut(registry.client, fail_at))


def was_cut(work: Callable[..., object], *args: Any, **kwargs: Any) -> bool:
    try:
        work(*args, **kwargs)
    except Failure as failure:
        if "cut before" not in str(failure):
            raise
        return True
    return False


def numbers(registry: Registry, run_id: str, key: str) -> list[float]:
    return sorted(point.value for point in registry.client.get_metric_history(run_id, key))


# -- recording ------------------------------------------------------------------------------------------------------


def test_a_run_holds_everything_beyond_the_batch_limits(registry: Registry, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text("<p>drift</p>")
    metrics = [("loss", 1.0 / (step + 1), step, 1000 + step) for step in range(2500)]
    metrics.append(("system/peak_memory_mib", 812.0, 0, 1000))
    params = {f"distill.p{number}": number for number in range(250)}
    run_id = registry.record("r1", params=params, metrics=iter(metrics), tags={"window": "2016"}, artifacts=[report])
    run = registry.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {key: str(value) for key, value in params.items()}
    assert run.data.tags["window"] == "2016"
    assert run.data.metrics["system/peak_memory_mib"] == 812.0
    assert len(numbers(registry, run_id, "loss")) == 2500
    assert [file.path for file in registry.client.list_artifacts(run_id)] == ["report.html"]


def test_a_recording_cut_anywhere_is_completed_and_nothing_is_doubled(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "METRICS_A_CALL", 3)
    report = tmp_path / "report.html"
    report.write_text("<p>drift</p>")
    work: dict[str, Any] = {
        "params": {"a": 1},
        "metrics": [("loss", 0.5, step, 7) for step in range(4)],
        "tags": {"window": "2016"},
        "artifacts": [report],
    }
    for fail_at in count(1):
        registry = connect(uri, "", f"student-{fail_at}", 10)
        if not was_cut(cut(registry, fail_at).record, "r1", **work):
            break
        run_id = registry.record("r1", **work)
        assert registry.record("r1", **work) == run_id
        assert [run.info.run_id for run in registry.client.search_runs([registry.experiment])] == [run_id]
        assert registry.client.get_run(run_id).info.status == "FINISHED"
        assert len(numbers(registry, run_id, "loss")) == 4
        assert len(registry.client.list_artifacts(run_id)) == 1
    assert fail_at == 8  # create_run, 4 batches, 1 file, set_terminated; the eighth is not reached


def test_a_parameter_that_would_be_cut_off_is_refused(registry: Registry) -> None:
    with pytest.raises(InputError, match=r"drift.columns.*6001 characters"):
        registry.record("r1", params={"drift.columns": "x" * 6001}, metrics=[], tags={}, artifacts=[])


# -- versions -------------------------------------------------------------------------------------------------------


def test_a_new_registry_has_no_champion(registry: Registry) -> None:
    assert served(registry) == (None, None, None)


def test_a_registered_student_is_the_challenger_with_its_tags_and_its_files(
    registry: Registry, checkpoint: Path, tmp_path: Path
) -> None:
    before = datetime.now(UTC)
    version = registered(registry, "r1", checkpoint)
    assert registry.challenger() == version
    assert (version.name, version.version) == ("student", "1")
    assert version.run_id == recorded(registry, "r1")
    assert version.tags == {"verdict": "pass", "window": "2016", "retrain_id": "r1"}
    assert abs((version.created - before).total_seconds()) < 60
    folder = registry.fetch("1", tmp_path / "cache")
    assert (folder / "sub" / "model.safetensors").read_bytes() == bytes(range(256))
    assert not (tmp_path / "cache").exists()  # the store's own folder, nothing copied
    assert folder == registry.fetch("1", tmp_path / "cache")


def test_registering_leaves_the_process_wide_address_as_it_was(
    registry: Registry, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = mlflow.get_tracking_uri()
    registered(registry, "r1", checkpoint)
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert mlflow.get_tracking_uri() == before != registry.uri


def test_a_registration_cut_anywhere_is_completed_and_nothing_is_doubled(uri: str, checkpoint: Path) -> None:
    for fail_at in count(1):
        registry = connect(uri, "", f"student-{fail_at}", 10)
        run_id = recorded(registry, "r1")
        if not was_cut(cut(registry, fail_at).register, "r1", run_id, checkpoint, {"verdict": "pass"}):
            break
        version = registry.register("r1", run_id, checkpoint, {"verdict": "pass"})
        assert registry.register("r1", run_id, checkpoint, {"verdict": "pass"}) == version
        assert (version.version, version.tags["verdict"]) == ("1", "pass")
        assert registry.challenger() == version
        assert len(registry.client.search_logged_models([registry.experiment])) == 1
        assert (registry.fetch("1", Path("unused")) / "config.json").read_text() == "{}"
    assert fail_at == 6


def test_registering_again_takes_no_alias_from_the_champion_or_a_newer_challenger(
    registry: Registry, checkpoint: Path
) -> None:
    promoted(registry, checkpoint, 1)
    assert registered(registry, "r1", checkpoint).version == "1"
    assert served(registry) == ("1", None, None)
    registered(registry, "r2", checkpoint)
    registered(registry, "r3", checkpoint)
    registered(registry, "r2", checkpoint)
    assert served(registry) == ("1", None, "3")


def test_an_empty_checkpoint_is_refused(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty is no folder with files"):
        registry.register("r1", recorded(registry, "r1"), tmp_path / "empty", {})


def test_a_lost_checkpoint_is_named_when_it_is_fetched(registry: Registry, checkpoint: Path) -> None:
    registered(registry, "r1", checkpoint)
    folder = registry.fetch("1", Path("unused"))
    shutil.rmtree(folder)
    with pytest.raises(Failure, match=f"version 1 of 'student' is gone from .*{folder.parent.name}"):
        registry.fetch("1", Path("unused"))


def test_tags_are_written_over(registry: Registry, checkpoint: Path) -> None:
    registered(registry, "r1", checkpoint)
    registry.set_tags("1", {"verdict": "fail", "bento": "student:1"})
    champion = registry.challenger()
    assert champion is not None
    assert (champion.tags["verdict"], champion.tags["bento"]) == ("fail", "student:1")


# -- promotion and rollback -----------------------------------------------------------------------------------------


def test_promotions_move_champion_previous_and_challenger(registry: Registry, checkpoint: Path) -> None:
    promoted(registry, checkpoint, 1)
    assert served(registry) == ("1", None, None)
    registered(registry, "r2", checkpoint)
    assert served(registry) == ("1", None, "2")
    registry.promote("2", "1")
    assert served(registry) == ("2", "1", None)
    registry.promote("2", "1")  # done already
    assert served(registry) == ("2", "1", None)


def test_a_promotion_against_another_champion_than_expected_changes_nothing(
    registry: Registry, checkpoint: Path
) -> None:
    promoted(registry, checkpoint, 2)
    registered(registry, "r3", checkpoint)
    for expected, named in (("1", "champion 1"), (None, "no champion")):
        with pytest.raises(Failure, match=f"replace {named}.*has champion 2 now"):
            registry.promote("3", expected)
    assert served(registry) == ("2", "1", "3")


def test_a_promotion_cut_anywhere_keeps_a_champion_and_is_completed(uri: str, checkpoint: Path) -> None:
    for fail_at in count(1):
        registry = connect(uri, "", f"student-{fail_at}", 10)
        promoted(registry, checkpoint, 2)
        registered(registry, "r3", checkpoint)
        if not was_cut(cut(registry, fail_at).promote, "3", "2"):
            break
        assert served(registry)[0] in ("2", "3")
        registry.promote("3", "2")
        assert served(registry) == ("3", "2", None)
        assert registry.rollback("test") == ("3", "2")
    assert fail_at == 5  # tag, previous, champion, challenger; the fifth is not reached


def test_a_rollback_cut_anywhere_keeps_a_champion_and_goes_back_only_once(uri: str, checkpoint: Path) -> None:
    for fail_at in count(1):
        registry = connect(uri, "", f"student-{fail_at}", 10)
        promoted(registry, checkpoint, 3)
        if not was_cut(cut(registry, fail_at).rollback, "test"):
            break
        assert served(registry)[0] == "3"
        assert registry.rollback("test") == ("3", "2")
        assert served(registry) == ("2", "1", None)
    assert fail_at == 6  # three tags, previous, champion; the sixth is not reached


def test_a_rollback_after_half_a_promotion_goes_to_what_served_before(registry: Registry, checkpoint: Path) -> None:
    promoted(registry, checkpoint, 2)
    registered(registry, "r3", checkpoint)
    with pytest.raises(Failure, match="cut before"):
        cut(registry, 3).promote("3", "2")
    assert served(registry) == ("2", "2", "3")
    assert registry.rollback("test") == ("2", "1")
    assert served(registry) == ("1", None, "3")


def test_rollbacks_walk_back_to_the_first_version_and_then_say_so(registry: Registry, checkpoint: Path) -> None:
    promoted(registry, checkpoint, 3)
    assert registry.rollback("worse answers") == ("3", "2")
    tags = registry._version("3").tags
    assert tags["rollback_reason"] == "worse answers"
    assert datetime.fromisoformat(tags["rolled_back_at"]).tzinfo is not None
    assert registry.rollback("still") == ("2", "1")
    assert served(registry) == ("1", None, None)
    with pytest.raises(InputError, match="nothing to roll back to: champion 1 of 'student' has no previous"):
        registry.rollback("again")
    assert served(registry) == ("1", None, None)


def test_a_version_that_was_rolled_back_can_serve_again_and_be_rolled_back_again(
    registry: Registry, checkpoint: Path
) -> None:
    promoted(registry, checkpoint, 3)
    registry.rollback("worse")
    registered(registry, "r4", checkpoint)
    registry.promote("4", "2")
    registry.promote("3", "4")
    assert served(registry) == ("3", "4", None)
    assert registry.rollback("worse again") == ("3", "4")  # not to 2, where it went the first time
    assert served(registry) == ("4", "2", None)


def test_a_rollback_does_without_a_deleted_older_version(registry: Registry, checkpoint: Path) -> None:
    promoted(registry, checkpoint, 3)
    registry.client.delete_model_version("student", "1")
    assert registry.rollback("worse") == ("3", "2")
    assert served(registry) == ("2", None, None)


def test_a_rollback_without_a_champion_says_so(registry: Registry) -> None:
    with pytest.raises(InputError, match="nothing to roll back to: 'student' has no champion"):
        registry.rollback("worse")


def test_of_promotions_at_once_one_wins(uri: str, checkpoint: Path) -> None:
    first = connect(uri, "", "student", 10)
    promoted(first, checkpoint, 1)
    contenders = [registered(first, f"c{number}", checkpoint).version for number in range(4)]
    refused: list[str] = []

    def contend(version: str) -> None:
        try:
            first.promote(version, "1")
        except Failure:
            refused.append(version)

    threads = [threading.Thread(target=contend, args=(version,)) for version in contenders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    champion, previous, _ = served(first)
    assert sorted([*refused, champion]) == contenders
    assert previous == "1"


# -- reaching it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    ["", "mlflow.db", "file:///tmp/mlruns", "sqlite:///", "sqlite:///:memory:", "postgresql://u:pw@h/db", "http://"],
)
def test_an_address_of_another_kind_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match=r"registry.uri.*sqlite:///FILE or the http") as caught:
        connect(uri, "", "student", 1)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("student", ["", "a/b", "it's", "a b"])
def test_a_student_name_that_cannot_stand_in_a_search_is_refused(student: str, uri: str) -> None:
    with pytest.raises(InputError, match="student = "):
        connect(uri, "", student, 1)


def test_credentials_are_masked() -> None:
    assert masked("GET https://me:p@ss@host:5000/x failed") == "GET https://***@host:5000/x failed"
    assert masked("http://host:5000/a@b sqlite:////tmp/x@y.db") == "http://host:5000/a@b sqlite:////tmp/x@y.db"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Failure, match=r"file/mlflow.db cannot be opened.*set registry.uri"):
        connect(f"sqlite:///{tmp_path}/file/mlflow.db", "", "student", 1)


def test_a_file_that_is_no_database_is_named_at_once_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_text("no database\n" * 100)
    with pytest.raises(Failure, match=r"mlflow.db cannot be opened \(DatabaseError"):
        connect(f"sqlite:///{path}", "", "student", 1)
    assert path.read_text().startswith("no database")


def test_a_database_locked_for_good_is_a_failure_within_the_timeout(uri: str) -> None:
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        with pytest.raises(Failure, match="locked"):
            connect(uri, "", "student", 0.3)
        assert time.monotonic() - started < 5


def test_a_lock_held_for_too_long_is_a_failure_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db.lock"
    with (
        file_lock(path),
        pytest.raises(Failure, match=r"another process has held .*mlflow.db.lock"),
        file_lock(path, 0.1),
    ):
        pass
    with file_lock(path, 0.1):
        pass


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def refusal(uri: str, timeout: float) -> str:
    started = time.monotonic()
    with pytest.raises(Failure) as caught:
        connect(uri, "", "student", timeout)
    assert time.monotonic() - started < timeout + 2
    return str(caught.value)


def test_a_server_that_is_not_there_is_a_failure_without_its_credentials() -> None:
    port = unused_port()
    message = refusal(f"http://me:secret@127.0.0.1:{port}", 5)
    assert f"http://***@127.0.0.1:{port} cannot be reached (ConnectError" in message
    assert "secret" not in message
    assert "mlflow server" in message


def test_a_server_with_an_unknown_name_is_a_failure() -> None:
    assert "http://registry.invalid:5000 cannot be reached" in refusal("http://registry.invalid:5000", 3)


def test_a_server_that_never_answers_is_a_failure_within_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        message = refusal(f"http://127.0.0.1:{deaf.getsockname()[1]}", 0.5)
    assert "cannot be reached" in message


def test_a_server_that_is_no_mlflow_is_a_failure() -> None:
    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Stranger) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert "/health was answered with 404" in refusal(f"http://127.0.0.1:{server.server_port}", 5)


# -- several processes, and a server --------------------------------------------------------------------------------

CONNECT = "import sys; from deployments.registry import connect; connect(sys.argv[1], '', 'student', 10)"


def connecting(uri: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CONNECT, uri], stderr=subprocess.PIPE)


@pytest.mark.slow
def test_four_processes_on_a_fresh_database_all_connect(tmp_path: Path) -> None:
    processes = [connecting(f"sqlite:///{tmp_path}/mlflow.db") for _ in range(4)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    assert not (tmp_path / "mlflow.db.new").exists()


@pytest.mark.slow
def test_a_creation_killed_half_way_leaves_a_place_where_the_next_one_succeeds(tmp_path: Path) -> None:
    process = connecting(f"sqlite:///{tmp_path}/mlflow.db")
    unfinished = tmp_path / "mlflow.db.new"
    deadline = time.monotonic() + 60
    while not (unfinished.exists() and unfinished.stat().st_size > 300_000):  # 950 kB when it is whole
        assert process.poll() is None
        assert time.monotonic() < deadline
    process.kill()
    process.communicate()
    assert unfinished.exists()
    assert not (tmp_path / "mlflow.db").exists()
    assert served(connect(f"sqlite:///{tmp_path}/mlflow.db", "", "student", 10)) == (None, None, None)


@pytest.fixture
def server(tmp_path: Path, schema: Path) -> Iterator[str]:
    shutil.copy(schema, tmp_path / "server.db")
    uri = f"http://127.0.0.1:{unused_port()}"
    store = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    files = ["--artifacts-destination", str(tmp_path / "files"), "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", uri.rpartition(":")[2]]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *store, *files], cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, (tmp_path / "server.log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{uri}/health", timeout=2).is_success:
                    break
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


@pytest.mark.integration
def test_a_server_keeps_promotes_and_gives_back_students(server: str, checkpoint: Path, tmp_path: Path) -> None:
    registry = connect(server, "", "student", 30)
    promoted(registry, checkpoint, 2)
    assert served(registry) == ("2", "1", None)
    run_id = registry.record(
        "r3", params={"a": 1}, metrics=[("loss", 0.5, 0, 1)], tags={}, artifacts=[checkpoint / "config.json"]
    )
    assert registry.client.get_run(run_id).data.metrics == {"loss": 0.5}
    folder = registry.fetch("2", tmp_path / "cache")
    assert (folder / "sub" / "model.safetensors").read_bytes() == bytes(range(256))
    assert registry.fetch("2", tmp_path / "cache") == folder
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]
    assert registry.rollback("worse") == ("2", "1")
    assert served(registry) == ("1", None, None)
