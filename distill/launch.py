"""Starts the training processes through torch elastic, streams their lines and takes the whole tree down."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from distill.errors import Failure
from distill.request import ERROR, PROGRESS

_PR_SET_PDEATHSIG = 1
_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def train_in_processes(
    request: Path,
    processes: int,
    *,
    on_line: Callable[[str], None],
    on_step: Callable[[dict[str, Any]], None],
) -> None:
    """Run `distill.worker` on this machine; `on_step` is given each step's record, `on_line` every other line.

    Raises Failure with the reason of the first process that failed. Nothing is left running afterwards, also when
    this process is interrupted or killed.
    """
    last: deque[str] = deque(maxlen=20)
    reasons: list[str] = []
    with _tree(_command(request, processes), _environment(processes)) as workers:
        assert workers.stdout is not None
        for line in workers.stdout:
            text = line.rstrip()
            if text.startswith(PROGRESS):
                on_step(json.loads(text.removeprefix(PROGRESS)))
                continue
            if text.startswith(ERROR):
                reasons.append(text.removeprefix(ERROR))
            last.append(text)
            on_line(text)
        code = workers.wait()
    if code:
        raise Failure(f"training failed with exit code {code}: {reasons[0] if reasons else ' | '.join(last)}")


def _command(request: Path, processes: int) -> list[str]:
    elastic = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "0"]
    return [*elastic, "--nproc-per-node", str(processes), "-m", "distill.worker", str(request)]


def _environment(processes: int) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // processes)
    root = str(Path(__file__).resolve().parent.parent)  # the workers import the very package that starts them
    return {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads leave the cores to others
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }


@contextlib.contextmanager
def _tree(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
        preexec_fn=partial(_die_with_parent, os.getpid()),
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _die_with_parent(parent: int) -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before we could ask
            os._exit(1)
