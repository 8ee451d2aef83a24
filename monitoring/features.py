"""Logged rows -> a frame of numeric and categorical columns that drift is measured on; prompts stay behind.

    numeric       prompt_chars prompt_words type_token_ratio non_ascii_share mean_logprob latency_ms
                  meta_* (numbers)
    categorical   response (the answer or class that was given, as it is), meta_* (everything else)

`reference`, the ground truth that arrives late, is no feature. What a row lacks is missing in its features;
a column that the log lacks is a column of missing values, so that the drift report can say so.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd

from monitoring.errors import InputError

LOGGED_NUMBERS = ("mean_logprob", "latency_ms")


def features(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row of features for each logged row, under the same index.

    Numeric columns are float64 with NaN for missing, categorical ones hold str or None.
    Raises InputError when the frame has no `prompt` column.
    """
    if "prompt" not in frame:
        raise InputError(f"column 'prompt' is missing; the frame has {list(frame.columns)}: read it with read_window")
    columns: dict[str, pd.Series] = _text_features(frame["prompt"])
    for name in LOGGED_NUMBERS:
        columns[name] = numbers(frame[name]) if name in frame else pd.Series(np.nan, frame.index)
    columns["response"] = texts(frame["response"]) if "response" in frame else pd.Series(None, frame.index, object)
    for name in sorted(str(column) for column in frame.columns if str(column).startswith("meta_")):
        columns[name] = numbers(frame[name]) if is_numeric(frame[name]) else texts(frame[name])
    return pd.DataFrame(columns, index=frame.index)


def is_numeric(series: pd.Series) -> bool:
    """Return whether a column counts as numeric: integers, real floats and booleans do."""
    return pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_complex_dtype(series)


def floats(series: pd.Series) -> npt.NDArray[np.float64]:
    """Return the numbers of a column, missing values as NaN."""
    return series.to_numpy(dtype=np.float64, na_value=np.nan)


def numbers(series: pd.Series) -> pd.Series:
    """Return a column as float64, missing values as NaN."""
    return pd.Series(floats(series), series.index)


def texts(series: pd.Series) -> pd.Series:
    """Return a column as str objects, missing values as None."""
    missing = series.isna().to_numpy()
    values = [None if absent else str(value) for value, absent in zip(series, missing, strict=True)]
    return pd.Series(values, series.index, dtype=object)


def _text_features(prompts: pd.Series) -> dict[str, pd.Series]:
    measures: dict[str, Callable[[str], float]] = {
        "prompt_chars": len,
        "prompt_words": lambda prompt: len(prompt.split()),
        "type_token_ratio": _type_token_ratio,
        "non_ascii_share": _non_ascii_share,
    }
    present = texts(prompts)
    return {
        name: pd.Series(
            [np.nan if prompt is None else measure(prompt) for prompt in present], prompts.index, np.float64
        )
        for name, measure in measures.items()
    }


def _type_token_ratio(prompt: str) -> float:
    """Distinct words over words, case folded: 1 when no word repeats."""
    words = prompt.lower().split()
    return len(set(words)) / len(words) if words else np.nan


def _non_ascii_share(prompt: str) -> float:
    if prompt.isascii():
        return 0.0 if prompt else np.nan
    return 1 - len(prompt.encode("ascii", "ignore")) / len(prompt)
