"""Which segments carry a drift: the value in which it happened is named, and no other."""

import numpy as np
import pandas as pd
import pytest

from monitoring.drift import DriftReport, compare, compare_rows
from monitoring.profile import ReferenceProfile
from monitoring.settings import DriftSettings
from monitoring.tally import count

SETTINGS = DriftSettings()
CHANNELS = ["app", "mail", "phone"]


def world(rows: int, seed: int, *, drifted: str | None = None) -> pd.DataFrame:
    """Traffic in three channels; in the drifted one most answers are of a class that was rare."""
    rng = np.random.default_rng(seed)
    channel = rng.choice(CHANNELS, rows, p=[0.3, 0.5, 0.2])
    answer = rng.choice(["billing", "login", "other"], rows, p=[0.5, 0.4, 0.1])
    moved = (channel == drifted) & (rng.random(rows) < 0.7)
    return pd.DataFrame(
        {
            "response": np.where(moved, "other", answer).astype(object),
            "prompt_chars": rng.normal(100, 20, rows) + 30 * moved,
            "meta_channel": channel.astype(object),
            "meta_user": [f"user {number}" for number in rng.integers(0, rows, rows)],
        }
    )


def report(now: pd.DataFrame, then: pd.DataFrame | None = None) -> DriftReport:
    profile = ReferenceProfile.build(
        world(4000, 0) if then is None else then,
        window="then",
        model_version="1",
        max_categories=50,
        sample_rows=3000,
        seed=0,
    )
    tally = count(profile, now, sample_rows=3000, seed=0)
    return compare_rows(profile, tally.sample, compare(profile, tally, "now", SETTINGS), SETTINGS)


def test_the_segment_that_drifted_is_named_and_no_other() -> None:
    (segment,) = report(world(2000, 1, drifted="app")).segments
    assert (segment.column, segment.value, segment.drifted_column) == ("meta_channel", "app", "response")
    assert segment.now == pytest.approx(0.3, abs=0.03)
    assert segment.psi_lower > 1
    assert str(segment).startswith("meta_channel = app (29% of the rows): response PSI 1.8")


def test_a_quiet_window_names_no_segment() -> None:
    assert report(world(2000, 2)).segments == []


def test_a_drift_of_all_segments_alike_names_them_all() -> None:
    now = world(3000, 3)
    now["response"] = np.where(np.random.default_rng(4).random(3000) < 0.5, "other", now["response"])
    assert {segment.value for segment in report(now).segments} == {*CHANNELS}


def test_a_segment_that_only_grew_is_the_columns_own_drift() -> None:
    now = world(6000, 5)
    now = now[(now["meta_channel"] == "phone") | (np.arange(6000) % 4 == 0)]
    found = report(now)
    assert found.drifted_columns == ["meta_channel"]
    assert found.segments == []


def test_a_segment_of_too_few_rows_is_not_judged() -> None:
    now = world(2000, 6, drifted="app")
    few = now[(now["meta_channel"] != "app") | (np.arange(2000) % 20 == 0)]
    assert all(segment.value != "app" for segment in report(few).segments)


def test_numbers_are_segments_by_their_value() -> None:
    numbered = {name: float(at) for at, name in enumerate(CHANNELS)}
    then, now = world(4000, 0), world(2000, 7, drifted="mail")
    for frame in (then, now):
        frame["meta_channel"] = frame["meta_channel"].map(numbered)
    assert [segment.value for segment in report(now, then).segments] == ["1.0"]
