"""Watching: the window against the champion's profile, and the profile of a new champion."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from deployments.registry import Registry
from distill import scoring
from distill.settings import StudentSettings, TeacherSettings
from monitoring import policy, report, traffic
from monitoring.drift import DriftReport, compare
from monitoring.errors import InputError
from monitoring.features import features
from monitoring.policy import Decision
from monitoring.profile import ReferenceProfile, load_sample
from monitoring.settings import DriftSettings, ReferenceSettings, TrafficSettings
from tasks import progress
from tasks.plan import WINDOW_FILE, choose_window, current_champion, rows_of
from tasks.run import Champion, Run, run_stage


@dataclass(frozen=True)
class Watching:
    """The settings that watching goes by."""

    traffic: TrafficSettings
    drift: DriftSettings
    student: StudentSettings
    teacher: TeacherSettings


@task(name="watch", cache_policy=NO_CACHE)
def watch(run: Run, settings: Watching) -> dict[str, Any]:
    """Compare the run's window with its champion's profile; returns `trigger`, `reason`, and the drift report."""
    champion = run.request.champion

    def work(folder: Path) -> dict[str, Any]:
        if champion is None:
            return {"trigger": True, "reason": "there is no champion yet", "drift": None, "report": None}
        frame = pd.read_parquet(run.folder / WINDOW_FILE)
        drift, decision = observe(
            frame, run.request.window, champion, run.folder.parent, folder, settings, force=run.request.force
        )
        return {**decision.model_dump(), "drift": drift.model_dump(mode="json"), "report": "report.html"}

    result = run_stage(
        run,
        "watch",
        work,
        inputs={"window": run.request.window_digest, "champion": champion.digest if champion else None},
        settings=settings.drift,
    )
    if result["drift"] is not None:
        show(DriftReport.model_validate(result["drift"]), run.stage("watch") / result["report"])
    return result


@task(name="monitor", cache_policy=NO_CACHE)
def monitor(
    registry: Registry,
    runs: Path,
    reports: Path,
    log: str,
    *,
    asked: str | None,
    reference: ReferenceSettings,
    settings: Watching,
) -> dict[str, Any]:
    """Compare a window of the log with the champion's profile; returns the same as `watch`, with window and report.

    Raises InputError when there is no champion to compare it with.
    """
    champion = current_champion(registry, runs.parent / "checkpoints")
    if champion is None:
        raise InputError(
            f"student {settings.student.name!r} has no champion yet: python -m flows.retrain makes the first"
        )
    window, _, notice = choose_window(asked, champion, log, settings.traffic.window_days, reference)
    if notice:
        get_run_logger().warning(notice)
    frame = rows_of(log, window)
    folder = reports / f"{traffic.window_digest(frame)[:12]}-champion-{champion.version}"
    folder.mkdir(parents=True, exist_ok=True)
    drift, decision = observe(frame, str(window), champion, runs, folder, settings)
    show(drift, folder / "report.html")
    return {
        **decision.model_dump(),
        "window": str(window),
        "champion": champion.version,
        "drift": drift.model_dump(mode="json"),
        "report": str(folder / "report.html"),
    }


def observe(
    frame: pd.DataFrame,
    window: str,
    champion: Champion,
    runs: Path,
    folder: Path,
    settings: Watching,
    *,
    force: bool = False,
) -> tuple[DriftReport, Decision]:
    """Return drift report and decision for a window's rows; writes drift.json, features.parquet and report.html.

    Only held-out rows are compared: on rows that a champion was trained on it is over-confident.
    """
    held_out = frame[traffic.row_hash(frame["request_id"]) >= settings.traffic.held_out_from]
    profiled = profile_folder(runs, champion)
    now = features(
        answered(held_out, Path(champion.checkpoint), settings, "window: champion's answers", champion.version)
    )
    found = compare(ReferenceProfile.load(profiled), now, window, settings.drift)
    now.to_parquet(folder / "features.parquet")
    (folder / "drift.json").write_text(found.model_dump_json(indent=1))
    report.write_html(load_sample(profiled), now, found, folder / "report.html")
    return found, policy.decide(found, settings.drift, force=force)


def answered(frame: pd.DataFrame, model: Path, settings: Watching, what: str, version: str | None) -> pd.DataFrame:
    """Return the rows with `response` and `mean_logprob` of one model, by `model` itself where the log has none.

    Rows that the log says another version than `version` answered are answered anew: a mixture of two models would
    look like drift. With None all rows are.
    """
    missing = frame["response"].isna() | frame["mean_logprob"].isna()
    missing |= (frame["model_version"].notna() & (frame["model_version"] != version)) if version else True
    frame = frame.copy()
    with progress.bar(what, "rows") as shown:
        scores = scoring.score(
            model,
            frame.loc[missing, "prompt"].tolist(),
            max_prompt_tokens=settings.student.max_prompt_tokens,
            max_new_tokens=settings.student.max_new_tokens,
            batch_size=settings.teacher.batch_size,
            device=settings.teacher.device,
            progress=shown,
        )
    frame.loc[missing, "response"] = scores.responses
    frame.loc[missing, "mean_logprob"] = scores.mean_logprob
    return frame


@task(name="profile", cache_policy=NO_CACHE)
def profile(run: Run, log: str, student: Path, settings: Watching) -> dict[str, Any]:
    """Freeze the statistics of the new champion's world, from held-out rows that it has answered."""

    def work(folder: Path) -> dict[str, Any]:
        frame = rows_of(log, traffic.Window.parse(run.request.profile_window))
        hashes = traffic.row_hash(frame["request_id"])
        chosen = frame[(hashes >= settings.traffic.held_out_from) & (hashes < settings.traffic.profile_until)]
        built = ReferenceProfile.build(
            features(answered(chosen, student, settings, "profile: new champion's answers", None)),
            window=run.request.profile_window,
            model_version=run.request.retrain_id,
            max_categories=settings.drift.max_categories,
            sample_rows=settings.drift.sample_rows,
            seed=0,
        )
        built.save(folder)
        return {"rows": len(chosen), "window": run.request.profile_window}

    return run_stage(
        run,
        "profile",
        work,
        inputs={"window": run.request.profile_window, "student": str(student)},
        settings=settings.drift,
    )


def profile_folder(runs: Path, champion: Champion) -> Path:
    """Return where a champion's reference profile lies: in the run that made it."""
    return runs / champion.retrain_id / "profile"


def show(found: DriftReport, page: Path) -> None:
    """Show a drift report in Prefect's interface: a table, and a link to the Evidently page."""
    rows = [
        {
            "column": column.name,
            "drifted": column.drifted,
            "PSI": _rounded(column.psi),
            "PSI, lower bound": _rounded(column.psi_lower),
            "KS distance": _rounded(column.ks_distance),
            "why": column.why,
        }
        for column in found.columns
    ]
    create_table_artifact(rows, key="drift", description=f"Drift of {found.rows} held-out rows of {found.window}")
    create_link_artifact(page.resolve().as_uri(), link_text="Evidently report", key="drift-report")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
