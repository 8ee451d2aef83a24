"""Training: the student learns the mixture in processes of its own."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from distill import checkpoint
from distill.launch import train_in_processes
from distill.request import TrainRequest
from distill.settings import TrainingSettings
from tasks import progress
from tasks.run import Run, run_stage


@task(name="train", cache_policy=NO_CACHE)
def train(run: Run, start: Path, signals: str, settings: TrainingSettings) -> Path:
    """Return the new student's checkpoint; goes on from the last training checkpoint of an interrupted run."""
    first = run.request.champion is None

    def work(folder: Path) -> dict[str, Any]:
        request = TrainRequest(
            start=str(start),
            mixture=str(run.stage("signals") / "mixture.safetensors"),
            signals=signals,
            output=str(folder),
            epochs=settings.first_epochs if first else settings.epochs,
            learning_rate=settings.first_learning_rate if first else settings.learning_rate,
            settings=settings,
        )
        request.save(folder / "request.json")
        if not (folder / "student").is_dir():
            _train(folder / "request.json", settings.processes)
        last = step_records(folder)[-1]
        return {
            "student_sha256": checkpoint.digest(folder / "student"),
            "steps": last["steps"],
            "loss": last["loss"],
        }

    run_stage(
        run,
        "train",
        work,
        inputs={"start": checkpoint.digest(start), "mixture": checkpoint.digest(run.stage("signals"))},
        settings=settings,
        resumable=True,
    )
    return run.stage("train") / "student"


def step_records(folder: Path) -> list[dict[str, Any]]:
    """Return the record of every training step, in order."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _train(request: Path, processes: int) -> None:
    with ExitStack() as stack:
        shown: list[Callable[[int, int], None]] = [
            stack.enter_context(progress.bar("training", "steps")),
            stack.enter_context(progress.artifact("training", "steps of the training that are done")),
        ]

        log = get_run_logger().info

        def on_step(record: dict[str, Any]) -> None:
            if record["step"] % max(1, record["steps"] // 10) == 0 or record["step"] == record["steps"]:
                log("step %d of %d: loss %.4f, KL %.4f", *(record[key] for key in ("step", "steps", "loss", "kl")))
            for show in shown:
                show(record["step"], record["steps"])

        train_in_processes(request, processes, on_line=log, on_step=on_step)
