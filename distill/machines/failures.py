"""Why a process failed: one small file each, so that the first cause is told from those that it drew after it."""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

# By its own error; from outside; by SIGTERM, with which an agent ends the others, too; because another was gone.
Kind = Literal["own", "killed", "ended", "lost"]
_DRAWN: tuple[Kind, ...] = "ended", "lost"  # after a cause, in this order


@dataclass(frozen=True)
class Failed:
    """How one process of a run ended."""

    rank: int
    node: int
    pid: int
    time: float  # [s since 1970]
    kind: Kind
    reason: str
    log: str
    bad_input: bool = False  # an InputError: another start with the same would fail as well


def note(folder: Path, failed: Failed) -> None:
    """Write it down; before the process ends, and so before the others can notice."""
    path = folder / f"rank-{failed.rank}.failed.json"
    partial = path.with_suffix(f".{os.getpid()}")
    with partial.open("w") as file:
        json.dump(asdict(failed), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def noted(folder: Path) -> list[Failed]:
    """Return what was noted, the likeliest cause first: who was ended or lost the others comes last, then by time."""
    found = [Failed(**json.loads(path.read_text())) for path in folder.glob("rank-*.failed.json")]
    return sorted(found, key=lambda failed: (failed.kind in _DRAWN and 1 + _DRAWN.index(failed.kind), failed.time))


def cause(folder: Path, patience: float) -> Failed | None:
    """Return the first cause; waits up to `patience` seconds for another machine's word while only losses are known."""
    deadline = time.monotonic() + patience
    while True:
        found = noted(folder)
        if (found and found[0].kind != "lost") or time.monotonic() >= deadline:
            return found[0] if found else None
        time.sleep(0.1)


def kind_of(error: BaseException) -> Kind:
    """Return "lost" for what torch raises when another process is gone, else "own"."""
    from torch.distributed import DistNetworkError

    if isinstance(error, (DistNetworkError, ConnectionError)):
        return "lost"
    text = str(error).lower()
    signs = ("gloo/", "connection closed by peer", "connection reset", "broken pipe", "nccl", "remote process exited")
    return "lost" if isinstance(error, RuntimeError) and any(sign in text for sign in signs) else "own"
