"""Judging: champion and challenger answer the same held-out rows, and a paired test decides."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from distill import scoring
from distill.errors import Failure
from distill.mixture import draw
from distill.obtained import nothing
from distill.scoring import Scores
from monitoring import regression, traffic
from monitoring.judging_settings import JudgingSettings
from monitoring.regression import Paired, Slice, Verdict
from monitoring.traffic import Window
from tasks import costs, progress, purchases, teach
from tasks.learned import ERRORS_FILE
from tasks.plan import WINDOW_FILE
from tasks.run import Run, run_stage
from tasks.teaching import Teaching


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows of one slice, with the answer each of them should get."""

    name: str
    kind: Literal["fresh", "old"]
    rows: pd.DataFrame


@task(name="judge", cache_policy=NO_CACHE)
def judge(run: Run, log: str, student: Path, settings: JudgingSettings, teaching: Teaching) -> dict[str, Any]:
    """Return the verdict on the challenger, with its and the champion's exact match on every slice."""
    champion = run.request.champion

    def work(folder: Path) -> dict[str, Any]:
        slices, left_out = held_out_slices(run, log, settings, teaching)
        targets, cost = with_targets(slices, student, teaching, run.asked("judge"))
        left_out += _unanswered(slices, targets)
        models = {"challenger": student} | ({"champion": Path(champion.checkpoint)} if champion else {})
        scored = pd.concat([_scored(part, models, teaching) for part in targets if len(part)], ignore_index=True)
        scored.to_parquet(folder / "scores.parquet", index=False)
        verdict = _verdict(scored, slices, settings) if champion else None
        (folder / "verdict.json").write_text(verdict.model_dump_json(indent=1) if verdict else "null")
        return {
            "outcome": verdict.outcome if verdict else "pass",
            "reason": verdict.reason if verdict else "the first champion: there is none to compare it with",
            "checks": [check.model_dump(mode="json") for check in verdict.checks] if verdict else [],
            "exact_match": _means(scored, list(models)),
            "teacher_errors": on_teacher_errors(run, student, folder, teaching),
            "left_out": left_out,
            **cost,
        }

    result = run_stage(
        run,
        "judge",
        work,
        inputs={"challenger": str(student), "champion": champion.digest if champion else None},
        settings=settings,
    )
    purchases.record(run, "judge", teaching.ledger)
    costs.show("judge", result)
    create_table_artifact(
        result["checks"] or [{"slice": name, **means} for name, means in result["exact_match"].items()],
        key="verdict",
        description=f"Verdict: {result['outcome']}. {result['reason']}",
    )
    return result


def held_out_slices(
    run: Run, log: str, settings: JudgingSettings, teaching: Teaching
) -> tuple[list[HeldOut], list[str]]:
    """Return the fresh slice and one for each earlier profile window, and what was left out as too small.

    No row is in two slices: a newer window's rows belong to it alone.
    """
    fresh = pd.read_parquet(run.folder / WINDOW_FILE)
    if run.request.champion is None:
        fresh = traffic.read_window(log, Window.parse(run.request.profile_window))
    slices = [HeldOut(f"fresh {run.request.window}", "fresh", _held_out(fresh, settings, teaching))]
    taken, left_out = set(fresh["request_id"]), []
    for text in reversed(run.request.champion.profiled if run.request.champion else []):
        rows = traffic.read_window(log, Window.parse(text))
        rest = rows[~rows["request_id"].isin(taken)]
        taken |= set(rest["request_id"])
        chosen = _held_out(rest, settings, teaching)
        if len(rest) < len(rows) and len(chosen) < settings.min_rows:
            left_out.append(f"{text}: only {len(chosen)} held-out rows lie outside newer windows")
            continue
        slices.append(HeldOut(f"old {text}", "old", chosen))
    return slices, left_out


def with_targets(
    slices: list[HeldOut], student: Path, teaching: Teaching, asked: Path
) -> tuple[list[pd.DataFrame], dict[str, Any]]:
    """Return each slice's rows with `target` (its label, or the teacher's answer while there is none) and the cost.

    Rows that have neither, because the teacher withheld its answer, are not among them; Failure where all have neither.
    """
    rows = pd.concat([part.rows.assign(slice=part.name) for part in slices], ignore_index=True)
    unlabelled = rows["reference"].isna()
    rows["target"], rows["by_teacher"] = rows["reference"], unlabelled
    obtained, names = nothing(), rows.loc[unlabelled, "slice"].to_numpy(str)
    if unlabelled.any():
        texts, obtained = teach.answers(
            rows.loc[unlabelled, "prompt"].tolist(), student, teaching, asked, "held-out rows without a label"
        )
        rows.loc[unlabelled, "target"] = texts
    parts = {part.name: obtained.part(names == part.name) for part in slices}
    cost = costs.report(obtained, parts, teaching.teacher)
    if rows["target"].isna().all():
        raise Failure(
            f"none of {len(rows)} held-out rows has a label, and the teacher withheld its answers to all of them: look "
            "at what its endpoint filters"
        )
    rows = rows[rows["target"].notna()]
    cost["targets_by_teacher"] = int(rows["by_teacher"].sum())
    return [rows[rows["slice"] == part.name] for part in slices], cost


def _unanswered(slices: list[HeldOut], targets: list[pd.DataFrame]) -> list[str]:
    """Say how many rows are not judged by, because they have neither label nor answer of the teacher."""
    missing = {part.name: len(part.rows) - len(rows) for part, rows in zip(slices, targets, strict=True)}
    return [f"{name}: {count} rows to which the teacher gave no answer" for name, count in missing.items() if count]


def on_teacher_errors(run: Run, student: Path, folder: Path, teaching: Teaching) -> dict[str, float] | None:
    """Return on which share of the teacher-error set champion and challenger answer as the teacher; None without any.

    A report and no part of the verdict: the rows were chosen because the champion fails on them, so it is at 0 and any
    challenger seems better. It says how much of what the champion did not know was learned beyond the rows trained on.
    """
    file = run.stage("signals") / ERRORS_FILE
    errors = pd.read_parquet(file) if file.is_file() else pd.DataFrame()
    if errors.empty:
        return None
    prompts = pd.read_parquet(run.folder / WINDOW_FILE, columns=["request_id", "prompt"])
    rows = errors.merge(prompts, on="request_id", validate="one_to_one")
    responses = _scores(rows["prompt"], student, teaching, "challenger on the teacher-error set").responses
    rows = rows.assign(challenger_response=responses).drop(columns="prompt")
    rows.to_parquet(folder / ERRORS_FILE, index=False)
    said = {
        name: np.char.strip(rows[f"{name}_response"].to_numpy(str)) for name in ("teacher", "champion", "challenger")
    }
    agreed = {name: float((said[name] == said["teacher"]).mean()) for name in ("champion", "challenger")}
    return {"rows": len(rows), **{name: round(share, 6) for name, share in agreed.items()}}


def _scores(prompts: pd.Series, model: Path, teaching: Teaching, what: str) -> Scores:
    with progress.bar(f"scoring: {what}", "rows") as shown:
        return scoring.score(
            model,
            prompts.tolist(),
            max_prompt_tokens=teaching.student.max_prompt_tokens,
            max_new_tokens=teaching.student.max_new_tokens,
            batch_size=teaching.teacher.batch_size,
            device=teaching.teacher.device,
            progress=shown,
        )


def _held_out(frame: pd.DataFrame, settings: JudgingSettings, teaching: Teaching) -> pd.DataFrame:
    chosen = frame[traffic.row_hash(frame["request_id"]) >= teaching.traffic.held_out_from]
    if len(chosen) > settings.max_rows:
        chosen = chosen.iloc[draw(len(chosen), settings.max_rows, seed=0)]
    return chosen


def _scored(rows: pd.DataFrame, models: dict[str, Path], teaching: Teaching) -> pd.DataFrame:
    scored = rows[["request_id", "prompt", "slice", "target", "by_teacher"]].copy()
    for name, model in models.items():
        scores = _scores(rows["prompt"], model, teaching, f"{name} on {rows['slice'].iloc[0]}")
        scored[f"{name}_response"] = scores.responses
        scored[f"{name}_mean_logprob"] = scores.mean_logprob
        right = np.char.strip(np.asarray(scores.responses, str)) == np.char.strip(rows["target"].to_numpy(str))
        scored[f"{name}_exact_match"] = right.astype(float)
    return scored


def _verdict(scored: pd.DataFrame, slices: list[HeldOut], settings: JudgingSettings) -> Verdict:
    pairs = {}
    for part in slices:  # one without rows stays in: it is inconclusive, and says so
        own = scored[scored["slice"] == part.name]
        champion, challenger = (own[f"{model}_exact_match"].to_numpy() for model in ("champion", "challenger"))
        pairs[part.name] = Slice(part.kind, {"exact_match": Paired(champion, challenger)})
    return regression.judge(pairs, settings)


def _means(scored: pd.DataFrame, models: list[str]) -> dict[str, dict[str, float]]:
    columns = {f"{name}_exact_match": name for name in models}
    means = scored.groupby("slice")[list(columns)].mean().rename(columns=columns)
    means["rows"] = scored.groupby("slice").size().astype(float)
    return {str(name): {str(k): round(float(v), 6) for k, v in row.items()} for name, row in means.iterrows()}
