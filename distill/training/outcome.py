"""outcome.json: what came of a training, beside the student."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from distill.batching.order import Order
from distill.training.progress import Progress

OUTCOME = "outcome.json"


def write(output: Path, progress: Progress, steps: int, order: Order) -> None:
    """Say which step's weights are exported and why, and what became of each row; `steps` were planned.

    A row was trained on, held out for validation, or in none of the steps that were done: the counts add up.
    """
    by_validation = progress.best_step > 0
    held, trained = order.left_out, order.reached(progress.step)
    missed = ~(held | trained)
    ended = "validation ended it" if progress.step < steps else "training.epochs is below 1"
    why = f"the training ended within its first pass over the rows: {ended}" if missed.any() else ""
    outcome = {
        "steps": progress.step,
        "steps_planned": steps,
        "stopped_early": progress.step < steps,
        "exported_step": progress.best_step or progress.step,
        "exported_because": "best validation loss" if by_validation else "last step (validation is off)",
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


def read(output: Path) -> dict[str, Any]:
    """Return what `write` wrote."""
    return dict(json.loads((output / OUTCOME).read_text("utf-8")))
