"""What held-out rows should be answered: their label, or else what the teacher answers; and what it answers besides."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from distill.errors import Failure
from distill.obtained import nothing
from tasks import costs, teach
from tasks.slices import HeldOut
from tasks.teaching import Teaching


def with_targets(
    slices: list[HeldOut], student: Path, teaching: Teaching, asked: Path, *, buy_agreement: bool = False
) -> tuple[list[pd.DataFrame], dict[str, Any]]:
    """Return each slice's rows with `target`, `by_teacher` and `teacher`, its answer where it is known, and the cost.

    A target is the row's label, or the teacher's answer while there is none. The teacher's answers to labelled rows are
    those that are stored already; with `buy_agreement` it is asked for the others too. Rows without any target, because
    the teacher withheld its answer, are not among them; Failure where all have none.
    """
    rows = pd.concat([part.rows.assign(slice=part.name) for part in slices], ignore_index=True)
    for name in ("reference", "target"):  # a slice may have neither labels nor targets of its own
        rows[name] = rows[name].astype(object) if name in rows else None
    given = rows["target"].notna()  # of the teacher-error set: these are the teacher's answers
    unlabelled = rows["reference"].isna() & ~given
    rows["by_teacher"] = unlabelled | given
    rows["teacher"] = rows["target"]
    rows["target"] = rows["target"].fillna(rows["reference"])
    buying = unlabelled | (buy_agreement & ~given)
    obtained, names = nothing(), rows.loc[buying, "slice"].to_numpy(str)
    if buying.any():
        what = "held-out rows" if buy_agreement else "held-out rows without a label"
        texts, obtained = teach.answers(rows.loc[buying, "prompt"].tolist(), student, teaching, asked, what)
        rows.loc[buying, "teacher"] = pd.Series(texts, rows.index[buying], dtype=object)
        rows.loc[unlabelled, "target"] = rows.loc[unlabelled, "teacher"]
    rest = ~buying & ~given
    if rest.any():
        known = teach.known_answers(rows.loc[rest, "prompt"].tolist(), student, teaching)
        rows.loc[rest, "teacher"] = pd.Series(known, rows.index[rest], dtype=object)
    parts = {part.name: obtained.part(names == part.name) for part in slices}
    cost = costs.report(obtained, parts, teaching.teacher)
    if rows["target"].isna().all():
        raise Failure(
            f"none of {len(rows)} held-out rows has a label, and the teacher withheld its answers to all of them: look "
            "at what its endpoint filters"
        )
    rows = rows[rows["target"].notna()]
    cost["targets_by_teacher"] = int(rows["by_teacher"].sum())
    known_rows = rows["teacher"].notna().groupby(rows["slice"]).sum()
    cost["teacher_known"] = {part.name: int(known_rows.get(part.name, 0)) for part in slices}
    return [rows[rows["slice"] == part.name] for part in slices], cost


def unanswered(slices: list[HeldOut], targets: list[pd.DataFrame]) -> list[str]:
    """Say how many rows are not judged by, because they have neither label nor answer of the teacher."""
    missing = {part.name: len(part.rows) - len(rows) for part, rows in zip(slices, targets, strict=True)}
    return [f"{name}: {count} rows to which the teacher gave no answer" for name, count in missing.items() if count]


def to_ask(slices: list[HeldOut], *, buy_agreement: bool) -> list[str]:
    """Return the prompts that the teacher will be asked about."""
    frames = [part.rows if buy_agreement else part.rows[part.rows["reference"].isna()] for part in slices]
    return [prompt for frame in frames for prompt in frame["prompt"]]


def agreement(rows: pd.DataFrame, responses: pd.Series) -> pd.Series:
    """Return whether each response is the teacher's answer, 1 or 0, NaN where that is not known, (rows,)."""
    same = responses.astype(str).str.strip() == rows["teacher"].fillna("").astype(str).str.strip()
    return same.astype(np.float64).where(rows["teacher"].notna())
