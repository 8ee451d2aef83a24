"""checkpoints/REQUEST: what the training states of a folder were made from, so that no other training takes them up."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

from distill.checkpoint import digest, resolve
from distill.errors import InputError
from distill.request import TrainRequest
from distill.training.states import LATEST

MADE_FROM = "REQUEST"
_MAY_CHANGE = "loss_spike", "norm_spike", "spike_steps", "patience", "max_grad_norm", "checkpoint_steps", "device"


def claim(request: TrainRequest) -> None:
    """Write down what this training is made from; InputError where `output` has states of another one."""
    path = Path(request.output) / "checkpoints" / MADE_FROM
    made_from = check(request, Path(request.mixture))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{MADE_FROM}.partial")
    partial.write_text(json.dumps(made_from, indent=1))
    os.replace(partial, path)


def check(request: TrainRequest, mixture: Path) -> dict[str, str]:
    """Return what a training with the rows of `mixture` is made from; InputError as of `claim`."""
    folder = Path(request.output) / "checkpoints"
    made_from = {
        "settings": _resumable(request).digest(),
        "start": digest(resolve(request.start, "start")),
        "mixture": _digest(mixture),
    }
    if not (folder / LATEST).is_file() or not (folder / MADE_FROM).is_file():
        return made_from
    try:
        before = dict(json.loads((folder / MADE_FROM).read_text("utf-8")))
    except (ValueError, TypeError):
        before = {}
    if other := [name for name, found in made_from.items() if before.get(name) != found]:
        raise InputError(
            f"output {request.output!r} has the states of another training (other {', '.join(other)}): name another "
            f"folder, or delete {str(folder)!r} to start anew"
        )
    return made_from


def _resumable(request: TrainRequest) -> TrainRequest:
    """Return the request without what may be changed to go on from an unspoiled state, as a guard advises."""
    fields = type(request.settings).model_fields
    usual = {name: fields[name].default for name in _MAY_CHANGE}
    return replace(request, learning_rate=1.0, settings=request.settings.model_copy(update=usual))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
