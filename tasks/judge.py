"""Judging: champion and challenger answer the same held-out rows, and a paired test decides.

judge/scores.parquet    every row with its answers and scores; it holds prompts, and stays in the run's folder
judge/verdict.json      the verdict, null for a first champion
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from deployments.settings import PackagingSettings
from distill import harness
from distill.loaded import Loaded, load
from monitoring import regression
from monitoring.budgets import Cost
from monitoring.feature_settings import REFUSAL
from monitoring.judging_settings import JudgingSettings
from monitoring.regression import Paired, Slice, Verdict
from tasks import budgets, costs, measured, packed, progress, purchases
from tasks.measured import Measured
from tasks.run import Run, run_stage
from tasks.segments import segments
from tasks.slices import TEACHER_ERRORS, HeldOut, held_out_slices, teacher_errors
from tasks.targets import unanswered, with_targets
from tasks.teaching import Teaching

WORST_FIRST = ("fail", "inconclusive", "pass", "reported")
TRAFFIC = ("fresh", "old")  # kinds of slices whose exact match is a result of its own


@dataclass(frozen=True)
class Judged:
    """What both models showed: scores of the rows, other slices ready to compare, and what they take."""

    slices: list[HeldOut]
    measured: Measured
    others: Mapping[str, Slice]  # of lm-eval's tasks, and of the packed student
    costs: list[Cost]


@task(name="judge", cache_policy=NO_CACHE)
def judge(
    run: Run,
    log: str,
    student: Path,
    settings: JudgingSettings,
    teaching: Teaching,
    refusal: str = REFUSAL,
    packaging: PackagingSettings | None = None,
) -> dict[str, Any]:
    """Return the verdict on the challenger, with its and the champion's scores on every slice.

    refusal: pattern of `features.refusal`. packaging: how the student will serve; with 8-bit weights these are judged
    beside the checkpoint. Without a champion there is nothing to compare, and it passes.
    """
    champion = run.request.champion

    def work(folder: Path) -> dict[str, Any]:
        slices, left_out = judged_slices(run, log, settings, teaching)
        parts, cost = with_targets(
            slices, student, teaching, run.asked("judge"), buy_agreement=settings.buy_teacher_agreement
        )
        left_out += unanswered(slices, parts)
        models = _loaded(run, student, teaching)
        judged = _measure(slices, pd.concat(parts, ignore_index=True), models, settings, teaching, refusal)
        if champion and packaging:
            fresh = judged.measured.rows[judged.measured.rows["slice"] == slices[0].name]
            small, taken = packed.measure(student, fresh, packaging, teaching, refusal)
            judged = replace(judged, others={**judged.others, **small}, costs=[*judged.costs, *taken])
        judged.measured.rows.to_parquet(folder / "scores.parquet", index=False)
        verdict = _verdict(judged, settings) if champion else None
        (folder / "verdict.json").write_text(verdict.model_dump_json(indent=1) if verdict else "null")
        return {**_result(verdict, judged), "left_out": left_out + (verdict.left_out if verdict else []), **cost}

    result = run_stage(
        run,
        "judge",
        work,
        inputs={
            "challenger": str(student),
            "champion": champion.digest if champion else None,
            "packaging": packaging.format if packaging else None,
            **run.request.judged_by,
        },
        settings=settings,
    )
    purchases.record(run, "judge", teaching.ledger)
    costs.show("judge", result)
    _show(result)
    return result


def judged_slices(run: Run, log: str, settings: JudgingSettings, teaching: Teaching) -> tuple[list[HeldOut], list[str]]:
    """Return all slices of rows but the segments, and what was left out."""
    slices, left_out = held_out_slices(run, log, settings, teaching)
    errors = teacher_errors(run)
    return [*slices, *([errors] if errors else [])], left_out


def _loaded(run: Run, student: Path, teaching: Teaching) -> dict[str, Loaded]:
    """Return the challenger and, if there is one, the champion: both in memory, once for all that is measured."""
    champion, device = run.request.champion, teaching.teacher.device
    before = {"champion": load(champion.checkpoint, device, "champion")} if champion else {}
    return {**before, "challenger": load(student, device, "challenger")}


def _measure(
    slices: list[HeldOut],
    rows: pd.DataFrame,
    models: Mapping[str, Loaded],
    settings: JudgingSettings,
    teaching: Teaching,
    refusal: str,
) -> Judged:
    found = measured.measure(rows, models, settings, teaching, refusal)
    tasks = _tasks(models, settings, teaching)
    if "champion" not in models:
        return Judged(slices, found, tasks, [])
    fresh = found.rows[found.rows["slice"] == slices[0].name]
    taken = budgets.measure(models["champion"], models["challenger"], fresh["prompt"], settings, teaching)
    return Judged(slices, found, tasks, taken)


def _tasks(models: Mapping[str, Loaded], settings: JudgingSettings, teaching: Teaching) -> dict[str, Slice]:
    """Return a slice for each metric of each of lm-eval's tasks; none without tasks, or without a champion."""
    if not settings.lm_eval or "champion" not in models:
        return {}
    scores = {}
    for name, model in models.items():
        with progress.bar(f"judging: {name} in lm-eval", "tasks") as shown:
            scores[name] = harness.scores(settings.lm_eval, model, teaching.teacher.batch_size, shown)
    return {
        f"lm_eval {name}": Slice("lm_eval", {"lm_eval": Paired(champion, scores["challenger"][name])})
        for name, champion in scores["champion"].items()
    }


def _verdict(judged: Judged, settings: JudgingSettings) -> Verdict:
    slices, left_out = _pairs(judged, settings)
    verdict = regression.judge(slices, settings, judged.costs)
    return verdict.model_copy(update={"left_out": verdict.left_out + left_out})


def _pairs(judged: Judged, settings: JudgingSettings) -> tuple[dict[str, Slice], list[str]]:
    """Return what is compared: each slice of rows, the segments of the fresh one, and the others; and what is not."""
    rows, found = judged.measured.rows, {}
    for part in judged.slices:  # one without rows stays in: it is inconclusive, and says so
        own = rows[rows["slice"] == part.name]
        found[part.name] = Slice(part.kind, measured.paired(own, judged.measured, settings))
    fresh = rows[rows["slice"] == judged.slices[0].name]
    parts, left_out = segments(fresh, settings)
    for name, column, chosen in parts:
        found[name] = Slice("segment", measured.paired(fresh[chosen], judged.measured, settings), column)
    return found | dict(judged.others), left_out


def _result(verdict: Verdict | None, judged: Judged) -> dict[str, Any]:
    means = measured.means(judged.measured)
    traffic = [part.name for part in judged.slices if part.kind in TRAFFIC and part.name in means]
    return {
        "outcome": verdict.outcome if verdict else "pass",
        "reason": verdict.reason if verdict else "the first champion: there is none to compare it with",
        "checks": [check.model_dump(mode="json") for check in verdict.checks] if verdict else [],
        "budgets": [budget.model_dump(mode="json") for budget in verdict.budgets] if verdict else [],
        "fairness": [even.model_dump(mode="json") for even in verdict.fairness] if verdict else [],
        "harmed": verdict.harmed if verdict else [],
        "exact_match": {name: means[name]["exact_match"] for name in traffic},
        "metrics": means,
        "teacher_errors": means.get(TEACHER_ERRORS, {}).get("exact_match"),
        "truncated": dict(judged.measured.truncated),
    }


def _show(result: Mapping[str, Any]) -> None:
    """Show the verdict in Prefect's interface: a row for each check and budget, the worst first."""
    create_table_artifact(
        table(result),
        key="verdict",
        description=f"Verdict: {result['outcome']}. {result['reason']}",
    )
    if any(result["truncated"].values()):
        get_run_logger().warning(
            "judged by what the limits leave of them: %d prompts, %d targets (student.max_prompt_tokens, "
            "student.max_new_tokens)", result["truncated"]["prompts"], result["truncated"]["targets"]
        )  # fmt: skip


def table(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a verdict as a table for people: a row for each check, the worst first; a first champion's own scores."""
    if not result["checks"]:
        return [
            {"slice": name, "metric": metric, **values}
            for name, metrics in result["metrics"].items()
            for metric, values in metrics.items()
        ]
    shown = ("slice", "metric", "rows", "champion", "challenger", "difference", "lower", "upper", "margin", "why")
    checks = [
        {"outcome": check["outcome"], **{name: _rounded(check[name]) for name in shown}, "harmed": check["harmed"]}
        for check in sorted(result["checks"], key=lambda check: not check["harmed"])
    ]
    spent = [
        {"outcome": one["outcome"], "slice": "budget", "metric": f"{one['name']} [{one['unit']}]"}
        | {name: _rounded(one[name]) for name in ("champion", "challenger", "why")}
        for one in result["budgets"]
    ]
    even = [
        {"outcome": one["outcome"], "slice": f"fairness over {one['column']}", "metric": one["metric"]}
        | {"champion": _rounded(one["champion_worst"]), "challenger": _rounded(one["challenger_worst"])}
        | {"difference": _rounded(one["worst_change"]), "lower": _rounded(one["worst_lower"]), "why": one["why"]}
        for one in result["fairness"]
    ]
    return sorted([*checks, *even, *spent], key=lambda row: WORST_FIRST.index(row["outcome"]))


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value
