"""Shipping: into the registry, into a Bento, to the front; and back."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from deployments.bento.build import build
from deployments.bento.smoke import smoke_test
from deployments.errors import Failure, InputError, Spoiled
from deployments.registry import Registry
from deployments.runs import Metric
from deployments.settings import PackagingSettings
from deployments.tracking import Tracker, track
from deployments.verification import file_hash, hashes, verify_checkpoint
from distill.settings import StudentSettings
from distill.training.steplog import PARTS
from tasks import approve, card, costs, packed
from tasks.limit import one_at_a_time
from tasks.plan import WINDOW_FILE
from tasks.run import Run, code_revision, run_stage
from tasks.train import step_records

STEP_METRICS = ("loss", *PARTS, "grad_norm", "learning_rate", "validation_loss")


@task(name="register", cache_policy=NO_CACHE)
def register(run: Run, registry: Registry, student: Path, tracker: Tracker | None = None) -> dict[str, Any]:
    """Record the retrain as one MLflow run and register its student as the challenger; returns version and run."""
    trained = run.manifests()["train"]["result"]["student_sha256"]

    def work(folder: Path) -> dict[str, Any]:
        tags, stored = version_tags(run), hashes(student)
        if stored["sha256"] != trained:
            raise Spoiled(
                f"the student at {str(student)!r} is not what the training wrote: its SHA-256 is {stored['sha256']}, "
                f"written was {trained}; start a new retrain (--again)"
            )
        told, written = card.written(run, student), folder / card.CARD_FILE
        written.write_text(told, "utf-8")
        params = {"window_rows": run.request.window_rows, **run.request.settings, **_currency(run)}
        metrics = [*_training_metrics(run), *_outcome_metrics(run)]
        run_id = registry.record(
            run.request.retrain_id,
            params=params,
            metrics=metrics,
            tags=tags,
            artifacts=[*(path for path in _reports(run) if path.is_file()), written],
        )
        version = registry.register(run.request.retrain_id, run_id, student, {**tags, **stored}, told)
        tracked = _track(tracker, run, "", params, metrics, folder / "wandb")
        return {"version": version.version, "run_id": run_id, "hashes": stored, **tracked}

    return run_stage(run, "register", work, inputs={"student": trained})


def registered_hashes(run: Run) -> dict[str, str]:
    """Return what the files of the registered student must have: for deployments.verification.verify_checkpoint."""
    manifests = run.manifests()
    found = manifests["register"]["result"].get("hashes")
    return (
        dict(found) if found else {"sha256": manifests["train"]["result"]["student_sha256"]}
    )  # an earlier redistill's


def version_tags(run: Run) -> dict[str, str]:
    """Return where a model version comes from and by whose verdict, as registry tags."""
    request, manifests = run.request, run.manifests()
    before = request.champion
    return {
        "retrain_id": request.retrain_id,
        "sha256": manifests["train"]["result"]["student_sha256"],
        "window": request.window,
        "window_digest": request.window_digest,
        "window_sha256": file_hash(run.folder / WINDOW_FILE),
        "teacher": request.teacher,
        "verdict": manifests["judge"]["result"]["outcome"],
        "base_champion": before.version if before else "",
        "trained": json.dumps([*(before.trained if before else []), request.window]),
        "profiled": json.dumps([*(before.profiled if before else []), request.profile_window]),
        "code_revision": code_revision(),
    }


@task(name="package", cache_policy=NO_CACHE)
def package(
    run: Run, version: str, student: Path, home: Path, settings: PackagingSettings, limits: StudentSettings
) -> dict[str, Any]:
    """Build the Bento and serve it once on loopback: its greedy answers must be the checkpoint's.

    With 8-bit weights they must be those that were measured when it was built.
    """

    def work(folder: Path) -> dict[str, Any]:
        small = settings.format == "onnx-int8"
        prompts, expected = _smoke_rows(
            run, max(settings.smoke_rows, settings.agreement_rows if small else 0), settings
        )
        bento = build(
            student,
            student=run.request.student,
            model_version=version,
            retrain_id=run.request.retrain_id,
            labels={"retrain_id": run.request.retrain_id, "student": run.request.student},
            max_prompt_tokens=limits.max_prompt_tokens,
            max_new_tokens=limits.max_new_tokens,
            settings=settings,
            home=home,
            log=get_run_logger().info,
            prompts=prompts,
            expected=registered_hashes(run),
            card=card.written(run, student),
        )
        if bento.measured:
            expected = bento.measured.answers
        asked = slice(settings.smoke_rows)
        smoke = smoke_test(
            bento,
            prompts[asked],
            expected[asked],
            model_version=version,
            port=settings.port,
            timeout=settings.timeout,
        )
        result = {"tag": bento.tag, "path": str(bento.path), "smoke_rows": len(prompts[asked]), "agreed": smoke.agreed}
        return result | ({"int8": bento.measured.numbers()} if bento.measured else {})

    result = run_stage(run, "bento", work, inputs={"version": version}, settings=settings)
    whose = "those of its 8-bit weights" if "int8" in result else "the checkpoint's"
    told = [f"{name}: {value:.3g}" for name, value in result.get("int8", {}).items()]
    create_markdown_artifact(
        f"Bento `{result['tag']}`\n\n{result['agreed']} of {result['smoke_rows']} smoke-test answers were {whose}. "
        f"It lies at `{result['path']}`.\n\n{', '.join(told)}",
        key="bento",
        description="The packaged student",
    )
    return result


@task(name="refuse", cache_policy=NO_CACHE)
def refuse(run: Run, registry: Registry, version: str) -> None:
    """Say in the registry who refused a challenger."""
    registry.tag(version, approve.tags(run))


def check_files(run: Run, student: Path) -> None:
    """Raise Failure when the student or its Bento is not what was judged and packed: a person may have taken days."""
    verify_checkpoint(student, registered_hashes(run))
    bento = Path(run.manifests()["bento"]["result"]["path"])
    if not (bento / "bento.yaml").is_file():
        raise Failure(
            f"the Bento of retrain {run.request.retrain_id} is gone from {str(bento)!r}: delete "
            f"{str(run.stage('bento'))!r} and give the same command again, it is packed anew"
        )


@task(name="promote", cache_policy=NO_CACHE)
def promote(run: Run, registry: Registry, version: str, tracker: Tracker | None = None) -> dict[str, Any]:
    """Make the challenger the champion, unless another one took the place since the request was made.

    Its files in the registry's store must be those that were registered, each by its SHA-256.
    """
    before = run.request.champion

    def work(folder: Path) -> dict[str, Any]:
        found = registry.get(version)
        if taken_out := found.tags.get("rolled_back_at"):
            raise Spoiled(
                f"version {version} of {run.request.student!r} was promoted and then rolled back, at {taken_out}: "
                "it is not promoted again; give the same command with --again for a new retrain"
            )
        said, later = approve.tags(run), list(_later_metrics(run))
        registry.add(run.manifests()["register"]["result"]["run_id"], later)
        with one_at_a_time(run.request.student):
            verify_checkpoint(registry.fetch(version, run.folder.parent.parent / "checkpoints"), found.tags)
            registry.promote(version, expected=before.version if before else None)
        registry.tag(version, said)
        # As a run of its own: what is written offline cannot be gone on with.
        tracked = _track(tracker if later else None, run, "-profile", {}, later, folder / "wandb")
        return {"champion": version, "previous": before.version if before else None, **tracked}

    return run_stage(run, "promote", work, inputs={"version": version})


@task(name="rollback", cache_policy=NO_CACHE)
def rollback(registry: Registry, runs: Path, reason: str, expected: str | None = None) -> dict[str, Any]:
    """Put the previous champion back, if `expected` is the champion (None: whichever it is).

    Raises InputError when there is no previous one or its reference profile is gone, Failure when its files are not
    those that were registered, or somebody else changed the champion.
    """
    with one_at_a_time(registry.student):
        if (target := registry.rolls_back_to()) is not None:
            profile = runs / target.tags["retrain_id"] / "profile"
            if not (profile / "profile.json").is_file():
                raise InputError(
                    f"the previous champion's reference profile is missing at {str(profile)!r}: restore it first"
                )
            verify_checkpoint(registry.fetch(target.version, runs.parent / "checkpoints"), target.tags)
        before, now = registry.rollback(reason, expected, target.version if target else None)
    serving = runs / registry.get(now).tags["retrain_id"] / "profile"
    return {"from": before, "to": now, "reason": reason, "profile": str(serving)}


def _track(
    tracker: Tracker | None, run: Run, part: str, params: dict[str, Any], metrics: list[Metric], folder: Path
) -> dict[str, Any]:
    """Track numbers in Weights & Biases besides; what goes wrong there is said and counted, and fails nothing."""
    if tracker is None:
        return {}
    name = run.request.retrain_id + part
    done = track(tracker, name, run.request.student, params=params, metrics=metrics, folder=folder)
    if done["trouble"]:
        get_run_logger().error("Weights & Biases has not got run %s, MLflow has: %s", name, done["trouble"])
    return {"wandb": {**done, "troubles": int(bool(done["trouble"]))}}


def _smoke_rows(run: Run, count: int, settings: PackagingSettings) -> tuple[list[str], list[str]]:
    """Return held-out prompts that a service takes, and the challenger's answers to them, as scored by the judge."""
    scores = pd.read_parquet(run.stage("judge") / "scores.parquet")
    fresh = scores[scores["slice"] == scores["slice"].iloc[0]]
    rows = packed.servable(fresh, settings).head(count)
    return rows["prompt"].tolist(), rows["challenger_response"].tolist()


def _training_metrics(run: Run) -> Iterator[tuple[str, float, int, int]]:
    for record in step_records(run.stage("train")):
        milliseconds = int(record["time"] * 1000)
        for name, value in record.items():
            if name in STEP_METRICS or name.startswith("system/"):
                key = name if name.startswith("system/") else f"train/{name}"
                yield key, float(value), int(record["step"]), milliseconds


def _currency(run: Run) -> dict[str, str]:
    """Return what the money among the metrics is counted in, if there is any."""
    found = run.manifests()["signals"]["result"].get("cost", {})
    return {"teacher.currency": found["currency"]} if "currency" in found else {}


def _later_metrics(run: Run) -> Iterator[tuple[str, float, int, int]]:
    """Yield what the teacher cost in the stage that comes after the retrain was recorded."""
    profile = run.manifests()["profile"]
    now = int(datetime.fromisoformat(profile["end"]).timestamp() * 1000)
    for name, value in costs.numbers(profile["result"]["cost"]).items() if "cost" in profile["result"] else ():
        yield f"teacher/profile/{name}", float(value), 0, now


def _outcome_metrics(run: Run) -> Iterator[tuple[str, float, int, int]]:
    manifests = run.manifests()
    now = int(datetime.fromisoformat(manifests["judge"]["end"]).timestamp() * 1000)
    signals = manifests["signals"]["result"]
    values = {
        "signals/bought_tokens": signals["bought_tokens"],
        "signals/reused_tokens": signals["reused_tokens"],
    }
    for stage, manifest in manifests.items():
        if "cost" in manifest["result"]:
            values |= {f"teacher/{stage}/{name}": n for name, n in costs.numbers(manifest["result"]["cost"]).items()}
    for number, (_, means) in enumerate(manifests["judge"]["result"]["exact_match"].items()):
        for model in ("champion", "challenger"):
            if model in means:
                values[f"judge/{'fresh' if number == 0 else f'old_{number}'}/exact_match_{model}"] = means[model]
    values |= {f"seconds/{name}": manifest["seconds"] for name, manifest in manifests.items()}
    yield from ((key, float(value), 0, now) for key, value in values.items())


def _reports(run: Run) -> list[Path]:
    stages = [run.stage(name) / "manifest.json" for name in ("watch", "probe", "signals", "train", "judge")]
    return [
        *stages,
        run.stage("watch") / "drift.json",
        run.stage("watch") / "report.html",
        run.stage("judge") / "verdict.json",
    ]
