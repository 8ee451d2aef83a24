"""Profiling: the statistics of a new champion's world are frozen, with how well it agrees with its teacher."""

from pathlib import Path
from typing import Any

import pandas as pd
from prefect import task
from prefect.cache_policies import NO_CACHE

from distill.mixture import draw
from distill.obtained import nothing
from monitoring import traffic
from monitoring.features import features
from monitoring.performance import fit_calibration
from monitoring.probe import Agreement
from monitoring.profile import ReferenceProfile
from monitoring.settings import ProbeSettings, TrafficSettings
from monitoring.text import load_tokenizer
from tasks import costs, purchases, teach
from tasks.plan import rows_of
from tasks.run import Run, run_stage
from tasks.teaching import Teaching
from tasks.watch import Watching, answered


@task(name="profile", cache_policy=NO_CACHE)
def profile(
    run: Run, log: str, student: Path, settings: Watching, probing: ProbeSettings, teaching: Teaching
) -> dict[str, Any]:
    """Freeze the statistics of the new champion's world, from held-out rows that it has answered."""

    def work(folder: Path) -> dict[str, Any]:
        chosen = profiled_rows(run, log, settings.traffic)
        rows = answered(chosen, student, settings, "profile: new champion's answers", None)
        agreement, cost = _agreement(agreement_rows(rows, probing), student, teaching, run.asked("profile"))
        built = ReferenceProfile.build(
            features(rows, settings.features, load_tokenizer(student)),
            window=run.request.profile_window,
            model_version=run.request.retrain_id,
            max_categories=settings.drift.max_categories,
            sample_rows=settings.drift.sample_rows,
            seed=0,
            feature_settings=settings.features.model_dump(mode="json"),
            calibration=fit_calibration(rows),
            agreement=agreement,
        )
        built.save(folder)
        return {"rows": len(chosen), "window": run.request.profile_window, **cost}

    result = run_stage(
        run,
        "profile",
        work,
        inputs={"window": run.request.profile_window, "student": str(student), "teacher": run.request.teacher},
        settings={
            **settings.drift.model_dump(),
            "features": settings.features.model_dump(mode="json"),
            "probe": probing.model_dump(),
        },
    )
    purchases.record(run, "profile", teaching.ledger)
    costs.show("profile", result)
    return result


def profiled_rows(run: Run, log: str, settings: TrafficSettings) -> pd.DataFrame:
    """Return the held-out rows that a new champion's profile is made of."""
    frame = rows_of(log, traffic.Window.parse(run.request.profile_window))
    hashes = traffic.row_hash(frame["request_id"])
    return frame[(hashes >= settings.held_out_from) & (hashes < settings.profile_until)]


def agreement_rows(rows: pd.DataFrame, probing: ProbeSettings) -> pd.DataFrame:
    """Return those of the profile's rows that the teacher is asked about too."""
    return rows.iloc[draw(len(rows), min(len(rows), probing.reference_rows), seed=0)]


def _agreement(
    rows: pd.DataFrame, student: Path, teaching: Teaching, asked: Path
) -> tuple[Agreement | None, dict[str, Any]]:
    """Return on how many rows the student answers as the teacher does, None without rows, and what asking cost."""
    if rows.empty:
        return None, costs.report(nothing(), {}, teaching.teacher)
    compared, obtained = teach.compared(rows, student, teaching, asked, "a sample of the profile's rows")
    cost = costs.report(obtained, {"profile": obtained}, teaching.teacher)
    return Agreement(agreed=int(compared["agree"].sum()), rows=len(compared)), cost
