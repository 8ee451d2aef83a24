"""One training process: python -m torch.distributed.run --nproc-per-node N -m distill.worker request.json

Started by distill.launch. Ends with its parent: a training process never outlives the run that asked for it.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Train what the request says; returns the exit code."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    import torch
    import torch.distributed as dist

    from distill.request import ERROR, TrainRequest
    from distill.trainer import train

    request = TrainRequest.load(Path(sys.argv[1]))
    cuda = request.settings.device != "cpu" and torch.cuda.is_available()
    dist.init_process_group("cuda:nccl,cpu:gloo" if cuda else "gloo")
    try:
        train(request)
    except Exception as error:
        print(f"{ERROR}process {dist.get_rank()}: {type(error).__name__}: {error}", flush=True)
        raise
    finally:
        if sys.exc_info()[0] is None:
            dist.destroy_process_group()
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
