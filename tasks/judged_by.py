"""What is judged by beside the traffic is looked at before a retrain starts: else it fails after the training."""

from importlib.util import find_spec

import pandas as pd

from distill import harness
from distill.mixture import draw
from monitoring.errors import InputError
from monitoring.fairness import fair_metrics
from monitoring.golden import golden_digest, read_golden
from monitoring.judging_settings import JudgingSettings
from monitoring.row_metrics import own_bound, own_metric
from tasks.segments import segments


def golden(judging: JudgingSettings) -> pd.DataFrame | None:
    """Return the golden set, None where there is none; InputError for one that cannot be used."""
    return read_golden(judging.golden) if judging.golden else None


def digests(rows: pd.DataFrame | None, judging: JudgingSettings) -> dict[str, str]:
    """Return the digests of the golden set and of lm-eval's tasks, which are part of what was asked.

    Metrics of one's own are tried on a row. Raises InputError for what cannot be used.
    """
    for name in judging.own_metrics:
        own_metric(name, ["a prompt"], ["an answer"], ["an answer"])
        if own_bound(name) is None and name in (*judging.margins, judging.superior):
            raise InputError(
                f"metric {name!r} does not say how much a row can lose, and a gate needs that: set `bound` of its "
                "function, or leave it out of judging.gates and judging.superior"
            )
    found = {"golden": golden_digest(rows)} if rows is not None else {}
    return found | ({"lm_eval": harness.digest(judging.lm_eval)} if judging.lm_eval else {})


def check_fairness(held_out: pd.DataFrame, judging: JudgingSettings) -> None:
    """Raise InputError where fairness is asked for and cannot be said of what judging draws of these rows."""
    if not judging.fairness:
        return
    if find_spec("fairlearn") is None:
        raise InputError(
            "judging.fairness needs Fairlearn: pip install 'redistill[fairness]', or turn judging.fairness off"
        )
    if not fair_metrics(judging):
        raise InputError(
            "judging.fairness is on, but no gate is a mean of a segment's rows (judging.gates = "
            f"{', '.join(judging.gates) or 'none'}): add one such as exact_match, or turn fairness off"
        )
    if len(held_out) > judging.max_rows:
        held_out = held_out.iloc[draw(len(held_out), judging.max_rows, seed=0)]
    large = [column for _, column, chosen in segments(held_out, judging)[0] if chosen.sum() >= judging.segment_rows]
    if not any(large.count(column) > 1 for column in large):
        raise InputError(
            f"judging.fairness is on, but no meta_ column of the {len(held_out)} held-out rows has two segments of "
            f"judging.segment_rows = {judging.segment_rows} rows: log such columns, lower it, or turn fairness off"
        )
