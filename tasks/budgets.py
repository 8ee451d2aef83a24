"""What champion and challenger take: seconds an answer, bytes on disk and in memory, side by side in this process."""

import numpy as np
import pandas as pd

from distill.loaded import Loaded
from distill.mixture import draw
from distill.speed import latencies
from monitoring.budgets import Cost
from monitoring.judging_settings import JudgingSettings
from tasks import progress
from tasks.teaching import Teaching


def measure(
    champion: Loaded, challenger: Loaded, prompts: pd.Series, settings: JudgingSettings, teaching: Teaching
) -> list[Cost]:
    """Return what both models take, with the limits of the settings; latencies on a draw of the prompts.

    Memory is that of the weights: what an answer takes on top is in both the same code, and a process has but one peak.
    """
    chosen = prompts.iloc[draw(len(prompts), min(len(prompts), settings.latency_rows), seed=0)].tolist()
    with progress.bar("latency: champion and challenger in turns", "rows") as shown:
        seconds = latencies(
            [champion, challenger],
            chosen,
            max_prompt_tokens=teaching.student.max_prompt_tokens,
            max_new_tokens=teaching.student.max_new_tokens,
            progress=shown,
        )  # (2, rows)
    costs = [
        Cost("size on disk", champion.size_bytes / 1e6, challenger.size_bytes / 1e6, settings.max_size, "MB"),
        Cost("memory", champion.memory_bytes / 1e6, challenger.memory_bytes / 1e6, settings.max_memory, "MB"),
    ]
    if chosen:
        for name, share, limit in (
            ("latency p50", 0.5, settings.max_latency_p50),
            ("latency p95", 0.95, settings.max_latency_p95),
        ):
            first, second = np.quantile(seconds * 1000, share, axis=1)
            costs.append(Cost(name, float(first), float(second), limit, "ms"))
    return costs
