"""Probing: the teacher is asked about a sample of the drifted slice before the whole retrain is paid for."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from distill.buying import lacking
from distill.errors import Failure
from distill.mixture import draw
from distill.obtained import Obtained
from distill.signals import SignalStore
from monitoring.history import Probed
from monitoring.judging_settings import JudgingSettings
from monitoring.ledger import Ledger
from monitoring.probe import Agreement, Sampled, told
from monitoring.probe import probe as judged
from monitoring.profile import ReferenceProfile
from monitoring.settings import ProbeSettings
from tasks import costs, purchases, teach
from tasks.learned import learned_rows
from tasks.plan import WINDOW_FILE
from tasks.profile import agreement_rows, profiled_rows
from tasks.run import Champion, Run, profile_folder, read_json, run_stage
from tasks.slices import held_out_slices
from tasks.targets import to_ask
from tasks.teaching import Teaching, asked_with, spoken_to, teacher_of
from tasks.train import step_records
from tasks.watch import ROWS_FILE

AFTER = ("signals", "train", "judge", "profile")  # stages that may ask the teacher once the retrain is on its way


@dataclass(frozen=True)
class Probing:
    """The settings that a retrain is weighed by before it is paid for."""

    probe: ProbeSettings
    judging: JudgingSettings
    budget_tokens: int  # of a month; 0: no limit


@task(name="probe", cache_policy=NO_CACHE)
def probe(run: Run, log: str, start: Path, settings: Probing, teaching: Teaching) -> dict[str, Any]:
    """Return whether the retrain `pays`, with the reason, and what it is expected to win and to cost.

    A first champion, or probe.rows = 0, pays unasked.
    """
    champion = run.request.champion
    if champion is None or not settings.probe.rows:
        return {"pays": True}

    def work(folder: Path) -> dict[str, Any]:
        rows, share = sample(run, settings.probe.rows)
        compared, obtained = teach.compared(rows, start, teaching, run.asked("probe"), "a sample of the window")
        compared.drop(columns="prompt").to_parquet(folder / ROWS_FILE, index=False)
        if not compared["drifted"].any():
            raise Failure(f"the teacher withheld its answers to all {int(rows['drifted'].sum())} drifted rows asked")
        before = ReferenceProfile.load(profile_folder(run.folder.parent, champion)).agreement
        found = judged(_sampled(compared, share), before, settings.probe, force=run.request.force)
        gain = found.expected_gain
        tokens, seconds = _cost(run, champion, log, start, obtained, settings, teaching)
        held = _over_budget(run, tokens + obtained.bought_tokens, settings, teaching.ledger) if found.pays else ""
        return {
            **found.model_dump(),
            "pays": found.pays and not held,
            "reason": held or found.reason,
            "expected": {"gain": gain.value if gain else None, "tokens": tokens, "seconds": seconds},
            **costs.report(obtained, _slices(rows, obtained), teaching.teacher),
        }

    result = run_stage(
        run,
        "probe",
        work,
        inputs={"window": run.request.window_digest, "teacher": run.request.teacher, "champion": champion.digest},
        settings={**settings.probe.model_dump(), "budget_tokens": settings.budget_tokens},
    )
    purchases.record(run, "probe", teaching.ledger)
    costs.show("probe", result)
    if not result["pays"]:
        Ledger(teaching.ledger).release(run.request.retrain_id)
    _remember(run, teaching.ledger, result, None)
    get_run_logger().info("probe: %s; expected of the retrain: %s", result["reason"], told(result["expected"]))
    return result


@task(name="settle", cache_policy=NO_CACHE)
def settle(run: Run, ledger: Path) -> dict[str, float | None] | None:
    """Compare what the probe expected with what came true; None where nothing was expected or nothing trained.

    The retrain is over: what was set aside for it and not spent is free again.
    """
    Ledger(ledger).release(run.request.retrain_id)
    found = run.manifests()
    if "probe" not in found or "judge" not in found:
        return None
    checks = found["judge"]["result"]["checks"]
    fresh = next(one for one in checks if one["kind"] == "fresh" and one["metric"] == "exact_match")
    true = {
        "gain": fresh["difference"],
        "tokens": sum(stage["result"].get("bought_tokens", 0) for name, stage in found.items() if name in AFTER),
        "seconds": found["train"]["seconds"],
    }
    expected = found["probe"]["result"]["expected"]
    _remember(run, ledger, found["probe"]["result"], true)
    get_run_logger().info("the retrain was expected to bring %s; it brought %s", told(expected), told(true))
    return true


def sample(run: Run, count: int) -> tuple[pd.DataFrame, float]:
    """Return at most `count` rows of the drifted slice and as many others, and the slice's share of the held-out rows.

    They have prompt, champion's answer, and `drifted`. A part of fewer rows is asked whole; where no row lies in what
    grew, the slice is the whole window.
    """
    answers = pd.read_parquet(run.stage("watch") / ROWS_FILE)
    if not answers["drifted"].any():
        answers["drifted"] = True
    parts = [part.iloc[draw(len(part), min(count, len(part)), seed=0)] for _, part in answers.groupby("drifted")]
    prompts = pd.read_parquet(run.folder / WINDOW_FILE)[["request_id", "prompt"]]
    chosen = pd.concat(parts).merge(prompts, on="request_id", validate="one_to_one")
    return chosen, float(answers["drifted"].mean())


def _slices(rows: pd.DataFrame, obtained: Obtained) -> dict[str, Obtained]:
    drifted = rows["drifted"].to_numpy(dtype=bool)
    return {"drifted slice": obtained.part(drifted), "rest of the window": obtained.part(~drifted)}


def _sampled(compared: pd.DataFrame, share: float) -> Sampled:
    parts = {
        bool(drifted): Agreement(agreed=int(part.sum()), rows=len(part))
        for drifted, part in compared.groupby("drifted")["agree"]
    }
    return Sampled(drifted=parts[True], rest=parts.get(False), share=share)


def _cost(
    run: Run, champion: Champion, log: str, start: Path, obtained: Obtained, settings: Probing, teaching: Teaching
) -> tuple[int, float | None]:
    """Return the teacher tokens that the retrain would still buy, and how many seconds it would train."""
    from distill.prompts import encode

    learned = learned_rows(run, log, teaching)
    slices, _ = held_out_slices(run, log, settings.judging, teaching)
    judged = to_ask(slices, buy_agreement=settings.judging.buy_teacher_agreement)
    profiled = agreement_rows(profiled_rows(run, log, teaching.traffic), settings.probe)
    prompts = [*learned["prompt"], *judged, *profiled["prompt"]]
    tokenizer, store = asked_with(start, teaching), SignalStore(teaching.signals)
    encoded = encode(tokenizer, prompts, teaching.student.max_prompt_tokens)
    ids, asked = encoded.ids, teacher_of(teaching, spoken=spoken_to(teaching, tokenizer, prompts, encoded))
    _, bought = lacking(store, asked, ids)
    answer = np.mean([len(store.get(key.tobytes()).answer) for key in obtained.keys])
    tokens = sum(len(ids[at]) for at in bought) + round(len(bought) * float(answer))
    tokens += _scored(teaching, len(learned), float(np.mean([len(row) for row in ids[: len(learned)]])) + float(answer))
    new = int((~learned["replay"]).sum())
    sampled = min(new, teaching.audit.sample_rows) * teaching.audit.samples  # at most: they may be stored
    tokens += round(sampled * float(np.mean([len(row) for row in ids[:new]]) + answer))
    return tokens, _training_seconds(run.folder.parent, champion, len(learned), teaching)


def _scored(teaching: Teaching, rows: int, tokens: float) -> int:
    """Return how many tokens the teacher would score of the student's own answers to rows of so many; 0 off-policy."""
    training, policy = teaching.training, teaching.on_policy
    if training.mode != "on_policy":
        return 0
    return round(rows * policy.share * min(training.epochs, policy.rounds) * tokens)  # a round has a row once


def _training_seconds(runs: Path, champion: Champion, rows: int, teaching: Teaching) -> float | None:
    """Return how long training on so many rows would take by the champion's own; None where that is not here."""
    folder = runs / champion.retrain_id / "train"
    if not (folder / "manifest.json").is_file():
        return None
    whole, steps = read_json(folder / "manifest.json")["seconds"], step_records(folder)
    seconds, learned = sum(record["seconds"] for record in steps), sum(record.get("rows", 0) for record in steps)
    if not learned:  # it was trained before steps counted their rows
        return None
    return float(max(0.0, whole - seconds) + seconds / learned * rows * teaching.training.epochs)


def _over_budget(run: Run, tokens: int, settings: Probing, ledger: Path) -> str:
    """Say that the month's budget does not suffice; empty where it does, or is not asked: the tokens are set aside."""
    now, budget = datetime.now(UTC), 0 if run.request.force else settings.budget_tokens
    enough, spent = Ledger(ledger).reserve(run.request.retrain_id, now, tokens, budget)
    if enough:
        return ""
    return (
        f"the retrain would buy about {tokens:,} teacher tokens, {spent:,} were bought or set aside by others in "
        f"{now:%Y-%m}, policy.budget_tokens is {budget:,}"
    )


def _remember(run: Run, ledger: Path, result: Mapping[str, Any], true: Mapping[str, float | None] | None) -> None:
    """Keep expectation and outcome in the ledger, and show them in Prefect's interface."""
    Ledger(ledger).record_probe(
        Probed(
            retrain_id=run.request.retrain_id,
            time=datetime.fromisoformat(run.manifests()["probe"]["end"]),
            student=run.request.student,
            window=run.request.window,
            pays=result["pays"],
            reason=result["reason"],
            expected=result["expected"],
            true=true,
        )
    )
    rows = [
        {"": name, "expected": value, "came true": true[name] if true else None}
        for name, value in result["expected"].items()
    ]
    create_table_artifact(rows, key="probe", description=f"Probe: {result['reason']}")
