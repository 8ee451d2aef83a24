"""Features: what each one is, and that prompts and labels stay out of them."""

import numpy as np
import pandas as pd
import pytest

from monitoring.errors import InputError
from monitoring.features import features


def logged(**columns: object) -> pd.DataFrame:
    return pd.DataFrame({"prompt": ["Reset my password, my key", "Größe", "  "], **columns}, index=[7, 3, 5])


def test_text_features_are_what_their_names_say() -> None:
    made = features(logged())
    assert list(made.index) == [7, 3, 5]
    assert made["prompt_chars"].tolist() == [25, 5, 2]
    assert made["prompt_words"].tolist() == [5, 1, 0]
    assert made["type_token_ratio"].tolist()[:2] == [4 / 5, 1]
    assert np.isnan(made["type_token_ratio"][5])
    assert made["non_ascii_share"].tolist() == [0, pytest.approx(2 / 5), 0]


def test_prompts_labels_and_ids_are_no_features() -> None:
    frame = logged(reference=["a", "b", "c"], request_id=["1", "2", "3"], model_version="4", timestamp=pd.Timestamp(0))
    made = features(frame)
    assert set(made) == {
        *("prompt_chars", "prompt_words", "type_token_ratio", "non_ascii_share"),
        *("mean_logprob", "latency_ms", "response"),
    }
    assert not made.isin(frame["prompt"]).any(axis=None)


def test_columns_the_log_lacks_are_columns_of_missing_values() -> None:
    made = features(logged())
    assert made[["mean_logprob", "latency_ms", "response"]].isna().all(axis=None)
    assert made["latency_ms"].dtype == np.float64


def test_meta_columns_are_numbers_or_texts() -> None:
    made = features(
        logged(
            meta_tokens=pd.array([1, None, 3], "Int64"),
            meta_paid=[True, False, True],
            meta_team=["a", None, "b"],
            meta_mixed=[1, "x", None],
        )
    )
    assert made["meta_tokens"].tolist() == [1, pytest.approx(np.nan, nan_ok=True), 3]
    assert made["meta_paid"].tolist() == [1, 0, 1]
    assert made["meta_team"].tolist() == ["a", None, "b"]
    assert made["meta_mixed"].tolist() == ["1", "x", None]


def test_a_missing_prompt_has_missing_features_and_an_empty_frame_none() -> None:
    made = features(pd.DataFrame({"prompt": pd.array(["a", None], "string"), "response": ["x", None]}))
    assert made.loc[1].isna().all()
    assert len(features(logged().iloc[:0])) == 0


def test_a_frame_without_prompts_is_refused() -> None:
    with pytest.raises(InputError, match="'prompt' is missing"):
        features(pd.DataFrame({"text": ["a"]}))
