"""Parts of the rows that a challenger is judged on by themselves."""

import numpy as np
import pandas as pd

from tasks.segments import segments


def named(frame: pd.DataFrame) -> dict[str, int]:
    return {name: int(chosen.sum()) for name, _, chosen in segments(frame)}


def test_each_value_of_a_meta_column_is_a_segment_and_so_are_the_rows_without_one() -> None:
    frame = pd.DataFrame({"prompt": "x", "meta_region": ["north", "south", "north", None], "meta_tier": [1, 2, 2, 2]})
    assert named(frame) == {
        "segment meta_region = (missing)": 1,
        "segment meta_region = north": 2,
        "segment meta_region = south": 1,
        "segment meta_tier = 1": 1,
        "segment meta_tier = 2": 3,
    }
    assert {column for _, column, _ in segments(frame)} == {"meta_region", "meta_tier"}


def test_many_numbers_are_cut_into_quarters_that_hold_every_row_once() -> None:
    ages = np.random.default_rng(0).normal(40, 10, 400)
    frame = pd.DataFrame({"meta_age": np.where(np.arange(400) < 40, np.nan, ages)})
    found = list(segments(frame))
    assert [int(chosen.sum()) for name, _, chosen in found if "missing" not in name] == [90, 90, 90, 90]
    assert (np.sum([chosen for _, _, chosen in found], axis=0) == 1).all()
    assert all(name.startswith("segment meta_age = ") for name, _, _ in found)


def test_a_column_of_one_value_or_of_too_many_makes_no_segments() -> None:
    frame = pd.DataFrame({"meta_one": "a", "meta_user": [f"user {n}" for n in range(60)]})
    assert named(frame) == {}


def test_long_values_are_cut_and_stay_apart() -> None:
    frame = pd.DataFrame({"meta_page": ["a" * 100 + "1", "a" * 100 + "2"]})
    first, second = named(frame)
    assert first != second
    assert len(first) < 90
