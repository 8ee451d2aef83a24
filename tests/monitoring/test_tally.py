"""Counting a window part by part: the sum of the parts is the whole, in any order, in any process."""

from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pandas as pd
import pytest

from monitoring.drift import compare
from monitoring.profile import ReferenceProfile
from monitoring.settings import DriftSettings
from monitoring.tally import Tally, count


def table(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "x": np.where(rng.random(rows) < 0.1, np.nan, rng.normal(size=rows)),
            "zeros": np.where(rng.random(rows) < 0.5, 0.0, rng.exponential(size=rows)),
            "label": rng.choice(["a", "b", "c", None], rows),
            "name": [f"n{value}" for value in rng.integers(0, 600, rows)],
        }
    )


@pytest.fixture(scope="module")
def profile() -> ReferenceProfile:
    return ReferenceProfile.build(
        table(3000, 1), window="then", model_version="1", max_categories=50, sample_rows=100, seed=0
    )


def total(parts: list[Tally]) -> Tally:
    whole = parts[0]
    for part in parts[1:]:
        whole += part
    return whole


def test_parts_counted_anywhere_and_added_in_any_order_give_the_report_of_the_whole(profile: ReferenceProfile) -> None:
    window = table(4000, 2)
    parts = [window[start : start + 700] for start in range(0, 4000, 700)]
    with ProcessPoolExecutor(2) as processes:
        counted = list(processes.map(count_part, [profile] * len(parts), parts, range(len(parts))))
    whole = compare(profile, window, "now", DriftSettings())
    for order in (counted, counted[::-1]):
        assert compare(profile, total(order), "now", DriftSettings()) == whole


def count_part(profile: ReferenceProfile, part: pd.DataFrame, seed: int) -> Tally:
    return count(profile, part, sample_rows=50, seed=seed)


def test_the_sample_of_a_sum_is_drawn_evenly_from_all_parts(profile: ReferenceProfile) -> None:
    window = table(4000, 3).assign(x=np.arange(4000.0))
    parts = [window[:3000], window[3000:]]
    late = [
        (total([count(profile, part, sample_rows=200, seed=2 * run + at) for at, part in enumerate(parts)]).sample["x"])
        for run in range(20)
    ]
    assert all(len(x) == 200 and x.is_unique for x in late)
    assert np.mean([(x >= 3000).mean() for x in late]) == pytest.approx(0.25, abs=0.03)
    assert len(count(profile, window[:70], sample_rows=200, seed=0).sample) == 70


def test_what_only_some_parts_have_is_a_finding_with_its_rows(profile: ReferenceProfile) -> None:
    window = table(1000, 4)
    parts = [window[:300].drop(columns="x"), window[300:].assign(label=1.0, new=0)]
    found = compare(profile, total([count_part(profile, part, 0) for part in parts]), "now", DriftSettings()).findings
    assert "x: missing from the window in 300 of its 1000 rows; not compared" in found
    assert "label: changed type, it is numeric now in 700 of 1000 rows; not compared" in found
    assert "new: not in the reference; not compared" in found


def test_a_part_without_values_has_any_type(profile: ReferenceProfile) -> None:
    window = table(1000, 5)
    parts = [window[:300].assign(x=None, label=np.nan), window[300:]]
    report = compare(profile, total([count_part(profile, part, 0) for part in parts]), "now", DriftSettings())
    assert {column.name for column in report.columns if column.psi is not None} == {"x", "zeros", "label", "name"}
    shares = {column.name: column.missing_current for column in report.columns}
    assert shares["x"] == pytest.approx(0.3 + parts[1]["x"].isna().sum() / 1000)
    assert shares["label"] == pytest.approx(0.3 + parts[1]["label"].isna().sum() / 1000)


def test_new_categories_are_named_and_counted_whatever_part_they_came_in(profile: ReferenceProfile) -> None:
    window = table(1000, 6)
    window.loc[window.index[::10], "label"] = "new"
    tally = total([count_part(profile, part, 0) for part in (window[:500], window[500:])])
    report = compare(profile, tally, "now", DriftSettings())
    label = next(column for column in report.columns if column.name == "label")
    assert label.new_categories == {"new": pytest.approx(100 / window["label"].notna().sum())}
    assert label.moved[0].cell == "OTHER (new)"


def test_a_cap_compares_that_many_rows_of_the_window(profile: ReferenceProfile) -> None:
    report = compare(profile, table(4000, 7), "now", DriftSettings(max_rows=500))
    assert report.rows == 500
    assert not report.drifted
