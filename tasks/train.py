"""Training: the student learns the mixture in processes of its own."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from distill import checkpoint
from distill.launch import train_in_processes
from distill.machines.nodes import Nodes
from distill.request import TrainRequest
from distill.settings import TrainingSettings
from distill.training import outcome
from tasks import costs, progress, purchases, rounds
from tasks.run import Run, run_stage
from tasks.teaching import Teaching, teacher_of


@task(name="train", cache_policy=NO_CACHE)
def train(run: Run, start: Path, teaching: Teaching) -> Path:
    """Return the new student's checkpoint; goes on from the last training checkpoint of an interrupted run."""
    first, settings = run.request.champion is None, teaching.training

    def work(folder: Path) -> dict[str, Any]:
        request = TrainRequest(
            start=str(start),
            mixture=str(run.stage("signals") / "mixture.safetensors"),
            signals=teaching.signals,
            output=str(folder),
            epochs=settings.first_epochs if first else settings.epochs,
            learning_rate=settings.first_learning_rate if first else settings.learning_rate,
            settings=settings,
            **_teacher(teaching),
        )
        request.save(folder / "request.json")
        came = {}
        if settings.mode == "on_policy":
            came = rounds.learn(run, request, teaching, partial(_train, settings=settings))
        elif not (folder / "student").is_dir():
            _train(folder / "request.json", settings)
        last = step_records(folder)[-1]
        ended = outcome.read(folder)
        return {
            "student_sha256": checkpoint.digest(folder / "student"),
            "steps": last["step"],
            "loss": last["loss"],
            **{name: ended[name] for name in ("exported_step", "exported_because", "stopped_early", "validation_loss")},
            "rows": ended["rows"],
            "not_reached_because": ended.get("not_reached_because", ""),
            **came,
        }

    result = run_stage(
        run,
        "train",
        work,
        inputs={"start": checkpoint.digest(start), "mixture": checkpoint.digest(run.stage("signals"))},
        settings={**settings.model_dump(), **rounds.settings_of(teaching)},
        resumable=True,
    )
    if settings.mode == "on_policy":
        purchases.record(run, "train", teaching.ledger)
        costs.show("train", result)
    return run.stage("train") / "student"


def _teacher(teaching: Teaching) -> dict[str, Any]:
    """Return what a request has to say of the teacher, whose weights most trainings do without."""
    if not (teaching.training.live_teacher or teaching.teacher.signals_format.startswith("hidden")):
        return {}
    from distill.teachers.openai import OpenAITeacher

    teacher = teacher_of(teaching)
    assert not isinstance(teacher, OpenAITeacher)  # its settings allow neither of the two
    return {"teacher": str(teacher.folder), "teacher_sha256": teacher.digest}


def step_records(folder: Path) -> list[dict[str, Any]]:
    """Return the record of every training step, in order."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _train(request: Path, settings: TrainingSettings) -> None:
    with ExitStack() as stack:
        shown: list[Callable[[int, int], None]] = [
            stack.enter_context(progress.bar("training", "steps")),
            stack.enter_context(progress.artifact("training", "steps of the training that are done")),
        ]

        log = get_run_logger().info

        def on_step(record: dict[str, Any]) -> None:
            if record["step"] % max(1, record["steps"] // 10) == 0 or record["step"] == record["steps"]:
                told = [record[name] for name in ("step", "steps", "loss", "divergence")]
                log("step %d of %d: loss %.4f, divergence %.4f", *told)
            if "validation_loss" in record:
                log("step %d of %d: validation loss %.4f", record["step"], record["steps"], record["validation_loss"])
            for show in shown:
                show(record["step"], record["steps"])

        train_in_processes(request, settings.processes, on_line=log, on_step=on_step, nodes=Nodes.of(settings))
