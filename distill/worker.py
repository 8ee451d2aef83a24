"""One training process, which makes the student that a request asks for.

    python -m distill.worker request.json

request.json lies in the folder of every training; `output` in it names the folder that gets student/ (a Hugging Face
checkpoint), metrics.jsonl (a record a step), outcome.json and checkpoints/, from which it goes on when it was killed.
To make a student once more, name another folder there. The same request makes the same student.

Alone it is the whole training, in one process. distill.launch starts several of them, on one machine or many, which end
with their agent: none outlives the run that asked for it.

exit codes: 0 done, 1 the training failed, 2 the request cannot be used
"""

import argparse
import ctypes
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from distill.request import AGENT, LOGS, TrainRequest

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Train what the request says; returns the exit code: 1 when it failed, 2 when it cannot be used."""
    _end_with_agent(os.environ.pop(AGENT, ""))
    parser = argparse.ArgumentParser(
        prog="python -m distill.worker", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("request", type=Path, help="the request.json that a training wrote into its folder")
    path = parser.parse_args().request
    if LOGS in os.environ:
        os.dup2(1, 2)  # one log a rank

    from distill.errors import Failure, InputError

    try:
        request = TrainRequest.load(path)
        from distill.trainer import train

        train(request)
    except Exception as error:
        if LOGS in os.environ:
            _note(error)
        if LOGS in os.environ or not isinstance(error, (InputError, Failure)):
            traceback.print_exc()
        else:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, InputError) else 1
    return os.EX_OK


def _note(error: Exception) -> None:
    """Write down why, before the others can notice that this process is gone."""
    from distill.errors import InputError
    from distill.machines import failures

    rank, folder = int(os.environ["RANK"]), Path(os.environ[LOGS])
    fields: dict[str, Any] = {
        "rank": rank,
        "node": int(os.environ["GROUP_RANK"]),
        "pid": os.getpid(),
        "time": time.time(),
        "kind": failures.kind_of(error),
        "reason": f"{type(error).__name__}: {error}",
        "log": str(folder / f"rank-{rank}.log"),
        "bad_input": isinstance(error, InputError),
    }
    failures.note(folder, failures.Failed(**fields))


def _end_with_agent(agent: str) -> None:
    """Die with the agent that started this process; nothing for one that was started by hand."""
    if not agent or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(agent):  # it died before we could ask
        sys.exit(f"the agent {agent} that started this worker is gone")


if __name__ == "__main__":
    sys.exit(main())
