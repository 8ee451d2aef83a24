"""What a training is made from: the same in all its processes, and the same as what made the states it goes on from.

checkpoints/REQUEST says what the training states of a folder were made from, so that no other training takes them up.
Rounds have rows of their own: what all of them are made from is in rounds.json (distill.rounds.loop).
"""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from distill.checkpoint import digest, resolve
from distill.errors import Failure, InputError
from distill.request import TrainRequest
from distill.training.states import LATEST, there

MADE_FROM = "REQUEST"
ROUNDS = "rounds.json"  # of a training in rounds, beside checkpoints/: by which settings, and under MADE what from
MADE = "made_from"
_TOLD = 8  # ranks in a message
_MAY_CHANGE = (
    *("learning_rate", "first_learning_rate"),  # one of them is the request's, which is compared as little
    *("loss_spike", "norm_spike", "spike_steps", "patience", "max_grad_norm", "checkpoint_steps", "device"),
)


def claim(request: TrainRequest) -> None:
    """Write down what this training is made from. Collective.

    Raises InputError in all processes where they would not learn from the same, or `output` has states of another
    training, and Failure where it cannot be written.
    """
    said: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(said, _seen(request))
    if found := difference(said):
        raise InputError(found)
    refused: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            _write(request)
        except InputError as error:
            refused = [error]
        except OSError as error:
            refused = [Failure(f"checkpoints/{MADE_FROM} cannot be written to {request.output!r} ({error})")]
    dist.broadcast_object_list(refused)
    if refused[0] is not None:
        raise refused[0]


def difference(said: list[dict[str, str]]) -> str:
    """Return which processes would learn from something else than rank 0, or could not read it; empty when none.

    said: what `_seen` returned, one entry a rank.
    """
    if failed := [f"rank {rank}: {seen['error']}" for rank, seen in enumerate(said) if "error" in seen]:
        return "; ".join(failed[:_TOLD])
    others = {name: [rank for rank, seen in enumerate(said) if seen[name] != said[0][name]] for name in said[0]}
    told = [f"{name} (other on rank {', '.join(map(str, ranks[:_TOLD]))})" for name, ranks in others.items() if ranks]
    if not told:
        return ""
    return (
        f"the processes of this training do not have the same {' nor the same '.join(told)} as rank 0: copy rank 0's "
        "files to the other machines, or name what lies on a file system that all of them share"
    )


def _seen(request: TrainRequest) -> dict[str, str]:
    """Return digests of what this process would learn from; what went wrong is returned, too: the others wait."""
    try:
        return {"request": request.digest(), **_files(request, Path(request.mixture))}
    except (InputError, OSError) as error:
        return {"error": str(error)}


def _write(request: TrainRequest) -> None:
    path = request.states / "checkpoints" / MADE_FROM
    made_from = check(request, Path(request.mixture))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{MADE_FROM}.partial")
    partial.write_text(json.dumps(made_from, indent=1))
    os.replace(partial, path)


def check(request: TrainRequest, mixture: Path) -> dict[str, str]:
    """Return what a training with the rows of `mixture` is made from; InputError as of `claim`."""
    folder, rounds = request.states / "checkpoints", request.states / ROUNDS
    made_from = {"settings": _resumable(request).digest(), **_files(request, mixture)}
    whole = request.settings.mode == "on_policy" and request.part is None and rounds.is_file()
    path = rounds if whole else folder / MADE_FROM
    if not (folder / LATEST).is_file() or not path.is_file():
        return made_from
    try:
        said = json.loads(path.read_text("utf-8"))
        before = dict(said[MADE] if whole else said)
    except (ValueError, TypeError, KeyError):
        before = {}
    may_differ = "mixture" if _begins(request, folder) else ""  # it has rows of its own
    if other := [name for name, found in made_from.items() if before.get(name) != found and name != may_differ]:
        raise InputError(
            f"output {str(request.states)!r} has the states of another training (other {', '.join(other)}): name "
            f"another folder, or delete {str(folder)!r} to start anew"
        )
    return made_from


def _begins(request: TrainRequest, folder: Path) -> bool:
    """Return whether the newest state is what the request's part of a training begins from."""
    return request.part is not None and there(folder)[-1:] == [request.part.first]


def _files(request: TrainRequest, mixture: Path) -> dict[str, str]:
    return {"start": digest(resolve(request.start, "start")), "mixture": _digest(mixture)}


def _resumable(request: TrainRequest) -> TrainRequest:
    """Return the request without what may be changed to go on from an unspoiled state, as a guard advises."""
    fields = type(request.settings).model_fields
    usual = {name: fields[name].default for name in _MAY_CHANGE}
    part = (
        replace(request.part, first=0, last=request.part.steps) if request.part else None
    )  # all parts are one training
    return replace(request, learning_rate=1.0, settings=request.settings.model_copy(update=usual), part=part)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
