"""Rows that carry a drift: whose values lie in the bins and categories that grew. They are for the workspace alone."""

import numpy as np
import numpy.typing as npt
import pandas as pd

from monitoring.attribution import lie_in
from monitoring.drift import DriftReport
from monitoring.profile import ReferenceProfile
from monitoring.settings import DriftSettings
from monitoring.tally import Tally

SHOWN = 20


def carried(
    profile: ReferenceProfile, tally: Tally, features: pd.DataFrame, report: DriftReport, settings: DriftSettings
) -> pd.DataFrame:
    """Return which rows lie in a cell that grew, bool (rows, drifted columns); columns at info where none drifted."""
    chosen = [column for column in report.columns if column.drifted] or [
        column for column in report.columns if column.severity == "info"
    ]
    inside: dict[str, npt.NDArray[np.bool_]] = {}
    for column in chosen:
        reference = profile.columns[column.name]
        sides = reference.counted, tally.columns[column.name].counted
        inside[column.name] = lie_in(column.moved, features[column.name], reference, *sides, bins=settings.bins)
    return pd.DataFrame(inside, features.index, dtype=bool)


def examples(rows: pd.DataFrame, inside: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the logged rows that carry a drift in most columns, at most 20, with `drifted_in`; prompts included."""
    times = inside.sum(axis=1).to_numpy()
    order = np.random.default_rng(seed).permutation(len(rows))  # among equals a random choice, not the earliest
    order = order[np.argsort(-times[order], kind="stable")][:SHOWN]
    order = order[times[order] > 0]
    shown = rows.iloc[order][["request_id", "timestamp", "prompt", "response"]]
    names = np.array(inside.columns, object)
    return shown.assign(drifted_in=[names[inside.to_numpy()[at]].tolist() for at in order])
