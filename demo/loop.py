"""The embedded loop: a champion of the time before, a quiet window that is held, a drifted one that is retrained.

    python -m flows.retrain

Teacher and champion are made on first use and kept; every run starts anew from them.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from demo import helpdesk

WORKSPACE = "redistill-demo"
KEPT, MARKER = "kept", "made_from.json"
LEDGER = ("decisions.db", "decisions.db-journal")
STATE = ("mlflow.db", "mlartifacts", "runs", "bentoml", "signals", "monitor", *LEDGER)  # what retrains change

Retrain = Callable[[str, str], dict[str, Any]]  # (config, window) -> how it ended


def main(
    retrain: Retrain, show: Callable[[dict[str, Any]], None], settings: Callable[[str], Mapping[str, Any]]
) -> dict[str, Any]:
    """Run the loop in ./redistill-demo, showing how each retrain ends; returns the end of the last.

    `settings` returns those of a settings file that change a result.
    """
    workspace = Path(WORKSPACE).absolute()
    with tqdm(desc="teacher: training", unit=" steps", file=sys.stderr, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        config = str(helpdesk.prepare(workspace, progress))
    first_champion(workspace, config, retrain, settings(config))
    print(f"\n1. A quiet window, {helpdesk.QUIET_WINDOW}, before the product launch")
    show(retrain(config, helpdesk.QUIET_WINDOW))
    print(f"\n2. The window after the launch, {helpdesk.DRIFTED_WINDOW}")
    ended = retrain(config, helpdesk.DRIFTED_WINDOW)
    show(ended)
    print(
        f"\nEverything lies in {workspace}: the request log in traffic/, teacher signals in signals/, every retrain "
        f"in runs/,\nMLflow's runs and models in mlflow.db (mlflow ui --backend-store-uri sqlite:///{WORKSPACE}/mlflow.db)"
        f"\nEvidently report: {ended['report']}"
    )
    return ended


def first_champion(workspace: Path, config: str, retrain: Retrain, settings: Mapping[str, Any]) -> None:
    """Put the workspace back to when its first champion had just been made, which on first use is now.

    `settings` are those that change a result: a champion of others, or of another teacher, is made anew.
    """
    recipes = [(workspace / name / "recipe.json").read_text() for name in ("teacher", "base")]
    made_from = {"workspace": str(workspace), "settings": dict(settings), "recipes": recipes}
    marker = workspace / KEPT / MARKER
    if marker.is_file() and json.loads(marker.read_text()) == made_from:
        restore(workspace)
        return
    if (workspace / KEPT).exists():
        _remove(workspace)
    print("making the first champion, once")
    retrain(config, helpdesk.REFERENCE_WINDOW)  # the window is named so that an interrupted one is gone on with
    partial = workspace / f"{KEPT}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    _copy(workspace, partial)
    (partial / MARKER).write_text(json.dumps(made_from))
    shutil.rmtree(workspace / KEPT, ignore_errors=True)
    os.replace(partial, workspace / KEPT)


def restore(workspace: Path) -> None:
    """Put the workspace back to when the champion that is kept had just been made."""
    _copy(workspace / KEPT, workspace)


def _copy(source: Path, target: Path) -> None:
    _remove(target)
    for name in STATE:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, symlinks=True)
        elif (source / name).is_file():
            shutil.copy2(source / name, target / name)


def _remove(workspace: Path) -> None:
    for path in (workspace / name for name in STATE):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
