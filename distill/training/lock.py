"""A training's folder belongs to one training at a time: two would remove each other's half-written states.

checkpoints/.lock is held by the first process while it trains, and ends with the process.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch.distributed as dist

from distill.errors import InputError

PATIENCE = 60.0  # seconds in which the processes of a training that was killed come to their end
_PAUSE = 0.2  # seconds between looks


@contextmanager
def alone_in(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Have the folder of training states alone. Collective.

    Raises InputError in all processes where another training is at work in it for longer than `patience` seconds.
    """
    lock: TextIO | None = None
    told: list[Any] = [None]
    try:
        if dist.get_rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / ".lock").open("w")
            told = [_taken(lock, folder, patience)]
        dist.broadcast_object_list(told)
        if told[0]:
            raise InputError(told[0])
        yield
    finally:
        if lock is not None:
            lock.close()


def _taken(lock: TextIO, folder: Path, patience: float) -> str:
    """Take the lock; returns why it cannot be had."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return (
                    f"another training is at work in {str(folder.parent)!r}: wait for its end, or give this one an "
                    "output of its own"
                )
            time.sleep(_PAUSE)
        except OSError as error:  # a file system without locks
            print(f"{str(folder)!r} cannot be locked ({error}): see to it that one training at a time uses it")
            return ""
        else:
            return ""
