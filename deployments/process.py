"""Child processes that never outlive us: an own process group, taken down as a whole, and dying with their parent."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from deployments.errors import InputError

_PR_SET_PDEATHSIG = 1


def start(
    command: Sequence[str], *, environment: Mapping[str, str], output: int | IO[bytes], folder: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a command in its own process group, in `folder`, with stdout and stderr to `output`, nothing on stdin.

    On Linux it gets SIGTERM when the thread that started it ends, be it by SIGKILL.
    """
    parent = os.getpid()
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before the fork

    def die_with_parent() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it died before we could ask
                os._exit(1)

    return subprocess.Popen(
        list(command),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", **environment},
        start_new_session=True,
        preexec_fn=die_with_parent,
    )


def family(process: subprocess.Popen[bytes]) -> set[psutil.Process]:
    """Return the process and all its living descendants; empty when it has ended."""
    try:
        parent = psutil.Process(process.pid)
        return {parent, *parent.children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()


def stop(process: subprocess.Popen[bytes], known: set[psutil.Process], grace: float = 10.0) -> None:
    """End a process, its descendants and those `known` of before: SIGTERM, and after `grace` seconds SIGKILL.

    A server's workers lead their own sessions, so a signal to its group alone would miss them.
    """
    members = known | family(process)
    if process.poll() is None:
        process.terminate()  # a server ends its own workers
        _, left = psutil.wait_procs(members, timeout=grace)
    else:
        left = [member for member in members if member.is_running()]
    for member in left:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue  # it ended by itself in between
    psutil.wait_procs(left, timeout=grace)
    process.wait(timeout=grace)


def free_port(host: str, port: int, setting: str) -> int:
    """Return `port`, or a free one for 0; InputError, naming the setting, when it cannot be listened on."""
    if not 0 <= port < 1 << 16:
        raise InputError(f"{setting} = {port}: there is no such port; use 1 to 65535, or 0 for a free one")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            raise InputError(
                f"{setting} = {port}: {host}:{port} cannot be listened on ({os.strerror(error.errno or 0)}); "
                f"free it, or set {setting} to another one, or to 0 for a free one"
            ) from error
        return int(probe.getsockname()[1])


def last_lines(log: Path, count: int = 20) -> str:
    """Return the last lines of a server's log, without the frames of tracebacks.

    A worker's error would be lost above the frames of the server that misses it.
    """
    lines = log.read_text("utf-8", "replace").splitlines()
    told = [line for line in lines if line.strip() and not line.startswith(" ")]
    return "the server's last lines:\n" + "\n".join(told[-count:])
