"""outcome.json: what came of a training, beside the student."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.training.progress import Progress

OUTCOME = "outcome.json"


def write(output: Path, progress: Progress, steps: int, held: NDArray[np.bool_]) -> None:
    """Say which step's weights are exported and why, and which rows were for validation; `steps` were planned."""
    by_validation = progress.best_step > 0
    outcome = {
        "steps": progress.step,
        "steps_planned": steps,
        "stopped_early": progress.step < steps,
        "exported_step": progress.best_step or progress.step,
        "exported_because": "best validation loss" if by_validation else "last step (validation is off)",
        "validation_loss": progress.best_loss,
        "rows": {"mixture": len(held), "training": int((~held).sum()), "validation": int(held.sum())},
        "validation_rows": np.flatnonzero(held).tolist(),
    }
    partial = output / f"{OUTCOME}.partial"
    partial.write_text(json.dumps(outcome, indent=1))
    os.replace(partial, output / OUTCOME)


def read(output: Path) -> dict[str, Any]:
    """Return what `write` wrote."""
    return dict(json.loads((output / OUTCOME).read_text("utf-8")))
