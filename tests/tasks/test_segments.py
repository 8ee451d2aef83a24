"""Parts of the rows that a challenger is judged on by themselves."""

import numpy as np
import pandas as pd
import pytest

from monitoring.judging_settings import JudgingSettings
from monitoring.slices import MAX_VALUES
from tasks.segments import segments

SETTINGS = JudgingSettings()


def named(frame: pd.DataFrame) -> dict[str, int]:
    return {name: int(chosen.sum()) for name, _, chosen in segments(frame, SETTINGS)[0]}


def test_each_value_of_a_meta_column_is_a_segment_and_so_are_the_rows_without_one() -> None:
    frame = pd.DataFrame({"prompt": "x", "meta_region": ["north", "south", "north", None], "meta_tier": [1, 2, 2, 2]})
    assert named(frame) == {
        "segment meta_region = (missing)": 1,
        "segment meta_region = north": 2,
        "segment meta_region = south": 1,
        "segment meta_tier = 1": 1,
        "segment meta_tier = 2": 3,
    }
    assert {column for _, column, _ in segments(frame, SETTINGS)[0]} == {"meta_region", "meta_tier"}


def test_many_numbers_are_cut_into_quarters_that_hold_every_row_once() -> None:
    ages = np.random.default_rng(0).normal(40, 10, 400)
    frame = pd.DataFrame({"meta_age": np.where(np.arange(400) < 40, np.nan, ages)})
    found = segments(frame, SETTINGS)[0]
    assert [int(chosen.sum()) for name, _, chosen in found if "missing" not in name] == [90, 90, 90, 90]
    assert (np.sum([chosen for _, _, chosen in found], axis=0) == 1).all()
    assert all(name.startswith("segment meta_age = ") for name, _, _ in found)


def test_a_column_of_one_value_makes_no_segments_and_there_is_nothing_to_say() -> None:
    assert segments(pd.DataFrame({"meta_one": ["a"] * 1000}), SETTINGS) == ([], [])


@pytest.mark.parametrize("small", [48, 49, 1000])
def test_values_of_enough_rows_are_segments_however_many_others_there_are_and_these_are_counted(small: int) -> None:
    tenants = ["large"] * 400 + ["just"] * 300 + ["less"] * 299 + [None] * 20
    frame = pd.DataFrame({"meta_tenant": tenants + [f"tenant {n}" for n in range(small - 1)]})
    found, left_out = segments(frame, SETTINGS)
    rows = {name.removeprefix("segment meta_tenant = "): int(chosen.sum()) for name, _, chosen in found}
    assert {"large": 400, "just": 300, "(missing)": 20}.items() <= rows.items()
    if small + 2 > MAX_VALUES:
        assert len(rows) == 3
        assert left_out == [
            f"meta_tenant: {small} of {small + 2} values have fewer than judging.segment_rows = 300 rows each, "
            f"{299 + small - 1:,} rows in all"
        ]
    told = sum(rows.values()) + (299 + small - 1 if left_out else 0)
    assert told == len(frame), "every row is in a segment, or told of"


def test_a_value_is_a_segment_though_it_is_the_only_one_of_enough_rows() -> None:
    tenants = ["large"] * 400 + [f"tenant {n}" for n in range(60)]
    assert named(pd.DataFrame({"meta_tenant": tenants})) == {"segment meta_tenant = large": 400}


def test_long_values_are_cut_and_stay_apart() -> None:
    frame = pd.DataFrame({"meta_page": ["a" * 100 + "1", "a" * 100 + "2"]})
    first, second = named(frame)
    assert first != second
    assert len(first) < 90
