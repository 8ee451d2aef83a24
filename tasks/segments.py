"""Parts of some rows by their meta_ columns, each of which a challenger is judged on by itself."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monitoring.features import floats, is_numeric, texts
from monitoring.naming import shortened, unique
from monitoring.segments import MAX_VALUES, MISSING, PREFIX, rows_of

FEW = 12  # a numeric column with more values is cut into quarters


def segments(rows: pd.DataFrame) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Yield each segment of some rows, name, meta_ column and which rows it has, (rows,): the values of each column.

    A numeric column of many values is cut into quarters; a text column of more than MAX_VALUES makes no segments, nor
    does one with a single value.
    """
    found = [
        (f"segment {column} = {value}", column, chosen)
        for column in sorted(name for name in rows.columns if name.startswith(PREFIX))
        for value, chosen in _of_column(rows[column])
    ]
    names = unique([name for name, _, _ in found])
    yield from ((name, column, chosen) for name, (_, column, chosen) in zip(names, found, strict=True))


def _of_column(column: pd.Series) -> list[tuple[str, NDArray[np.bool_]]]:
    """Return what the segments of one column are called and which rows they have; none where there is but one."""
    missing, found = column.isna().to_numpy(), []
    if is_numeric(column) and column.nunique() > FEW:
        values = floats(column)
        edges = np.unique(np.nanquantile(values, [0.25, 0.5, 0.75]))
        quarter = np.searchsorted(edges, values, side="left")  # as drift's bins: edges[i - 1] < value <= edges[i]
        for number in range(len(edges) + 1):
            chosen = (quarter == number) & ~missing
            if chosen.any():
                found.append((f"{values[chosen].min():g} to {values[chosen].max():g}", chosen))
    elif column.nunique() <= MAX_VALUES:
        found = [(shortened(str(value)), rows_of(column, str(value))) for value in texts(column).dropna().unique()]
    if missing.any() and found:
        found.append((MISSING, missing))
    return sorted(found, key=lambda segment: segment[0]) if len(found) > 1 else []
