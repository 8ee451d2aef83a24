"""Watching: the window against the champion's profile, and the profile of a new champion."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from prefect import task
from prefect.artifacts import create_link_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from deployments.registry import Registry
from distill import scoring
from distill.settings import StudentSettings
from distill.teacher_settings import TeacherSettings
from monitoring import policy, report, traffic
from monitoring.drift import capped, compare, compare_rows, with_quality
from monitoring.drift_report import DriftReport
from monitoring.errors import Failure, InputError
from monitoring.evidently_history import add_to_history
from monitoring.examples import carried, drifted_slice, examples
from monitoring.feature_settings import FeatureSettings
from monitoring.features import features
from monitoring.files import write_atomically
from monitoring.history import Decision, History, Moment, Observation
from monitoring.ledger import Ledger
from monitoring.metrics import write_textfile
from monitoring.performance import measure
from monitoring.profile import ReferenceProfile
from monitoring.settings import DriftSettings, PolicySettings, ReferenceSettings, TrafficSettings
from monitoring.tally import count
from monitoring.text import load_tokenizer
from tasks import progress
from tasks.plan import WINDOW_FILE, choose_window, current_champion, rows_of
from tasks.run import Champion, Run, profile_folder, read_json, run_stage

if TYPE_CHECKING:
    from tasks.teaching import Teaching

ROWS_FILE = "rows.parquet"


@dataclass(frozen=True)
class Watching:
    """The settings that watching goes by."""

    traffic: TrafficSettings
    features: FeatureSettings
    drift: DriftSettings
    policy: PolicySettings
    student: StudentSettings
    teacher: TeacherSettings


@task(name="watch", cache_policy=NO_CACHE)
def watch(run: Run, log: str, ledger: Path, settings: Watching) -> dict[str, Any]:
    """Compare the run's window with its champion's profile; returns `trigger`, `reason`, and the drift report."""
    champion = run.request.champion

    def work(folder: Path) -> dict[str, Any]:
        if champion is None:
            return {"trigger": True, "reason": "there is no champion yet", "drift": None, "report": None}
        frame = pd.read_parquet(run.folder / WINDOW_FILE)
        drift = observe(frame, run.request.window, champion, run.folder.parent, folder, settings)
        now = moment(log, run.request.window, run.request.window_digest, champion, run.folder.parent)
        decision = decide(drift, now, ledger, settings, source="retrain", force=run.request.force)
        return {**decision.model_dump(), "drift": drift.model_dump(mode="json"), "report": "report.html"}

    result = run_stage(
        run,
        "watch",
        work,
        inputs={"window": run.request.window_digest, "champion": champion.digest if champion else None},
        settings={
            **settings.drift.model_dump(),
            "features": settings.features.model_dump(mode="json"),
            "policy": settings.policy.model_dump(),
        },
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
    ledger: Path,
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
    digest = traffic.window_digest(frame)
    folder = reports / f"{digest[:12]}-champion-{champion.version}"
    folder.mkdir(parents=True, exist_ok=True)
    drift = observe(frame, str(window), champion, runs, folder, settings)
    now = moment(log, str(window), digest, champion, runs)
    decision = decide(drift, now, ledger, settings, source="monitor")
    page = folder / "report.html"
    show(drift, page)
    try:
        write_textfile(drift, settings.student.name, reports / f"{settings.student.name}.prom")
        add_to_history(reports / "evidently", settings.student.name, drift, champion=champion.version, page=page)
    except Failure as error:  # what people look at later holds up no retrain
        get_run_logger().error("the report is not in the metrics or the history: %s", error)
    return {
        **decision.model_dump(),
        "window": str(window),
        "champion": champion.version,
        "drift": drift.model_dump(mode="json"),
        "report": str(page),
    }


def observe(
    frame: pd.DataFrame,
    window: str,
    champion: Champion,
    runs: Path,
    folder: Path,
    settings: Watching,
) -> DriftReport:
    """Return the drift report on a window's rows; writes it as drift.json, and what it was made of beside it.

    features.parquet; rows.parquet: the champion's answers, and whether a row is of the drifted slice; examples.jsonl:
    some rows that carry the drift, with their prompts; report.html. Only held-out rows are compared: on rows that a
    champion was trained on it is over-confident.
    """
    held_out = frame[traffic.row_hash(frame["request_id"]) >= settings.traffic.held_out_from]
    rows = answered(held_out, Path(champion.checkpoint), settings, "window: champion's answers", champion.version)
    profile = ReferenceProfile.load(profile_folder(runs, champion))
    made_by = FeatureSettings.model_validate(profile.features)  # today's may be others
    now = features(rows, made_by, load_tokenizer(champion.checkpoint))
    now, rows = capped(now, settings.drift), capped(rows, settings.drift)
    tally = count(profile, now, sample_rows=settings.drift.sample_rows, seed=0)
    found = compare_rows(profile, tally.sample, compare(profile, tally, window, settings.drift), settings.drift)
    found = with_quality(found, measure(rows, profile.calibration, seed=0), settings.drift)
    inside = carried(profile, tally, now, found, settings.drift)
    rows = rows.assign(drifted=drifted_slice(inside, now, found.segments))
    answers = rows[["request_id", "response", "mean_logprob", "drifted"]]
    shown = examples(rows, inside, seed=0)
    for name, content in (
        (ROWS_FILE, answers.to_parquet(index=False)),
        ("examples.jsonl", shown.to_json(orient="records", lines=True, date_format="iso").lstrip().encode()),
        ("features.parquet", now.to_parquet()),
        ("drift.json", found.model_dump_json(indent=1).encode()),
    ):
        write_atomically(folder / name, content)  # monitors of the same window may be at work at once
    report.write_html(profile.sample, now, found, folder / "report.html")
    return found


def moment(log: str, window: str, window_digest: str, champion: Champion, runs: Path) -> Moment:
    """Return what the policy goes by beside a report: the time, the champion's age, how far the log has come."""
    learned = [traffic.Window.parse(text).end for text in champion.trained]
    return Moment(
        time=datetime.now(UTC),
        champion=champion.version,
        champion_digest=champion.digest,
        champion_trained=_end_of(runs / champion.retrain_id / "train"),
        champion_promoted=_end_of(runs / champion.retrain_id / "promote"),
        champion_log_rows=traffic.rows_before(log, max(learned)) if learned else 0,
        window_digest=window_digest,
        log_rows=traffic.rows_before(log, traffic.Window.parse(window).end),
    )


def decide(
    drift: DriftReport,
    now: Moment,
    ledger: Path,
    settings: Watching,
    *,
    source: Literal["monitor", "retrain"],
    force: bool = False,
) -> Decision:
    """Return the policy's decision from the ledger: a trigger is for good, a hold is decided anew."""

    def made(history: History) -> Observation:
        return policy.observe(
            drift, now, policy.decide(drift, settings.drift, settings.policy, now, history, force=force)
        )

    return Ledger(ledger).answer(
        made,
        student=settings.student.name,
        window_digest=now.window_digest,
        champion_digest=now.champion_digest,
        settings_digest=policy.settings_digest(settings.drift, settings.policy),
        time=now.time or datetime.now(UTC),
        source=source,
        forced=force,
    )


def triggered_since(run: Run, ledger: Path) -> bool:
    """Return whether the policy, which held this retrain when it was asked, has asked for it since.

    A hold may be one of the moment; the monitor, which looks again, must not be answered with an old one.
    """
    done, champion = run.result(), run.request.champion
    if champion is None or done is None or done["outcome"] != "held" or list(done["seconds"]) != ["watch"]:
        return False
    return Ledger(ledger).triggered(run.request.student, run.request.window_digest, champion.digest)


def _end_of(stage: Path) -> datetime | None:
    """Return when a stage ended; None where its folder is not (a retrain of another workspace, or killed in it)."""
    manifest = stage / "manifest.json"
    return datetime.fromisoformat(read_json(manifest)["end"]) if manifest.is_file() else None


def answered(
    frame: pd.DataFrame, model: Path, settings: "Watching | Teaching", what: str, version: str | None
) -> pd.DataFrame:
    """Return the rows with `response` and `mean_logprob` of one model, by `model` itself where the log has none.

    Rows that the log says another version than `version` answered are answered anew: a mixture of two models would
    look like drift. With None all rows are. `latency_ms` stays as it was served: a student's successor is as large.
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


def show(found: DriftReport, page: Path) -> None:
    """Show a drift report in Prefect's interface: a table, and a link to the Evidently page."""
    rows = [
        {
            "column": column.name,
            "severity": column.severity,
            "PSI": _rounded(column.psi),
            "PSI, lower bound": _rounded(column.psi_lower),
            "KS distance": _rounded(column.ks_distance),
            "why": column.why,
            "what moved": "; ".join(map(str, column.moved)) if column.drifted else "",
        }
        for column in found.columns
    ]
    told = [f"Drift of {found.rows} held-out rows of {found.window}: {found.severity}"]
    told += [f"whole rows: {found.rows_told()}", *([found.quality.told()] if found.quality else [])]
    told += [f"carried by {'; '.join(map(str, found.segments))}"] if found.segments else []
    create_table_artifact(rows, key="drift", description=". ".join(told))
    create_link_artifact(page.resolve().as_uri(), link_text="Evidently report", key="drift-report")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
