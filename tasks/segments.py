"""Parts of some rows by their meta_ columns, each of which a challenger is judged on by itself."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monitoring.features import floats, is_numeric, texts
from monitoring.judging_settings import JudgingSettings
from monitoring.naming import shortened, unique
from monitoring.segments import MISSING, PREFIX, rows_of
from monitoring.slices import values_of

FEW = 12  # a numeric column with more values is cut into quarters


def segments(
    rows: pd.DataFrame, settings: JudgingSettings
) -> tuple[list[tuple[str, str, NDArray[np.bool_]]], list[str]]:
    """Return each segment of some rows, name, meta_ column and which rows it has, (rows,): the values of each column.

    A numeric column of many values is cut into quarters; a column with a single value makes no segments. With them, in
    words, what is left out: of a text column of many values those of too few rows.
    """
    found, left_out = [], []
    for column in sorted(name for name in rows.columns if name.startswith(PREFIX)):
        parts, few = _of_column(column, rows[column], settings)
        found += [(f"segment {column} = {value}", column, chosen) for value, chosen in parts]
        left_out += few
    names = unique([name for name, _, _ in found])
    return [(name, column, chosen) for name, (_, column, chosen) in zip(names, found, strict=True)], left_out


def _of_column(
    name: str, column: pd.Series, settings: JudgingSettings
) -> tuple[list[tuple[str, NDArray[np.bool_]]], list[str]]:
    """Return what the segments of one column are called and which rows they have; none where there is but one."""
    missing, found = column.isna().to_numpy(), []
    left_out: list[str] = []
    if is_numeric(column) and column.nunique() > FEW:
        values = floats(column)
        edges = np.unique(np.nanquantile(values, [0.25, 0.5, 0.75]))
        quarter = np.searchsorted(edges, values, side="left")  # as drift's bins: edges[i - 1] < value <= edges[i]
        for number in range(len(edges) + 1):
            chosen = (quarter == number) & ~missing
            if chosen.any():
                found.append((f"{values[chosen].min():g} to {values[chosen].max():g}", chosen))
    else:
        kept, left_out = values_of(name, texts(column).dropna().to_numpy(object), settings)
        found = [(shortened(value), rows_of(column, value)) for value in kept]
    if missing.any():
        found.append((MISSING, missing))
    enough = len(found) > 1 or left_out
    return sorted(found, key=lambda segment: segment[0]) if enough else [], left_out
