"""Weights & Biases beside MLflow: the parameters and numbers of a retrain once more, never a prompt.

A retrain is written as an offline run by a process of its own, and for "online" sent by `wandb sync`: so an
unreachable server costs a retrain no more than `timeout`, and what was not sent lies there to be sent later.
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deployments.process import family, start, stop
from deployments.runs import Metric

API_KEY = "WANDB_API_KEY"  # in the environment, never in a settings file


@dataclass(frozen=True)
class Tracker:
    """Where a retrain is tracked besides; `timeout` [s] is for writing it and for sending it, each."""

    mode: Literal["offline", "online"]
    project: str
    api_key: str = field(default="", repr=False)
    timeout: float = 120.0


def track(
    tracker: Tracker,
    retrain_id: str,
    student: str,
    *,
    params: Mapping[str, object],
    metrics: Iterable[Metric],
    folder: Path,
) -> dict[str, Any]:
    """Writes an offline run below `folder` and sends it if asked to; returns what was done, and what went wrong.

    `folder` (of the offline run, within the given one), `points`, `sent`, `trouble`: "" or a sentence. Raises nothing
    for a Weights & Biases that fails: the registry has it all.
    """
    steps: dict[int, dict[str, float]] = defaultdict(dict)
    for key, value, step, _ in metrics:
        steps[step][key] = value
    folder.mkdir(parents=True, exist_ok=True)
    request = folder / "run.json"
    told = {
        "id": retrain_id,
        "project": tracker.project,
        "group": student,
        "config": {key: str(value) for key, value in params.items()},
        "steps": sorted(steps.items()),
    }
    request.write_text(json.dumps(told), "utf-8")
    done: dict[str, Any] = {"folder": "", "points": sum(map(len, steps.values())), "sent": False, "trouble": ""}
    done["trouble"] = _run(tracker, ["-m", "deployments.tracking", request.name], folder)
    written = [path.name for path in folder.glob("offline-run-*")]
    if not done["trouble"] and written:
        done["folder"] = written[0]
        if tracker.mode == "online":
            said = _run(tracker, ["-m", "wandb", "sync", written[0]], folder)
            done["sent"] = any((folder / written[0]).glob("*.synced"))  # its exit code is 0 whatever came of it
            done["trouble"] = "" if done["sent"] else said or f"wandb sync {written[0]}: it was not sent, see wandb.log"
    return done


def _run(tracker: Tracker, arguments: list[str], folder: Path) -> str:
    """Runs Python in `folder`; returns "", or what went wrong, without the key."""
    quiet = {"WANDB_ERROR_REPORTING": "false", "WANDB_CONSOLE": "off", "WANDB_MODE": tracker.mode}
    here = str(Path(__file__).resolve().parents[1])
    paths = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**quiet, "PYTHONPATH": paths, API_KEY: tracker.api_key if tracker.mode == "online" else ""}
    log = folder / f"{arguments[1].rpartition('.')[2]}.log"
    with log.open("wb") as output:
        process = start([sys.executable, *arguments], environment=environment, output=output, folder=folder)
        try:
            process.wait(tracker.timeout)
        except subprocess.TimeoutExpired:
            return f"{' '.join(arguments[1:])}: not done within registry.wandb_timeout = {tracker.timeout:g} s"
        finally:
            stop(process, family(process))
    if process.returncode == 0:
        return ""
    reason = (log.read_text("utf-8", "replace").strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    return f"{' '.join(arguments[1:])}: {reason.replace(tracker.api_key, '***') if tracker.api_key else reason}"


def _write(request: Path) -> None:
    """Writes the run that `request` describes beside it. No console, code, host name or environment goes along."""
    import wandb

    told = json.loads(request.read_text("utf-8"))
    settings = wandb.Settings(
        mode="offline",
        console="off",
        disable_git=True,
        host="redistill",
        save_code=False,
        disable_job_creation=True,
        silent=True,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    names = {name: told[name] for name in ("id", "project", "group", "config")}
    run = wandb.init(name=told["id"], dir=str(request.parent), settings=settings, **names)
    for step, values in told["steps"]:
        run.log(values, step=step)
    run.finish()
    place = Path(run.settings.sync_dir)
    place.rename(request.parent / place.name)


if __name__ == "__main__":
    _write(Path(sys.argv[1]).absolute())
