"""Starts the training processes of this machine, streams their lines and takes the whole tree down.

    python -m distill.launch request.json                                                       one machine
    python -m distill.launch request.json --nodes 2 --node-rank 0 --rendezvous 10.0.0.1:29400   the first of two
    python -m distill.launch request.json --nodes 2 --node-rank 1 --rendezvous 10.0.0.1:29400   the second

Each machine has an agent of torch elastic (distill.machines.agent) and its workers (distill.worker). Where one process
dies all of them end; the next start goes on from the last training state, on as many processes and machines as it is
given.

exit codes: 0 done, 1 the training failed, 2 the request or an option cannot be used
"""

import argparse
import contextlib
import ctypes
import json
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from distill.errors import Failure, InputError
from distill.machines.nodes import Nodes
from distill.request import ERROR, PROGRESS, TrainRequest, step_line

_PR_SET_PDEATHSIG = 1
_GRACE = 10.0  # seconds between SIGTERM and SIGKILL
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_RANK = re.compile(r"^\[rank \d+\] ")
_PIECE = re.compile(r"(\[rank \d+\] |^)(.*?)(?=\[rank \d+\] |$)")
ALONE = Nodes()


def train_in_processes(
    request: Path,
    processes: int,
    *,
    on_line: Callable[[str], None],
    on_step: Callable[[dict[str, Any]], None],
    nodes: Nodes = ALONE,
) -> None:
    """Train on `processes` of this machine; `on_step` is given each step's record, `on_line` every other line.

    With several nodes each of them has to call this; all need the folders of the request (a shared file system). Raises
    Failure with the reason of the first process that failed, or InputError where it found what cannot be used. Nothing
    is left running afterwards, also when this process is interrupted or killed.
    """
    for left in range(nodes.restarts, -1, -1):
        failed = _attempt(request, processes, nodes, on_line, on_step)
        if failed is None:
            return
        if failed["kind"] == "own" or not left:
            raise (InputError if failed["bad_input"] else Failure)(_told(failed))
        on_line(f"{_told(failed)}. Starting again ({left} left)")


def _attempt(
    request: Path,
    processes: int,
    nodes: Nodes,
    on_line: Callable[[str], None],
    on_step: Callable[[dict[str, Any]], None],
) -> dict[str, Any] | None:
    """Run the agent once; returns None when the training is finished, else how it failed."""
    last: deque[str] = deque(maxlen=20)
    failed: dict[str, Any] = {}
    with _tree(_command(request, processes, nodes), _environment(processes)) as agent:
        assert agent.stdout is not None
        for shown in chain.from_iterable(map(_apart, agent.stdout)):
            text = _RANK.sub("", shown)
            if (record := _record(text, PROGRESS)) is not None:
                on_step(record)
            elif (found := _record(text, ERROR)) is not None:
                failed = found
            else:
                last.append(shown)
                on_line(shown)
        code = agent.wait()
    if not code:
        return None
    if failed:
        return failed
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    reason = f"the agent of this machine {how}: {' | '.join(last)}"
    return {"rank": -1, "kind": "killed" if code < 0 else "own", "reason": reason, "log": "", "bad_input": False}


def _apart(line: str) -> list[str]:
    """Return what each rank said in a line of the agent's, each once, with its rank before it.

    The agent copies what there is of a rank's line when it looks, be it without its end: what others have said since,
    and the rest of it, then follow on the same line.
    """
    line = line.removesuffix("\n")
    if line.startswith(ERROR):  # of the agent itself, and may quote anything
        return [line]
    said: dict[str, str] = {}
    for rank, text in _PIECE.findall(line):
        said[rank] = said.get(rank, "") + text
    whole = [rank + text for rank, text in said.items() if text]
    return whole or [line]


def _record(text: str, kind: str) -> dict[str, Any] | None:
    """Return the record of a line of this kind; None for another line, and for one that is not whole."""
    try:
        return dict(json.loads(text.removeprefix(kind))) if text.startswith(kind) else None
    except ValueError:
        return None


def _told(failed: dict[str, Any]) -> str:
    if failed["rank"] < 0:
        return f"training failed: {failed['reason']}"
    who = f"rank {failed['rank']} (process {failed['pid']} on node {failed['node']})"
    goes_on = "" if failed["kind"] == "own" else "; started again, the training goes on from its last checkpoint"
    between = ": " if failed["kind"] == "own" else " "
    return f"training failed: {who}{between}{failed['reason']}{goes_on}. All it said: {failed['log']}"


def _command(request: Path, processes: int, nodes: Nodes) -> list[str]:
    plan = {"request": str(request), "processes": processes, "nodes": asdict(nodes)}
    return [sys.executable, "-m", "distill.machines.agent", json.dumps(plan)]


def _environment(processes: int) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // processes)
    root = str(Path(__file__).resolve().parent.parent)  # the workers import the very package that starts them
    return {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads leave the cores to others
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
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


def main() -> int:
    """Train what a request says; returns the exit code: 1 when it failed, 2 when it cannot be used."""
    arguments = _parser().parse_args()
    from distill.training import places

    try:
        request = TrainRequest.load(arguments.request)
        given = {
            "nodes": arguments.nodes,
            "node_rank": arguments.node_rank,
            "rendezvous": arguments.rendezvous,
            "rendezvous_seconds": arguments.rendezvous_seconds,
            "restarts": arguments.restarts,
        }
        nodes = Nodes.of(request.settings.model_copy(update={name: v for name, v in given.items() if v is not None}))
        processes = request.settings.processes if arguments.processes is None else arguments.processes
        places.check(request)
        train_in_processes(arguments.request, processes, on_line=_show, on_step=_show_step, nodes=nodes)
    except (InputError, Failure) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return os.EX_OK


def _show(line: str) -> None:
    print(line, flush=True)


def _show_step(record: dict[str, Any]) -> None:
    _show(step_line(record))


def _at_least(least: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return int(text)

    return count


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m distill.launch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("request", type=Path, help="request.json of a training; its folders are read and written on every machine")
    add("--nodes", type=_at_least(1), help="machines that train together (request: training.nodes)")
    add("--node-rank", type=_at_least(0), help="which of them this one is, from 0; 0 hosts the rendezvous")
    add(
        "--rendezvous",
        metavar="HOST:PORT",
        help="an address of machine 0 that the others reach; only it is listened at",
    )
    add("--rendezvous-seconds", type=float, metavar="S", help="how long to wait for the others [s]")
    add("--processes", type=_at_least(1), help="training processes on this machine")
    add(
        "--restarts",
        type=_at_least(0),
        help="new starts after a process or machine was lost; its own errors end a training",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
