"""A step that would spoil the student is not taken: its loss is no number, or far above that of the steps before.

The run stops before the optimizer moves. A training state that a later step went on from is unspoiled; that of the very
step before may have been spoiled by it, which is seen only now. The rows of the batch are written down, since they are
the first thing to look at.
"""

import json
import math
from pathlib import Path
from statistics import median

import torch.distributed as dist

from distill.errors import Failure
from distill.mixture import Mixture
from distill.settings import TrainingSettings
from distill.training import states
from distill.training.progress import Progress

SUSPECTS = "suspect_rows.json"
_SHOWN = 8  # row numbers in the message; all of them are in the file


def check(
    progress: Progress,
    loss: float,
    norm: float,
    settings: TrainingSettings,
    chosen: list[int],
    rows: Mixture,
    out: Path,
    checkpoints: Path | None = None,
) -> None:
    """Raise Failure, naming step, loss and the batch's rows, unless the step may be taken. Collective where it raises.

    `chosen` are the row numbers of the global batch; all of them are written to `out`/suspect_rows.json. checkpoints:
    the folder of training states, if it is not `out`/checkpoints.
    """
    found = reason(progress, loss, norm, settings)
    if not found:
        return
    path, step = out / SUSPECTS, progress.step + 1
    if dist.get_rank() == 0:
        keys = [rows.keys[row].tobytes().hex() for row in chosen]
        table = {"step": step, "loss": str(loss), "grad_norm": str(norm), "reason": found, "rows": chosen, "keys": keys}
        path.write_text(json.dumps(table, indent=1))
    dist.barrier()  # the first process to fail ends the others
    shown = ", ".join(map(str, chosen[:_SHOWN])) + (", ..." if len(chosen) > _SHOWN else "")
    goes_on = _goes_on(checkpoints or out / "checkpoints", progress)
    raise Failure(
        f"step {step} was not taken: {found}. Its batch is rows {shown} of the mixture (all {len(chosen)} in "
        f"{str(path)!r}): look at them, then lower training.learning_rate; {goes_on}"
    )


def _goes_on(folder: Path, progress: Progress) -> str:
    """Return from what the training can go on when the step after `progress` was not taken; folder: of its states."""
    there, step = states.there(folder), progress.step
    if step in there and progress.losses:  # without losses it is the first of a round: `check_student` saw the last
        return (
            f"step {step} may have spoiled the student already, and its training state is saved: delete "
            f"{str(folder / states.name_of(step))!r}, too"
        )
    return "the training state before it is unspoiled" if there else "no training state was saved yet"


def check_validation(loss: float, held: list[int]) -> None:
    """Raise Failure for a validation loss that is no number: nothing would ever be better or worse than it."""
    if not math.isfinite(loss):
        raise Failure(
            f"the validation loss is {loss} over the {len(held)} rows that are held out (training.validation_share), "
            f"of which {held[:_SHOWN]} are the first in the mixture: look at their signals, or at what a live teacher "
            "makes of them; the last training state is unspoiled"
        )


def check_student(loss: float, progress: Progress, settings: TrainingSettings) -> None:
    """Raise Failure unless the finished student does about as well on its last batch as before its last step.

    loss: over that batch, with the weights that are to be exported.
    """
    if found := reason(progress, loss, 0.0, settings):
        raise Failure(
            f"the student was spoiled by its last step ({progress.step}) and is not exported: on the same rows "
            f"{found}; lower training.learning_rate, delete the newest training state, {progress.step}, and start again"
        )


def reason(progress: Progress, loss: float, norm: float, settings: TrainingSettings) -> str:
    """Return why a step with this loss and gradient norm must not be taken; empty when it may."""
    if not math.isfinite(loss) or not math.isfinite(norm):
        return f"the loss is {loss} and the gradient norm {norm}"
    for name, value, before, factor, setting in (
        ("loss", loss, progress.losses, settings.loss_spike, "loss_spike"),
        ("gradient norm", norm, progress.norms, settings.norm_spike, "norm_spike"),
    ):
        if not factor or len(before) < settings.spike_steps:
            continue
        usual = median(before[-settings.spike_steps :])
        if value > factor * usual:
            return (
                f"the {name} is {value:.6g}, more than training.{setting} = {factor:g} times its median "
                f"{usual:.6g} over the last {settings.spike_steps} steps (where steps of sound rows differ that much, "
                f"raise training.{setting}; 0: never)"
            )
    return ""
