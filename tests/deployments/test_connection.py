import contextlib
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import repeat
from pathlib import Path

import pytest

from deployments.connection import file_lock, masked, reach_server
from deployments.errors import Failure, InputError
from deployments.registry import Registry, connect

Cutter = Callable[[Registry, int], Registry]
Served = Callable[[Registry], tuple[str | None, str | None, str | None]]


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
        seconds = []
        for _ in range(3):  # the quickest counts: a busy machine may keep one of them waiting
            started = time.monotonic()
            with pytest.raises(Failure, match="locked"):
                connect(uri, "", "student", 0.3)
            seconds.append(time.monotonic() - started)
        assert min(seconds) < 5, "SQLite's own limit"


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


def refusal(uri: str, timeout: float) -> str:
    started = time.monotonic()
    with pytest.raises(Failure) as caught:
        connect(uri, "", "student", timeout)
    assert time.monotonic() - started < timeout + 30  # MLflow's own client would try for minutes
    return str(caught.value)


def test_a_server_that_is_not_there_is_a_failure_without_its_credentials(free_port: Callable[[], int]) -> None:
    port = free_port()
    message = refusal(f"http://me:secret@127.0.0.1:{port}", 60)
    assert f"http://***@127.0.0.1:{port} cannot be reached (ConnectError" in message
    assert "secret" not in message
    assert "mlflow server" in message


def test_a_server_with_an_unknown_name_is_a_failure() -> None:
    assert "http://registry.invalid:5000 cannot be reached" in refusal("http://registry.invalid:5000", 3)


def test_a_server_that_never_answers_is_a_failure_within_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        message = refusal(f"http://127.0.0.1:{deaf.getsockname()[1]}", 0.5)
    assert "cannot be reached" in message


@contextlib.contextmanager
def answering(codes: Iterator[int]) -> Iterator[str]:
    """Serve on loopback, with the next of these status codes for each request; yields the address."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(next(codes))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_a_server_that_is_no_mlflow_is_a_failure() -> None:
    with answering(repeat(404)) as uri:
        assert "/health was answered with 404" in refusal(uri, 60)


def test_a_server_that_is_busy_for_a_moment_is_asked_again() -> None:
    codes = iter([503, 502, 200])
    with answering(codes) as uri:
        reach_server(uri, 60)
    assert list(codes) == []


def test_a_server_that_stays_busy_is_a_failure_within_the_timeout() -> None:
    with answering(repeat(503)) as uri:
        assert "/health was answered with 503" in refusal(uri, 5)


CONNECT = "import sys; from deployments.registry import connect; connect(sys.argv[1], '', 'student', 10)"


def connecting(uri: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CONNECT, uri], stderr=subprocess.PIPE)


@pytest.mark.slow
def test_four_processes_on_a_fresh_database_all_connect(tmp_path: Path) -> None:
    processes = [connecting(f"sqlite:///{tmp_path}/mlflow.db") for _ in range(4)]
    for process in processes:
        _, errors = process.communicate(timeout=900)
        assert process.returncode == 0, errors.decode()
    assert not (tmp_path / "mlflow.db.new").exists()


@pytest.mark.slow
def test_a_creation_killed_half_way_leaves_a_place_where_the_next_one_succeeds(tmp_path: Path, served: Served) -> None:
    process = connecting(f"sqlite:///{tmp_path}/mlflow.db")
    unfinished = tmp_path / "mlflow.db.new"
    deadline = time.monotonic() + 600
    while not (unfinished.exists() and unfinished.stat().st_size > 300_000):  # 950 kB when it is whole
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert unfinished.exists()
    assert not (tmp_path / "mlflow.db").exists()
    assert served(connect(f"sqlite:///{tmp_path}/mlflow.db", "", "student", 10)) == (None, None, None)
