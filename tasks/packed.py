"""What packing takes from a student: its 8-bit weights answer held-out rows beside the checkpoint they are made from.

A verdict on the checkpoint says nothing of 8-bit weights, which are what serves then. So they have a slice of their
own, in which the checkpoint stands for the champion: what it wins may not be lost again on the way into the Bento.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from deployments.bento import quantised
from deployments.bento.serving.limits import fault
from deployments.bento.smoke import body
from deployments.settings import PackagingSettings
from monitoring import row_metrics
from monitoring.budgets import Cost
from monitoring.regression import Paired, Slice
from tasks.teaching import Teaching


def measure(
    student: Path, rows: pd.DataFrame, packaging: PackagingSettings, teaching: Teaching, refusal: str
) -> tuple[dict[str, Slice], list[Cost]]:
    """Return the slice of the packed student and what it takes beside the checkpoint; nothing where it is packed as is.

    rows: measured ones of one slice (tasks.measured), of which `packaging.agreement_rows` are asked.
    """
    if packaging.format != "onnx-int8":
        return {}, []
    asked = servable(rows, packaging).head(packaging.agreement_rows)
    limits = {
        "max_prompt_tokens": teaching.student.max_prompt_tokens,
        "max_new_tokens": teaching.student.max_new_tokens,
    }
    with TemporaryDirectory(prefix="packed-") as folder:
        quantised.write(student, Path(folder), **limits)
        found = quantised.measure(student, Path(folder), asked["prompt"].tolist(), **limits)
    wanted = asked["target"].tolist()
    scores = {
        "exact_match": row_metrics.exact_match(found.answers, wanted),
        "token_f1": row_metrics.token_f1(found.answers, wanted),
        "refusal_rate": row_metrics.refusal_rate(found.answers, refusal),
    }
    paired = {metric: Paired(asked[f"challenger_{metric}"].to_numpy(), own) for metric, own in scores.items()}
    costs = [
        Cost("8-bit answers that differ", 1.0, 1.0 - found.same_answers, 0.0, "of all"),
        Cost("8-bit tokens that differ", 1.0, 1.0 - found.same_tokens, 0.0, "of all"),
        Cost("8-bit time of a token", 1.0, 1.0 / found.decode_speedup, 0.0, "of the checkpoint's"),
        Cost("8-bit time of a prompt", 1.0, 1.0 / found.prefill_speedup, 0.0, "of the checkpoint's"),
        Cost("8-bit size", 1.0, found.size, 0.0, "of the checkpoint's"),
    ]
    return {f"8-bit weights on {asked['slice'].iloc[0]}": Slice("packaged", paired)}, costs


def servable(rows: pd.DataFrame, packaging: PackagingSettings) -> pd.DataFrame:
    """Return the rows whose prompts a service takes."""

    def taken(prompt: str) -> bool:
        fits = len(prompt) <= packaging.max_prompt_chars and len(body([prompt])) <= packaging.max_body_bytes
        return fits and fault(prompt) is None

    return rows[[taken(prompt) for prompt in rows["prompt"]]]
