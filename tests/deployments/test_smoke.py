"""A smoke test serves for real, says what was wrong, and leaves no process, whatever happens to it or its parent."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from deployments import process
from deployments.bento import smoke
from deployments.bento.build import Bento
from deployments.bento.smoke import smoke_test
from deployments.errors import Failure, InputError
from deployments.settings import PackagingSettings


def _wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        pause.wait(0.05)


def _serving(bento: Bento) -> list[psutil.Process]:
    """Return the processes that serve this Bento (workers carry its path in their command line too)."""
    found = []
    for candidate in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(bento.path) in candidate.cmdline() and candidate.status() != psutil.STATUS_ZOMBIE:
                found.append(candidate)
    return found


@pytest.fixture
def other(bento: Bento, tmp_path: Path) -> Bento:
    """The same Bento at a place of its own, so that its processes can be told from those of `server`."""
    shutil.copytree(bento.path, tmp_path / "other")
    return Bento(bento.tag, tmp_path / "other")


@pytest.mark.integration
def test_the_smoke_test_agrees_with_the_librarys_own_scores_and_leaves_nothing(
    student: Path, other: Bento, prompts: list[str], limits: dict[str, int]
) -> None:
    from distill.scoring import score

    longest, most = limits["max_prompt_tokens"], limits["max_new_tokens"]
    scores = score(student, prompts, max_prompt_tokens=longest, max_new_tokens=most, device="cpu")
    assert scores.truncated >= 1
    before = {path: path.stat().st_mtime_ns for path in other.path.rglob("*")}
    result = smoke_test(other, prompts, scores.responses, model_version="7", timeout=600)
    assert result.agreed == len(prompts)
    assert result.answers == scores.responses
    assert result.mean_logprob == pytest.approx(scores.mean_logprob, abs=1e-5)
    assert 0 < result.seconds_to_ready < 600
    assert _serving(other) == []
    assert {path: path.stat().st_mtime_ns for path in other.path.rglob("*")} == before


@pytest.mark.integration
def test_answers_that_differ_fail_the_smoke_test_by_number_and_leave_nothing(
    client: httpx.Client, other: Bento, prompts: list[str]
) -> None:
    expected = [row["response"] for row in client.post("/generate", json={"prompts": prompts}).json()]
    expected[1] = expected[3] = "something else"
    with pytest.raises(Failure, match="answers 2 of 5 smoke prompts otherwise") as raised:
        smoke_test(other, prompts, expected, model_version="7", timeout=600)
    assert not [text for text in (*prompts[:4], *expected) if text in str(raised.value)]
    assert _serving(other) == []


def test_a_bento_of_another_model_version_fails_the_smoke_test() -> None:
    bento = Bento("tiny:7-r0", Path("nowhere"))
    reply = httpx.Response(200, json=[{"response": "a", "mean_logprob": -1.0, "model_version": "6"}])
    with pytest.raises(Failure, match="says it is model version 6, not 7"):
        smoke._check_answers(bento, reply, ["a"], "7")
    with pytest.raises(Failure, match="status 503"):
        smoke._check_answers(bento, httpx.Response(503), ["a"], "7")


def test_a_request_that_was_refused_fails_the_smoke_test_with_its_reason_and_where_the_limits_are() -> None:
    bento, said = Bento("tiny:7-r0", Path("nowhere")), {"error": "the body is longer than 1024 bytes", "detail": []}
    with pytest.raises(Failure, match=r"status 413.*: the body is longer than 1024 bytes \(.*packaging.max_"):
        smoke._check_answers(bento, httpx.Response(413, json=said), ["a"], "7")
    with pytest.raises(Failure, match=r"status 502, not with 200 \("):
        smoke._check_answers(bento, httpx.Response(502, text="<html>"), ["a"], "7")


@pytest.mark.parametrize(
    ("most", "longest", "sizes"),
    [(256, 8_000_000, [5]), (2, 8_000_000, [2, 2, 1]), (256, 1300, [2, 2, 1]), (4, 9, [1, 1, 1, 1, 1])],
)
def test_smoke_prompts_are_asked_in_as_many_requests_as_the_limits_want(
    most: int, longest: int, sizes: list[int]
) -> None:
    found = list(smoke._requests(["ä" * 300] * 5, most, longest))
    assert [part.stop - part.start for part in found] == sizes


@pytest.mark.integration
def test_a_small_limit_on_the_bytes_of_a_request_is_kept_by_the_smoke_test(
    build_bento: Callable[..., Bento], client: httpx.Client, tmp_path: Path
) -> None:
    prompts = ["ä" * 300] * 5
    expected = [row["response"] for row in client.post("/generate", json={"prompts": prompts}).json()]
    small = build_bento(tmp_path, settings=PackagingSettings(max_body_bytes=1300))
    assert smoke_test(small, prompts, expected, model_version="7", timeout=600).agreed == 5


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_a_taken_port_is_refused_before_anything_starts(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "start", lambda *_, **__: pytest.fail("a server was started"))
    with pytest.raises(InputError, match=rf"packaging\.port = {taken}: .*in use"):
        smoke_test(Bento("tiny:7", Path("nowhere")), ["a"], ["b"], model_version="7", port=taken)


@pytest.mark.integration
def test_a_port_that_is_taken_meanwhile_is_named(other: Bento, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "free_port", lambda _: taken)
    with pytest.raises(Failure, match=rf"port {taken} was taken meanwhile.*packaging\.port"):
        smoke_test(other, ["a"], ["b"], model_version="7", timeout=600)
    assert _serving(other) == []


@pytest.mark.integration
def test_a_bento_whose_worker_dies_fails_with_its_reason_before_the_deadline(other: Bento) -> None:
    (other.path / "src" / "checkpoint" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(Failure, match=r"could not be served(.|\n)*safetensors"):
        smoke_test(other, ["a"], ["b"], model_version="7", timeout=600)
    assert _serving(other) == []


@pytest.mark.integration
def test_a_server_that_is_not_ready_in_time_is_ended(other: Bento) -> None:
    with pytest.raises(Failure, match=r"not ready after packaging\.timeout = 0\.5 s"):
        smoke_test(other, ["a"], ["b"], model_version="7", timeout=0.5)
    assert _serving(other) == []


# --- a parent that is killed -----------------------------------------------------------------------------------

SERVING = """
import sys
import threading
from pathlib import Path
from deployments.bento.build import Bento
from deployments.bento.smoke import serve
with serve(Bento("tiny:7", Path(sys.argv[1])), timeout=600):
    print("ready", flush=True)
    sys.stdin.read()
"""

BUILDING = """
import sys
import threading
from pathlib import Path
from deployments.bento.build import build
from deployments.settings import PackagingSettings
build(Path(sys.argv[1]), student="tiny", model_version="7", retrain_id="r0", max_prompt_tokens=8, max_new_tokens=8,
      labels={}, settings=PackagingSettings(), home=Path(sys.argv[2]), log=print)
"""


def _kill(parent: "subprocess.Popen[bytes]", when: Callable[[list[psutil.Process]], bool]) -> None:
    """SIGKILL a process once its descendants are such, and wait until none of them is left."""
    children: list[psutil.Process] = []

    def is_time() -> bool:
        assert parent.poll() is None, "it ended before it could be killed"
        children[:] = psutil.Process(parent.pid).children(recursive=True)
        return when(children)

    try:
        _wait(is_time, 300, "the moment to kill")
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    _, left = psutil.wait_procs(children, timeout=300)
    for orphan in left:
        orphan.kill()
    assert left == []


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="the death signal of a parent is Linux's")
def test_nothing_is_left_of_a_server_whose_parent_is_killed(other: Bento) -> None:
    command = [sys.executable, "-c", SERVING, str(other.path)]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    _kill(parent, lambda children: len(children) >= 2)  # the server and its worker
    _wait(lambda: _serving(other) == [], 120, "no server left")


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="the death signal of a parent is Linux's")
def test_nothing_is_left_of_a_build_whose_parent_is_killed(student: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILDING, str(student), str(tmp_path)]
    parent = subprocess.Popen(command)
    _kill(parent, lambda _: any((tmp_path / "tmp").glob("build-*/home")))  # BentoML is at work
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not (tmp_path / "bentos").exists()
