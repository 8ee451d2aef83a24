"""The reference profile: its counts, what lies on disk, and which files are refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from monitoring.columns import CategoricalColumn, NumericColumn
from monitoring.errors import Failure, InputError
from monitoring.features import features
from monitoring.profile import ReferenceProfile, load_sample


def world(rows: int = 700) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "normal": rng.normal(size=rows),
            "zero_inflated": np.where(rng.random(rows) < 0.7, 0.0, rng.exponential(size=rows)),
            "constant": 5.0,
            "empty": np.nan,
            "response": rng.choice(["billing", "delivery", "other"], rows),
            "rare": [f"name {i // 2}" for i in range(rows)],
            "nothing": pd.Series([None] * rows, dtype=object),
        }
    )
    frame.loc[:9, "normal"] = [np.nan] * 7 + [np.inf, -np.inf, np.inf]
    frame.loc[:4, "response"] = None
    return frame


def build(frame: pd.DataFrame, **settings: int) -> ReferenceProfile:
    chosen = {"max_categories": 50, "sample_rows": 100, "seed": 1, **settings}
    return ReferenceProfile.build(frame, window="2016-01-01..2017-01-01", model_version="3", **chosen)


def test_counts_and_missing_sum_to_the_rows_of_every_column() -> None:
    profile = build(world())
    for column in profile.columns.values():
        set_aside = column.set_aside if isinstance(column, CategoricalColumn) else 0
        assert column.counted.cells.sum() + column.missing + set_aside == 700
    normal = profile.columns["normal"]
    assert isinstance(normal, NumericColumn)
    assert (len(normal.edges), len(normal.counts)) == (255, 256)
    assert (normal.missing, normal.infinite) == (10, 3)


def test_counts_of_parts_add_up_to_those_of_the_whole() -> None:
    frame = world()
    for name, column in build(frame).columns.items():
        whole, parts = column.count(frame[name]), [column.count(frame[name][:300]), column.count(frame[name][300:])]
        assert (whole.cells == parts[0].cells + parts[1].cells).all()
        assert whole.missing == parts[0].missing + parts[1].missing
        if name != "rare":
            assert (whole.cells == column.counted.cells).all()


def test_a_value_that_repeats_has_a_bin_of_its_own() -> None:
    column = build(world()).columns["constant"]
    assert column.count(pd.Series([4.9, 5.0, 5.0, 5.1])).cells.tolist() == [1, 2, 1]
    zeros = build(world()).columns["zero_inflated"]
    assert zeros.count(pd.Series([-1e-9, 0.0, 1e-9])).cells[:3].tolist() == [1, 1, 1]


@pytest.mark.parametrize("rows", [1, 2, 100, 254, 255, 256, 1000])
def test_never_more_than_256_bins_whatever_repeats(rows: int) -> None:
    rng = np.random.default_rng(rows)
    for values in (rng.normal(size=rows), rng.integers(0, 200, rows), np.zeros(rows)):
        column = NumericColumn.build(pd.Series(values))
        assert len(column.counts) <= 256
        assert sum(column.counts) == rows


def test_rare_categories_and_those_beyond_the_limit_are_other() -> None:
    categories = pd.Series(["a"] * 50 + ["b"] * 30 + ["c"] * 10 + ["d"] * 4 + [None])
    column = CategoricalColumn.build(categories, 50, seed=0)
    assert (column.counts, column.other, column.missing) == ({"a": 50, "b": 30, "c": 10}, 4, 1)
    assert column.count(pd.Series(["c", "new", "d", None])).cells.tolist() == [0, 0, 1, 2]


def test_rows_that_choose_among_many_categories_are_not_counted() -> None:
    column = CategoricalColumn.build(pd.Series(["a"] * 60 + ["b"] * 30 + ["c"] * 11), 2, seed=0)
    assert list(column.counts) == ["a", "b"]
    assert (column.set_aside, int(column.counted.cells.sum())) == (50, 51)


def test_a_profile_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    profile = build(world())
    profile.save(tmp_path / "profile")
    again = ReferenceProfile.load(tmp_path / "profile")
    assert again == profile
    again.save(tmp_path / "copy")
    for name in ("profile.json", "sample.parquet"):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / "profile" / name).read_bytes()
    assert sorted(os.listdir(tmp_path / "copy")) == ["profile.json", "sample.parquet"]


def test_the_sample_is_repeatable_and_no_larger_than_asked() -> None:
    samples = [build(world(), seed=seed)._sample for seed in (1, 1, 2)]
    assert len(samples[0]) == 100
    assert samples[0].equals(samples[1])
    assert not samples[0].equals(samples[2])


def test_neither_prompts_nor_rare_answers_are_on_disk(tmp_path: Path) -> None:
    prompts = [f"secret number {i}" for i in range(300)]
    answers = ["billing"] * 290 + [f"private {i}" for i in range(10)]
    made = features(pd.DataFrame({"prompt": prompts, "response": answers}))
    build(made, sample_rows=300).save(tmp_path)
    sample = load_sample(tmp_path)
    assert len(sample) == 300
    assert set(sample["response"]) == {"billing", "OTHER"}
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert b"secret" not in content
        assert b"private" not in content


def test_a_profile_of_another_version_is_refused(tmp_path: Path) -> None:
    build(world()).save(tmp_path)
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(InputError, match=rf"{path} has format version 2, this version reads 1"):
        ReferenceProfile.load(tmp_path)


@pytest.mark.parametrize("name", ["profile.json", "sample.parquet"])
@pytest.mark.parametrize("damage", ["missing", "cut", "noise", "a list"])
def test_a_damaged_profile_is_refused_by_its_name(tmp_path: Path, name: str, damage: str) -> None:
    build(world()).save(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"cut": content[: len(content) // 2], "noise": b"\xff\x00\x81" * 50, "a list": b"[1]"}[damage])
    with pytest.raises(InputError, match=name):
        ReferenceProfile.load(tmp_path)


def test_counts_that_do_not_sum_are_refused(tmp_path: Path) -> None:
    build(world()).save(tmp_path)
    path = tmp_path / "profile.json"
    path.write_text(path.read_text().replace('"rows": 700', '"rows": 701'))
    with pytest.raises(InputError, match="do not sum to 701 rows"):
        ReferenceProfile.load(tmp_path)


def nested(content: dict[str, Any]) -> str:
    return "[" * 100_000


def huge(content: dict[str, Any]) -> str:
    content["columns"]["response"]["counts"]["billing"] = 2**70
    return json.dumps(content)


def changed(**values: object) -> Callable[[dict[str, Any]], str]:
    def change(content: dict[str, Any]) -> str:
        content["columns"]["normal"].update(values)
        return json.dumps(content)

    return change


def another_digest(content: dict[str, Any]) -> str:
    return json.dumps(content | {"schema_digest": "0" * 64})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (nested, "is not a reference profile"),
        (huge, "less than or equal to 9007199254740992"),
        (changed(edges=[], counts=[690]), "values and edges between"),
        (changed(low=9.0, high=-9.0), "must rise"),
        (changed(low=None), "without their smallest and largest"),
        (changed(infinite=11), "11 infinite values among 10 missing ones"),
        (changed(low=0.0), "lie outside 0.0 to"),
        (changed(high=0.0), "lie outside -"),
        (another_digest, "schema_digest 000000000000 is not that of its columns"),
    ],
)
def test_a_profile_that_contradicts_itself_is_refused(
    change: Callable[[dict[str, Any]], str], told: str, tmp_path: Path
) -> None:
    build(world()).save(tmp_path)
    path = tmp_path / "profile.json"
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(InputError, match=told):
        ReferenceProfile.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: rows.drop_columns("rare"), r"lacking: \['rare'\]"),
        (lambda rows: rows.append_column("more", rows["rare"]), r"unknown: \['more'\]"),
        (lambda rows: rows.append_column("rare", rows["rare"]), "twice: 1"),
        (lambda rows: rows.set_column(0, "normal", rows["response"]), r"another type: \['normal'\]"),
        (lambda rows: rows.set_column(4, "response", rows["normal"]), r"another type: \['response'\]"),
    ],
)
def test_a_sample_that_does_not_fit_its_profile_is_refused_in_one_line(
    change: Callable[[pa.Table], pa.Table], told: str, tmp_path: Path
) -> None:
    build(world()).save(tmp_path)
    path = tmp_path / "sample.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(InputError, match=told) as refused:
        ReferenceProfile.load(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", [-np.finfo(float).max, np.finfo(float).max, 5e-324, -5e-324, 0.0])
def test_the_most_extreme_constants_make_a_profile_that_comes_back(value: float, tmp_path: Path) -> None:
    profile = build(pd.DataFrame({"x": [value] * 300}))
    profile.save(tmp_path)
    assert ReferenceProfile.load(tmp_path) == profile


@pytest.mark.parametrize("rows", [1, 3, 255, 256, 257, 1000])
def test_edges_are_quantiles_by_the_inverted_cdf(rows: int) -> None:
    values = np.random.default_rng(rows).normal(size=rows)
    expected = np.unique(np.quantile(values, np.arange(1, 256) / 256, method="inverted_cdf"))
    assert np.isin(expected, NumericColumn.build(pd.Series(values)).edges).all()


def test_no_rows_make_no_profile() -> None:
    with pytest.raises(InputError, match="no rows to make a reference profile of"):
        build(world().iloc[:0])


def test_a_save_that_fails_leaves_the_old_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = build(world())
    old.save(tmp_path)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Failure, match=r"sample.parquet: No space left on device"):
        build(world(50)).save(tmp_path)
    assert ReferenceProfile.load(tmp_path) == old
    assert sorted(os.listdir(tmp_path)) == ["profile.json", "sample.parquet"]
