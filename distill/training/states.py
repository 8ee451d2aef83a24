"""The state of a training run (torch DCP), published whole or not at all, and read only if it is what was published.

checkpoints/LATEST               which states there are: SHA-256 of each of their files, and how far the run had come
checkpoints/step-000050/         one of them
checkpoints/step-000100.partial/ one that is being written, or was when the run was killed: removed by the next run

DCP unpickles its metadata and everything that is no tensor, so no file is opened whose digest LATEST does not name.
"""

import hashlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch.distributed as dist

from distill.errors import Failure, InputError
from distill.training.progress import Progress

LATEST = "LATEST"


def save(folder: Path, state: dict[str, Any], progress: Progress, *, keep: int) -> None:
    """Write the state after `progress.step`, publish it, and keep the newest `keep` and the best. Collective.

    A crash at any point leaves what was published before. Raises Failure when it cannot be written.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

    rank, name = dist.get_rank(), name_of(progress.step)
    partial = folder / f"{name}.partial"
    if rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
    dist.barrier()
    try:
        save_distributed(state, checkpoint_id=str(partial))  # every process syncs its files, the first the metadata
    except CheckpointException as error:  # no Exception, torch says: it would pass all our handlers
        raise Failure(f"the training state {str(partial)!r} could not be written: {_first_of(error)}") from error
    mine = sorted(partial.glob(f"__{rank}_*")) + ([partial / ".metadata"] if rank == 0 else [])
    digests: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(digests, {path.name: _digest(path) for path in mine})
    if rank == 0:
        _publish(folder, partial, {name: digest for part in digests for name, digest in part.items()}, progress, keep)
    dist.barrier()


def restore(folder: Path, state: dict[str, Any], *, best: bool = False) -> Progress | None:
    """Load the latest state, or the best by validation, into `state`; None when there is none yet. Collective.

    Raises InputError, naming the file, when a state is not what was published.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load as load_distributed

    published, steps = _published(folder), there(folder)  # a damaged one may have been deleted
    if not steps:
        return None
    progress = Progress(**published[name_of(steps[-1])]["progress"])
    name = name_of(progress.best_step if best else steps[-1])
    if name not in published:
        raise InputError(
            f"the best training state, {str(folder / name)!r}, is gone: delete {str(folder)!r} to start anew"
        )
    _check(folder / name, published[name]["files"])
    try:
        load_distributed(state, checkpoint_id=str(folder / name))
    except CheckpointException as error:
        raise InputError(
            f"the training state {str(folder / name)!r} is none of this model ({_first_of(error)}): "
            f"delete {str(folder)!r} to start anew"
        ) from error
    return progress


def sweep(folder: Path) -> None:
    """Remove what a killed run left half written. Collective.

    Raises InputError when not all processes see the same folder.
    """
    _require_shared(folder)
    published = _published(folder)
    dist.barrier()  # every process has read what there is
    if dist.get_rank() == 0:
        for found in folder.glob("step-*"):
            if found.name not in published:
                shutil.rmtree(found)
    dist.barrier()


def _require_shared(folder: Path) -> None:
    sign, token = folder / ".shared", [uuid.uuid4().hex]
    dist.broadcast_object_list(token)
    if dist.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        sign.write_text(token[0])
    dist.barrier()
    seen: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(seen, sign.is_file() and sign.read_text() == token[0])
    if blind := [rank for rank, sees in enumerate(seen) if not sees]:
        raise InputError(
            f"ranks {blind} do not see what rank 0 writes to {str(folder)!r}: the output of a training has to lie on a "
            "file system that all machines share"
        )


def name_of(step: int) -> str:
    """Return the name of a state's folder."""
    return f"step-{step:06d}"


def there(folder: Path) -> list[int]:
    """Return the steps of which a published state lies in `folder`, the newest last."""
    return sorted(_step(name) for name in _published(folder) if (folder / name).is_dir())


def gone(folder: Path) -> list[int]:
    """Return the steps of which a state was published that somebody has removed since, the newest last."""
    return sorted(_step(name) for name in _published(folder) if not (folder / name).is_dir())


def _step(name: str) -> int:
    return int(name.removeprefix("step-"))


def _publish(folder: Path, partial: Path, files: dict[str, str], progress: Progress, keep: int) -> None:
    states = {name: state for name, state in _published(folder).items() if (folder / name).is_dir()}
    whole = folder / name_of(progress.step)
    shutil.rmtree(whole, ignore_errors=True)
    _sync_folder(partial)
    os.rename(partial, whole)
    states[whole.name] = {"files": files, "progress": progress.as_json()}
    kept = {*sorted(states, key=_step)[-keep:], name_of(progress.best_step)}
    latest = folder / f"{LATEST}.partial"
    with latest.open("w") as file:
        json.dump({"states": {name: state for name, state in states.items() if name in kept}}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(latest, folder / LATEST)
    _sync_folder(folder)
    for name in states.keys() - kept:
        shutil.rmtree(folder / name)


def _published(folder: Path) -> dict[str, Any]:
    path = folder / LATEST
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text("utf-8"))["states"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{str(path)!r} is damaged, or of another version: delete {str(folder)!r} to start anew"
        ) from error


def _check(step: Path, files: dict[str, str]) -> None:
    """Raise InputError in all processes unless each file is what was published; they share the reading."""
    wrong = []
    for name in sorted(files)[dist.get_rank() :: dist.get_world_size()]:
        if not (step / name).is_file():
            wrong.append(f"{name} is missing")
        elif _digest(step / name) != files[name]:
            wrong.append(f"{name} has another SHA-256")
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, wrong)
    if wrong := [problem for part in found for problem in part]:
        raise InputError(
            f"training state {str(step)!r} is not what was published ({'; '.join(wrong[:3])}): delete that folder to "
            f"go on from the state before it, or {str(step.parent)!r} to start anew"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_of(error: Any) -> str:
    rank, (reason, _) = min(error.failures.items())
    return f"process {rank}: {type(reason).__name__}: {reason}"
