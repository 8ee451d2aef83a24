"""Training in real processes that are killed at bad moments, on one machine and on two."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from distill import checkpoint
from distill.errors import Failure
from distill.launch import train_in_processes

pytestmark = pytest.mark.slow
STEPS = 6
Records = Callable[[Path], list[dict[str, Any]]]
ROOT = Path(__file__).resolve().parents[2]
LIMIT = 180.0  # seconds, on a machine that is busy with something else


def wait_until(condition: Callable[[], Any], seconds: float = LIMIT) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.005)
    return found


def trained(request: Path, processes: int, on_line: Callable[[str], None] = print) -> Path:
    train_in_processes(request, processes, on_line=on_line, on_step=lambda record: None)
    return request.parent


def worker(rank: int, output: Path) -> psutil.Process | None:
    """Return the process of a rank of the training in this folder."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        try:
            ours = "distill.worker" in command and str(output / "request.json") in command
            if ours and process.environ().get("RANK") == str(rank):
                return process
        except psutil.Error:  # it ended meanwhile
            continue
    return None


def curve(records: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in records]


@pytest.fixture(scope="module")
def on_two(request_in: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run on two processes."""
    return trained(request_in(tmp_path_factory.mktemp("whole") / "run", processes=2), 2)


def published(output: Path, step: int) -> bool:
    latest = output / "checkpoints" / "LATEST"
    return latest.is_file() and f"step-{step:06d}" in latest.read_text()


MOMENTS: dict[str, Callable[[Path], Any]] = {
    "at the first step": lambda output: (output / "metrics.jsonl").is_file() and (output / "metrics.jsonl").read_text(),
    "while a state is written": lambda output: list((output / "checkpoints").glob("step-000002.partial")),
    "after a state": lambda output: published(output, 2),
}


@pytest.mark.parametrize(
    ("started", "moment", "rank", "then"),
    [
        (2, "at the first step", 0, 2),
        (2, "while a state is written", 1, 1),
        (1, "after a state", 0, 2),
    ],
)
def test_a_rank_that_is_killed_is_named_and_the_next_start_goes_on_as_if_nothing_had_happened(
    started: int, moment: str, rank: int, then: int, on_two: Path, request_in: Any, records_of: Records, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    request = request_in(output)
    listening: list[str] = []

    def kill() -> None:
        process = wait_until(lambda: worker(rank, output))
        wait_until(lambda: MOMENTS[moment](output))
        process.suspend()
        family = [process, *(psutil.Process(process.ppid()).children())]
        listening.extend(c.laddr.ip for p in family for c in p.net_connections() if c.status == psutil.CONN_LISTEN)
        process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    said = rf"rank {rank} \(process \d+ on node 0\) was killed by SIGKILL; started again, the training goes on"
    with pytest.raises(Failure, match=said) as failure:
        trained(request, started)
    killer.join()
    log = Path(str(failure.value).rpartition("All it said: ")[2])
    assert (log.name, log.is_file(), log.parent.parent) == (f"rank-{rank}.log", True, output / "logs")
    assert set(listening) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    trained(request, then)
    if (started, then) == (2, 2):
        assert curve(records_of(output)) == curve(records_of(on_two))
        assert checkpoint.digest(output / "student") == checkpoint.digest(on_two / "student")
    np.testing.assert_allclose(curve(records_of(output)), curve(records_of(on_two)), rtol=2e-5)
    assert len(records_of(output)) == STEPS
    assert not list((output / "checkpoints").glob("*.partial"))


def test_a_worker_alone_makes_the_same_student_as_the_launcher(
    request_in: Any, records_of: Records, tmp_path: Path
) -> None:
    alone, launched = request_in(tmp_path / "alone"), request_in(tmp_path / "launched")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(os.cpu_count())}
    subprocess.run([sys.executable, "-m", "distill.worker", str(alone)], check=True, env=environment, timeout=LIMIT)
    lines: list[str] = []
    trained(launched, 1, on_line=lines.append)
    assert checkpoint.digest(alone.parent / "student") == checkpoint.digest(launched.parent / "student")
    assert curve(records_of(alone.parent)) == curve(records_of(launched.parent))
    wrong = subprocess.run(
        [sys.executable, "-m", "distill.worker", str(tmp_path / "nothing.json")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert wrong.returncode == 2
    assert "InputError: training request" in wrong.stderr.splitlines()[-1]


def launched(request: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "distill.launch", str(request), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def test_what_only_a_worker_finds_unusable_ends_the_launcher_with_2_and_a_failure_with_1(
    request_in: Any, tmp_path: Path
) -> None:
    wrong = launched(request_in(tmp_path / "uneven", replicas=3), "--restarts", "1")
    assert wrong.returncode == 2, wrong.stderr
    said = wrong.stderr.splitlines()[-1]
    assert said.startswith("InputError: training failed: rank 0 ")
    assert "training.replicas = 3: 1 processes cannot be divided among them" in said
    failed = launched(request_in(tmp_path / "spoiled", loss_spike=1e-3, spike_steps=3))
    assert failed.returncode == 1, failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("Failure: training failed: rank 0 ")


# --- two machines ----------------------------------------------------------------------------------------------------


def ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0


@contextmanager
def two_machines() -> Iterator[tuple[str, list[list[str]]]]:
    """Yield machine 0's address and what runs a command on each: network namespaces, else loopback addresses."""
    if not shutil.which("ip") or not ip("netns", "add", f"a{os.getpid()}"):
        yield "127.0.0.2", [[], []]
        return
    names = [f"{letter}{os.getpid()}" for letter in "ab"]
    try:
        assert ip("netns", "add", names[1])
        assert ip("link", "add", "v0", "netns", names[0], "type", "veth", "peer", "name", "v1", "netns", names[1])
        for number, name in enumerate(names):
            assert ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", f"v{number}")
            assert ip("-n", name, "link", "set", f"v{number}", "up")
            assert ip("-n", name, "link", "set", "lo", "up")
        yield "10.77.0.1", [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:
            ip("netns", "del", name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    root = psutil.Process(process.pid)
    for member in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def test_a_machine_that_is_killed_and_started_again_is_joined_by_the_other_and_the_curve_is_the_same(
    on_two: Path, request_in: Any, records_of: Records, tmp_path: Path
) -> None:
    request = request_in(tmp_path / "run")
    with two_machines() as (address, on), ExitStack() as stack:
        rendezvous = f"{address}:{free_port()}"

        def start(rank: int, name: str) -> subprocess.Popen[bytes]:
            said = stack.enter_context((tmp_path / name).open("wb"))
            command = [
                *on[rank],
                sys.executable,
                "-m",
                "distill.launch",
                str(request),
                "--nodes",
                "2",
                "--restarts",
                "2",
            ]
            command += ["--node-rank", str(rank), "--rendezvous", rendezvous, "--rendezvous-seconds", str(LIMIT)]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process

        first, second = start(0, "first.txt"), start(1, "second.txt")
        wait_until(lambda: published(request.parent, 2))
        kill_tree(second)
        again = start(1, "again.txt")
        assert (first.wait(LIMIT), again.wait(LIMIT)) == (0, 0), (tmp_path / "first.txt").read_text()
    said = (tmp_path / "first.txt").read_text()
    assert "a process or machine is gone without a word" in said
    assert "Starting again" in said
    for name in ("first.txt", "again.txt"):  # every machine shows how far it is
        assert f"step {STEPS} of {STEPS}: loss" in (tmp_path / name).read_text()
    assert curve(records_of(request.parent)) == curve(records_of(on_two))
    assert checkpoint.digest(request.parent / "student") == checkpoint.digest(on_two / "student")
