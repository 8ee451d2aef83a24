"""One training process: python -m distill.worker request.json

Alone it is the whole training, in one process. distill.launch starts several of them, which end with their agent: none
outlives the run that asked for it.
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
    parser = argparse.ArgumentParser(prog="python -m distill.worker", description=__doc__.splitlines()[0])
    parser.add_argument("request", type=Path, help="the request.json that a training wrote into its folder")
    path = parser.parse_args().request
    if LOGS in os.environ:
        os.dup2(1, 2)  # one log a rank

    from distill.errors import Failure, InputError

    try:
        _train(TrainRequest.load(path))
    except Exception as error:
        if LOGS in os.environ:
            _note(error)
        if LOGS in os.environ or not isinstance(error, (InputError, Failure)):
            traceback.print_exc()
        else:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, InputError) else 1
    return os.EX_OK


def _train(request: TrainRequest) -> None:
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore

    from distill.trainer import train

    cuda = request.settings.device != "cpu" and torch.cuda.is_available()
    backend = "cuda:nccl,cpu:gloo" if cuda else "gloo"
    if LOGS in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    train(request)
    dist.destroy_process_group()  # not after an error: it would wait for the others


def _note(error: Exception) -> None:
    """Write down why, before the others can notice that this process is gone."""
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
