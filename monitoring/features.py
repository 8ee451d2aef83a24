"""Logged rows -> a frame of numeric and categorical columns that drift is measured on; prompts stay behind.

    numeric       prompt_chars prompt_words token_count unknown_rate type_token_ratio char_entropy zlib_ratio
                  non_ascii_share (of the prompt: monitoring/text.py says what each is), refusal (1: the response
                  looks like one), mean_logprob latency_ms meta_* (numbers)
    categorical   topic (of the prompt), response (the answer or class that was given, as it is),
                  meta_* (everything else)

`features.use` in the settings chooses among them, and names one's own (monitoring/extensions.py). `reference`, the
ground truth that arrives late, is no feature. What a row lacks is missing in its features; a column that the log
lacks is a column of missing values, so that the drift report can say so.
"""

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd

from monitoring import text
from monitoring.errors import InputError
from monitoring.extensions import own_feature
from monitoring.feature_settings import ALL_META, FeatureSettings
from monitoring.text import Tokenizer

LOGGED_NUMBERS = ("mean_logprob", "latency_ms")


def features(
    frame: pd.DataFrame, settings: FeatureSettings | None = None, tokenizer: Tokenizer | None = None
) -> pd.DataFrame:
    """Return one row of the chosen features for each logged row, under the same index.

    Numeric columns are float64 with NaN for missing, categorical ones hold str or None. `tokenizer` is the
    student's (text.load_tokenizer); without it token_count and unknown_rate are missing throughout.
    Raises InputError when the frame has no `prompt` column, or when a feature of one's own fails.
    """
    if "prompt" not in frame:
        raise InputError(f"column 'prompt' is missing; the frame has {list(frame.columns)}: read it with read_window")
    settings = settings or FeatureSettings()
    used = [name for name in settings.use if name in text.NUMBERS]
    measured = text.measure(texts(frame["prompt"]), used, tokenizer, settings.word_pieces)
    columns: dict[str, pd.Series] = {}
    for name in _names(frame, settings):
        columns[name] = (
            pd.Series(measured[name], frame.index) if name in measured else _feature(name, frame, settings.refusal)
        )
    return pd.DataFrame(columns, index=frame.index)


def _names(frame: pd.DataFrame, settings: FeatureSettings) -> Iterator[str]:
    """Yield the features in the order of the settings, with what `meta_*` stands for in its place."""
    for name in settings.use:
        if name != ALL_META:
            yield name
        else:
            yield from sorted({str(name) for name in frame.columns if str(name).startswith("meta_")} - {*settings.use})


def _feature(name: str, frame: pd.DataFrame, refusal: str) -> pd.Series:
    """Return one feature that is not a number measured on the prompt."""
    if name == "topic":
        return pd.Series(text.topics(texts(frame["prompt"])), frame.index, object)
    if name == "refusal":
        return _refusals(_logged("response", frame), refusal)
    if name in LOGGED_NUMBERS:
        return numbers(frame[name]) if name in frame else pd.Series(np.nan, frame.index, np.float64)
    if name == "response":
        return _logged(name, frame)
    made = _logged(name, frame, as_it_is=True) if name.startswith("meta_") else own_feature(name, frame)
    return numbers(made) if is_numeric(made) else texts(made)


def _logged(name: str, frame: pd.DataFrame, *, as_it_is: bool = False) -> pd.Series:
    if name not in frame:
        return pd.Series([None] * len(frame), frame.index, dtype=object)
    return frame[name] if as_it_is else texts(frame[name])


def _refusals(responses: pd.Series, pattern: str) -> pd.Series:
    matches = re.compile(pattern).search
    found = [np.nan if response is None else float(matches(response) is not None) for response in responses]
    return pd.Series(found, responses.index, np.float64)


def is_numeric(series: pd.Series) -> bool:
    """Return whether a column counts as numeric: integers, real floats, booleans, decimals, times and durations do."""
    if series.dtype == object:
        return bool(pd.api.types.infer_dtype(series, skipna=True) == "decimal")
    if series.dtype.kind in "mM":
        return True
    return pd.api.types.is_numeric_dtype(series) and not pd.api.types.is_complex_dtype(series)


def floats(series: pd.Series) -> npt.NDArray[np.float64]:
    """Return the numbers of a column, missing values as NaN; times as seconds since 1970, durations as seconds."""
    if series.dtype.kind in "mM":
        times = series.to_numpy(dtype=f"{series.dtype.kind}8[us]")
        return np.where(np.isnat(times), np.nan, times.astype(np.int64) / 1e6)
    return series.to_numpy(dtype=np.float64, na_value=np.nan)


def numbers(series: pd.Series) -> pd.Series:
    """Return a column as float64, missing values as NaN."""
    return pd.Series(floats(series), series.index)


def texts(series: pd.Series) -> pd.Series:
    """Return a column as str objects, missing values as None."""
    missing = series.isna().to_numpy()
    values = [None if absent else str(value) for value, absent in zip(series, missing, strict=True)]
    return pd.Series(values, series.index, dtype=object)
