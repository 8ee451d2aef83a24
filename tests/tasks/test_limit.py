"""The limit of one promotion at a time, on a real Prefect server: held, freed after a SIGKILL, not to be widened."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from deployments import journal
from deployments.journal import Move
from deployments.registry import connect

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]

HOLD = """
import sys, time
from pathlib import Path
import flows.environment
from tasks.limit import one_at_a_time

student, entered, go = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
wait = float(sys.argv[4])
with one_at_a_time(student, wait=wait):
    entered.touch()
    while not go.exists():
        time.sleep(0.01)
"""


@pytest.fixture(scope="module")
def environment(free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a process that talks to a Prefect server of its own."""
    folder, port = tmp_path_factory.mktemp("prefect"), free_port()
    url = f"http://127.0.0.1:{port}/api"
    found = {**os.environ, "PREFECT_HOME": str(folder / "home"), "PREFECT_API_URL": url}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, env={**found, "PREFECT_API_URL": ""}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 600
        while not _answers(f"{url}/health"):
            assert server.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.25)
        yield found
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url, timeout=20).is_success
    return False


def holder(
    environment: dict[str, str], student: str, folder: Path, name: str, wait: float = 300
) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, student, str(folder / name), str(folder / "go"), str(wait)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_second_promotion_of_the_same_student_gets_no_slot_and_is_told_of_it(
    environment: dict[str, str], tmp_path: Path
) -> None:
    first = holder(environment, "helpdesk", tmp_path, "first")
    until((tmp_path / "first").exists, first)
    other = holder(environment, "other", tmp_path, "other")  # another student's does
    until((tmp_path / "other").exists, other)
    second = holder(environment, "helpdesk", tmp_path, "second", wait=1)
    _, said = second.communicate(timeout=300)
    assert second.returncode != 0
    assert "the concurrency limit 'promote-helpdesk' of the Prefect server gave no slot within 1 s" in said
    assert not (tmp_path / "second").exists()
    (tmp_path / "go").touch()
    assert (first.wait(120), other.wait(120)) == (0, 0)
    third = holder(environment, "helpdesk", tmp_path, "third")
    assert third.wait(120) == 0
    assert (tmp_path / "third").exists()


@pytest.mark.slow
def test_the_slot_of_a_killed_promotion_is_freed_when_its_lease_ends(
    environment: dict[str, str], tmp_path: Path
) -> None:
    killed = holder(environment, "killed", tmp_path, "first")
    until((tmp_path / "first").exists, killed)
    killed.kill()
    killed.communicate()
    (tmp_path / "go").touch()
    started = time.monotonic()
    second = holder(environment, "killed", tmp_path, "second", wait=240)
    assert second.wait(300) == 0, second.communicate()[1]
    assert time.monotonic() - started > 20, "the lease of 60 s was no lease"


def test_a_limit_that_was_widened_or_switched_off_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    url = f"{environment['PREFECT_API_URL']}/v2/concurrency_limits/"
    wide = {"name": "promote-wide", "limit": 2}
    httpx.post(url, json=wide, timeout=60).raise_for_status()
    process = holder(environment, "wide", tmp_path, "wide")
    _, said = process.communicate(timeout=300)
    assert "'promote-wide' of the Prefect server has limit = 2, active = True: it keeps promotions apart only" in said
    assert not (tmp_path / "wide").exists()


RECOVER = """
import sys
from pathlib import Path
import flows.environment
from flows import settings, wiring

workspace, reached = sys.argv[1], Path(sys.argv[2])
chosen = settings.load(None, {"workspace": workspace, "student": {"name": "cut"}})
places = wiring.Places(chosen)
wiring.registry(chosen, places, recover=False)  # everything is imported
reached.touch()
wiring.registry(chosen, places)
"""


def test_a_start_waits_for_the_promotion_at_work_before_it_finishes_what_looks_cut_short(
    environment: dict[str, str], tmp_path: Path
) -> None:
    registry = connect(f"sqlite:///{tmp_path}/mlflow.db", "", "cut", 120)
    version = str(registry.client.create_model_version("cut", "nowhere").version)
    move = Move(1, "promotion", None, version, None, None, None, None)
    assert journal.claim(registry.client, registry.promotions, move)
    promoting = holder(environment, "cut", tmp_path, "first")
    until((tmp_path / "first").exists, promoting)
    command = [sys.executable, "-c", RECOVER, str(tmp_path), str(tmp_path / "reached")]
    starting = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    until((tmp_path / "reached").exists, starting)
    with pytest.raises(subprocess.TimeoutExpired):
        starting.wait(15)
    assert registry.champion() is None
    (tmp_path / "go").touch()
    _, said = starting.communicate(timeout=300)
    assert starting.returncode == 0, said
    assert registry.aliased() == {"champion": version}
