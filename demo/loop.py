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
STATE = ("mlflow.db", "mlartifacts", "runs", "bentoml", "signals")  # what a retrain changes in a workspace

Retrain = Callable[[str, str | None], dict[str, Any]]  # (config, window) -> how it ended


def main(retrain: Retrain, show: Callable[[dict[str, Any]], None], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Run the loop in ./redistill-demo, showing how each retrain ends; returns the end of the last."""
    workspace = Path(WORKSPACE).absolute()
    with tqdm(desc="teacher: training", unit=" steps", file=sys.stderr, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        config = str(helpdesk.prepare(workspace, progress))
    start_from_champion(workspace, {"workspace": str(workspace), "overrides": overrides}, lambda: retrain(config, None))
    print(f"\n1. A quiet window, {helpdesk.QUIET_WINDOW}, before the product launch")
    show(retrain(config, str(helpdesk.QUIET_WINDOW)))
    print(f"\n2. The window after the launch, {helpdesk.DRIFTED_WINDOW}")
    ended = retrain(config, str(helpdesk.DRIFTED_WINDOW))
    show(ended)
    print(
        f"\nEverything lies in {workspace}: the request log in traffic/, teacher signals in signals/, every retrain "
        f"in runs/,\nMLflow's runs and models in mlflow.db (mlflow ui --backend-store-uri sqlite:///{WORKSPACE}/mlflow.db)"
        f"\nEvidently report: {ended['report']}"
    )
    return ended


def start_from_champion(workspace: Path, made_from: Mapping[str, Any], make: Callable[[], object]) -> None:
    """Put the workspace back to when its first champion had just been made; on first use, make and keep that."""
    kept = workspace / "kept"
    marker = kept / "made_from.json"
    if marker.is_file() and json.loads(marker.read_text()) == dict(made_from):
        _copy(kept, workspace)
        return
    shutil.rmtree(kept, ignore_errors=True)
    print("making the first champion, once")
    make()
    partial = workspace / "kept.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    _copy(workspace, partial)
    (partial / "made_from.json").write_text(json.dumps(made_from))
    os.replace(partial, kept)


def _copy(source: Path, target: Path) -> None:
    for name in STATE:
        old = target / name
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        if (source / name).is_dir():
            shutil.copytree(source / name, old, symlinks=True)
        elif (source / name).is_file():
            shutil.copy2(source / name, old)
