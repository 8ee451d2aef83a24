"""Example rows: those that lie in what grew, most columns first, and none of a quiet window."""

import numpy as np
import pandas as pd

from monitoring.drift import compare
from monitoring.examples import SHOWN, carried, drifted_slice, examples
from monitoring.profile import ReferenceProfile
from monitoring.segments import Segment
from monitoring.settings import DriftSettings
from monitoring.tally import count

SETTINGS = DriftSettings()


def world(rows: int, seed: int, share: float = 0.0) -> pd.DataFrame:
    """Logged rows; a share of them is long and of a new class."""
    rng = np.random.default_rng(seed)
    new = rng.random(rows) < share
    return pd.DataFrame(
        {
            "request_id": [f"{seed}-{at}" for at in range(rows)],
            "timestamp": pd.Timestamp("2025-05-01", tz="UTC"),
            "prompt": [f"prompt {at}" for at in range(rows)],
            "response": np.where(new, "launch", rng.choice(["billing", "login"], rows)).astype(object),
            "prompt_chars": rng.normal(100, 20, rows) + 100 * new,
        }
    )


def seen(now: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the window's examples, and which rows lie in what grew."""
    names = ["response", "prompt_chars"]
    profile = ReferenceProfile.build(
        world(2000, 0)[names], window="then", model_version="1", max_categories=50, sample_rows=100, seed=0
    )
    tally = count(profile, now[names], sample_rows=100, seed=0)
    inside = carried(profile, tally, now[names], compare(profile, tally, "now", SETTINGS), SETTINGS)
    return examples(now, inside, seed=0), inside


def test_examples_are_rows_of_what_is_new_and_say_in_which_columns() -> None:
    now = world(1000, 1, share=0.3)
    shown, inside = seen(now)
    assert len(shown) == SHOWN
    assert set(shown["response"]) == {"launch"}
    assert all(set(names) == {"response", "prompt_chars"} for names in shown["drifted_in"])
    new = now["response"] == "launch"
    assert inside.loc[new, "response"].all()
    assert not inside.loc[~new, "response"].any()


def test_the_drifted_slice_is_of_what_comes_in_and_not_of_what_the_student_makes_of_it() -> None:
    now = world(1000, 1, share=0.3)
    _, inside = seen(now)
    inside["response"] = True
    assert np.array_equal(drifted_slice(inside, now, []), inside["prompt_chars"])
    assert not drifted_slice(inside[["response"]], now, []).any()


def test_a_segment_that_carries_the_drift_is_of_the_slice() -> None:
    now = world(1000, 1).assign(meta_channel=[*("app", "mail")] * 500)
    segment = Segment(
        column="meta_channel", value="app", before=0.5, now=0.5, rows=500, drifted_column="response", psi=1, psi_lower=1
    )
    assert np.array_equal(drifted_slice(pd.DataFrame(index=now.index), now, [segment]), now["meta_channel"] == "app")


def test_the_segment_of_rows_without_a_value_is_of_the_slice() -> None:
    now = world(1000, 1).assign(meta_channel=[*("(missing)", None)] * 500, meta_size=[1.0, np.nan] * 500)
    for column in ("meta_channel", "meta_size"):
        segment = Segment(
            column=column, value=None, before=0.5, now=0.5, rows=500, drifted_column="response", psi=1, psi_lower=1
        )
        assert np.array_equal(drifted_slice(pd.DataFrame(index=now.index), now, [segment]), np.arange(1000) % 2 == 1)


def test_a_quiet_window_has_no_examples() -> None:
    shown, inside = seen(world(1000, 2))
    assert shown.empty
    assert inside.shape == (1000, 0)


def test_fewer_rows_than_are_shown_are_shown_all() -> None:
    now = world(1000, 3, share=1.0).head(300)
    now["response"] = "login"
    now.loc[: SHOWN // 2 - 1, "response"] = "launch"
    now["prompt_chars"] = 100.0 + np.arange(300) % 40 - 20
    shown, inside = seen(now)
    carrying = int((inside.sum(axis=1) > 0).sum())
    assert len(shown) == min(SHOWN, carrying)
