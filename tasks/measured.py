"""Each model's answers to the held-out rows, and each row's score in every metric.

scores.parquet has, for each of MODELS that was measured, response, mean_logprob, confidence and the metrics, as in
`challenger_token_f1`. An answer is scored by the row's target; teacher_agreement is NaN where nobody knows what the
teacher says.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from distill import scoring
from distill.likelihood import Likelihood, score_targets
from distill.loaded import Loaded
from monitoring import row_metrics
from monitoring.judging_settings import Better, JudgingSettings
from monitoring.regression import Paired
from tasks import progress, targets
from tasks.teaching import Teaching

MODELS = ("champion", "challenger")
METRICS = ("exact_match", "token_f1", "negative_log_likelihood", "teacher_agreement", "refusal_rate")
SHOWN = ("request_id", "prompt", "slice", "target", "by_teacher", "teacher")


@dataclass(frozen=True)
class Measured:
    """The rows with all scores; the metrics by name, with what is better where they are one's own."""

    rows: pd.DataFrame
    metrics: Mapping[str, Better | None]
    truncated: Mapping[str, int]  # prompts, and targets, of which a part was scored: they are longer than the limits


def measure(
    rows: pd.DataFrame, models: Mapping[str, Loaded], settings: JudgingSettings, teaching: Teaching, refusal: str
) -> Measured:
    """Return the rows with the scores of each model, which answers them and then reads their targets.

    rows: of `targets.with_targets`. refusal: pattern of `features.refusal`.
    """
    found = rows[[*SHOWN, *sorted(str(name) for name in rows if str(name).startswith("meta_"))]].copy()
    metrics: dict[str, Better | None] = dict.fromkeys(METRICS)
    truncated = {"prompts": 0, "targets": 0}
    prompts, wanted = rows["prompt"].tolist(), rows["target"].tolist()
    for name, model in models.items():
        scores = answers(prompts, model, teaching, f"{name} answers")
        likelihood = _likelihood(prompts, wanted, model, teaching, f"{name} reads the targets")
        said = scores.responses
        found[f"{name}_response"] = said
        found[f"{name}_mean_logprob"] = scores.mean_logprob
        found[f"{name}_confidence"] = scores.confidence
        found[f"{name}_exact_match"] = row_metrics.exact_match(said, wanted)
        found[f"{name}_token_f1"] = row_metrics.token_f1(said, wanted)
        found[f"{name}_negative_log_likelihood"] = -likelihood.mean_logprob
        found[f"{name}_teacher_agreement"] = targets.agreement(rows, pd.Series(said, rows.index, dtype=object))
        found[f"{name}_refusal_rate"] = row_metrics.refusal_rate(said, refusal)
        for own in settings.own_metrics:
            found[f"{name}_{own}"], metrics[own] = row_metrics.own_metric(own, prompts, said, wanted)
        truncated = {"prompts": scores.truncated, "targets": likelihood.truncated_targets}
    return Measured(found, metrics, truncated)


def answers(prompts: list[str], model: Loaded, teaching: Teaching, what: str) -> scoring.Scores:
    """Return a model's answers to some prompts; `what` is shown to people."""
    with progress.bar(f"judging: {what}", "rows") as shown:
        return scoring.score(
            model,
            prompts,
            max_prompt_tokens=teaching.student.max_prompt_tokens,
            max_new_tokens=teaching.student.max_new_tokens,
            batch_size=teaching.teacher.batch_size,
            progress=shown,
        )


def _likelihood(prompts: list[str], wanted: list[str], model: Loaded, teaching: Teaching, what: str) -> Likelihood:
    with progress.bar(f"judging: {what}", "rows") as shown:
        return score_targets(
            model,
            prompts,
            wanted,
            max_prompt_tokens=teaching.student.max_prompt_tokens,
            max_new_tokens=teaching.student.max_new_tokens,
            batch_size=teaching.teacher.batch_size,
            progress=shown,
        )


def paired(rows: pd.DataFrame, measured: Measured, settings: JudgingSettings) -> dict[str, Paired]:
    """Return the scores of some of the measured rows by metric, for the verdict.

    teacher_agreement has the rows on which the teacher's answer is known; where there are none it is there only as a
    gate, which so stays open.
    """
    known, found = rows["teacher"].notna(), {}
    for metric, better in measured.metrics.items():
        chosen = rows[known] if metric == "teacher_agreement" else rows
        if len(chosen) or metric != "teacher_agreement" or metric in settings.margins:
            champion, challenger = (chosen[f"{model}_{metric}"].to_numpy(np.float64) for model in MODELS)
            bound = row_metrics.own_bound(metric) if better else None
            found[metric] = Paired(champion, challenger, better, bound)
    sure, surely = (rows[[f"{model}_confidence", f"{model}_exact_match"]].to_numpy(np.float64) for model in MODELS)
    found["calibration_error"] = Paired(sure, surely)
    return found


def means(measured: Measured) -> dict[str, dict[str, dict[str, float]]]:
    """Return the mean of each metric by slice, metric and model, with the number of rows that it is of."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, rows in measured.rows.groupby("slice", sort=False):
        found[str(name)] = {}
        for metric in measured.metrics:
            columns = {model: f"{model}_{metric}" for model in MODELS if f"{model}_{metric}" in rows}
            known = rows[list(columns.values())].dropna()
            if len(known):
                values = {model: round(float(known[column].mean()), 6) for model, column in columns.items()}
                found[str(name)][metric] = {**values, "rows": len(known)}
    return found
