"""outcome.json: what came of a training, beside the student."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from distill.batching.order import Order
from distill.training.progress import Progress

OUTCOME = "outcome.json"


def write(output: Path, progress: Progress, steps: int, order: Order, *, first: int = 0, goes_on: bool = False) -> None:
    """Say which step's weights are exported and why, and what became of each row; `steps` were planned.

    first: steps that were done before on other rows. goes_on: more steps will follow, on other rows. A row was trained
    on, held out for validation, or in none of the steps that were done: the counts add up.
    """
    early = progress.step < steps and not goes_on
    by_validation = progress.best_step > 0 and not goes_on
    held, trained = order.left_out, order.reached(progress.step - first)
    missed = ~(held | trained)
    planned = "its round has no more steps" if first or goes_on else "training.epochs is below 1"
    ended = "validation ended it" if early else planned
    why = f"the training ended within its first pass over the rows: {ended}" if missed.any() else ""
    outcome = {
        "steps": progress.step,
        "steps_planned": steps,
        "stopped_early": early,
        "exported_step": progress.best_step if by_validation else progress.step,
        "exported_because": _because(by_validation, goes_on),
        "validation_loss": progress.best_loss,
        "rows": {
            "mixture": len(held),
            "training": int(trained.sum()),
            "validation": int(held.sum()),
            "not_reached": int(missed.sum()),
        },
        "validation_rows": np.flatnonzero(held).tolist(),
        "not_reached_rows": np.flatnonzero(missed).tolist(),
        "not_reached_because": why,
    }
    partial = output / f"{OUTCOME}.partial"
    partial.write_text(json.dumps(outcome, indent=1))
    os.replace(partial, output / OUTCOME)


def _because(by_validation: bool, goes_on: bool) -> str:
    if by_validation:
        return "best validation loss"
    return "last step of its round" if goes_on else "last step (validation is off)"


def read(output: Path) -> dict[str, Any]:
    """Return what `write` wrote."""
    return dict(json.loads((output / OUTCOME).read_text("utf-8")))
