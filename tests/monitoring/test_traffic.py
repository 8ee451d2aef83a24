"""The request log: what is appended is what is read, in one change or not at all."""

import logging
import zlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from threading import Barrier

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from monitoring import commits, rows
from monitoring.errors import Failure, InputError
from monitoring.traffic import Window, append, read_window, row_hash, rows_before, span, window_digest

ALL = Window.parse("2000-01-01..2100-01-01")
TYPES = {
    "request_id": "string",
    "timestamp": "datetime64[us, UTC]",
    "prompt": "string",
    "response": "string",
    "model_version": "string",
    "mean_logprob": "float64",
    "latency_ms": "float64",
    "reference": "string",
}


def requests(count: int, first: int = 0, **more: object) -> pd.DataFrame:
    """Rows eight hours apart from 2026-01-01 on, ids r0, r1, ..."""
    numbers = range(first, first + count)
    frame = pd.DataFrame(
        {
            "request_id": [f"r{number}" for number in numbers],
            "timestamp": [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=8 * number) for number in numbers],
            "prompt": [f"where is parcel {number}?\x00\n“é”" for number in numbers],
            "response": [None if number % 3 == 0 else "" if number % 3 == 1 else "lost" for number in numbers],
            "mean_logprob": [float("nan") if number % 2 else -0.1 * number for number in numbers],
        }
    )
    return frame.assign(**more)


@pytest.fixture(params=["path", "odd path", "file", "memory"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for a log on each kind of file system."""
    return {
        "path": str(tmp_path / "log"),
        "odd path": str(tmp_path / "a [1] *log* é"),
        "file": f"file://{tmp_path}/log",
        "memory": f"memory://{tmp_path.name}-{request.node.name}/log",
    }[request.param]


@pytest.fixture
def local(tmp_path: Path) -> str:
    """An empty place for a log on the local disk."""
    return str(tmp_path / "log")


def parts_of(log: str) -> list[Path]:
    return sorted(Path(log).glob("date=*/*.parquet"))


def test_what_is_appended_is_read_with_the_types_of_the_contract(log: str) -> None:
    frame = requests(10, meta_queue="billing", meta_size=np.arange(10))
    assert append(log, frame) == 10
    read = read_window(log, ALL)
    assert dict(read.dtypes.astype(str)) == TYPES | {"meta_queue": "string", "meta_size": "float64"}
    assert read["request_id"].tolist() == frame["request_id"].tolist()
    assert read["prompt"].tolist() == frame["prompt"].tolist()
    assert read["response"].isna().tolist() == frame["response"].isna().tolist()
    assert read["response"][1] == ""
    np.testing.assert_array_equal(read["mean_logprob"], frame["mean_logprob"])
    assert read["latency_ms"].isna().all()
    assert read["timestamp"].tolist() == frame["timestamp"].tolist()


def test_a_window_holds_its_start_and_not_its_end(log: str) -> None:
    append(log, requests(10))
    read = read_window(log, Window.parse("2026-01-01T08:00..2026-01-02T08:00"))
    assert read["request_id"].tolist() == ["r1", "r2", "r3"]


def test_rows_come_by_time_then_id_whatever_the_order_they_were_appended_in(log: str) -> None:
    frame = requests(9).assign(timestamp=datetime(2026, 1, 1, tzinfo=UTC))
    append(log, frame.iloc[[8, 3, 5]])
    append(log, frame.iloc[[7, 0]].assign(timestamp=datetime(2025, 12, 31, tzinfo=UTC)))
    assert read_window(log, ALL)["request_id"].tolist() == ["r0", "r7", "r3", "r5", "r8"]


def test_an_empty_window_has_every_column_of_the_log_and_its_type(log: str) -> None:
    append(log, requests(2, meta_a="x"))
    append(log, requests(2, first=2, meta_b=1.5))
    empty = read_window(log, Window.parse("2030-01-01..2031-01-01"))
    assert len(empty) == 0
    assert dict(empty.dtypes.astype(str)) == TYPES | {"meta_a": "string", "meta_b": "float64"}


def test_a_meta_column_that_some_parts_do_not_have_is_null_there(log: str) -> None:
    append(log, requests(2, meta_a="x"))
    append(log, requests(2, first=2, meta_b=1.5))
    read = read_window(log, ALL)
    assert read["meta_a"].isna().tolist() == [False, False, True, True]
    assert read["meta_b"].isna().tolist() == [True, True, False, False]
    first_day = read_window(log, Window.parse("2026-01-01..2026-01-01T16:00"))
    assert dict(first_day.dtypes) == dict(read.dtypes)


def test_text_in_a_number_column_is_refused_and_numbers_in_a_text_column_become_text(local: str) -> None:
    append(local, requests(1, meta_n=1.0, meta_t="a"))
    with pytest.raises(InputError, match="meta_n is not a number"):
        append(local, requests(1, first=1, meta_n="many"))
    append(local, requests(1, first=2, meta_t=7))
    assert read_window(local, ALL)["meta_t"].tolist() == ["a", "7"]


def test_two_writers_who_choose_different_kinds_at_once_leave_a_text_column(local: str) -> None:
    place = commits.locate(local)
    with commits.drafting(place) as first, commits.drafting(place) as second:
        for draft, value, row in ((first, 1.5, "a"), (second, "x", "b")):
            kinds: dict[str, rows.Kind] = {"meta_m": "number" if value == 1.5 else "text"}
            columns = {"request_id": [row], "timestamp": ["2026-01-01"], "prompt": ["?"], "meta_m": [value]}
            commits.stage(draft, rows.check(columns, 1, kinds, set(), set()).table)
            commits.publish(draft, kinds, {row})
    assert read_window(local, ALL)["meta_m"].tolist() == ["1.5", "x"]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("request_id", " ", "no id"),
        ("request_id", None, "no id"),
        ("request_id", "r0", rows.DUPLICATE),
        ("request_id", "old", rows.KNOWN),
        ("timestamp", pd.NaT, "no time"),
        ("timestamp", "soon", "unparsable time"),
        ("prompt", " \n", "empty prompt"),
        ("prompt", ["a"], "prompt is not text"),
        ("response", "\udcff", "invalid UTF-8"),
        ("mean_logprob", float("-inf"), "mean_logprob is not finite"),
        ("latency_ms", "fast", "latency_ms is not a number"),
    ],
)
def test_one_bad_row_keeps_a_frame_out_and_the_log_as_it_was(
    local: str, column: str, value: object, reason: str
) -> None:
    append(local, requests(1).assign(request_id="old"))
    frame = requests(4).astype(object)
    frame.at[2, column] = value
    with pytest.raises(InputError, match=f"1 of 4 rows.*first is row 2 .*{reason}"):
        append(local, frame)
    assert len(read_window(local, ALL)) == 1
    assert len(parts_of(local)) == 1


def test_unknown_missing_and_doubled_columns_of_a_frame_are_named(local: str) -> None:
    with pytest.raises(InputError, match="'queue'"):
        append(local, requests(1, queue="x"))
    with pytest.raises(InputError, match="no column 'prompt'"):
        append(local, requests(1).drop(columns="prompt"))
    with pytest.raises(InputError, match="two columns named 'prompt'"):
        append(local, pd.concat([requests(1), requests(1)[["prompt"]]], axis=1))
    assert not Path(local).exists()


def test_an_empty_frame_changes_nothing(local: str) -> None:
    assert append(local, requests(0)) == 0
    assert not Path(local).exists()


@pytest.mark.parametrize("kind", ["path", "memory"])
def test_parts_without_a_commit_are_read_by_nobody(kind: str, tmp_path: Path) -> None:
    log = str(tmp_path / "log") if kind == "path" else f"memory://{tmp_path.name}/staged"
    append(log, requests(3))
    before = read_window(log, ALL)
    with commits.drafting(commits.locate(log)) as draft:
        columns = {"request_id": ["late"], "timestamp": ["2026-01-01"], "prompt": ["?"]}
        commits.stage(draft, rows.check(columns, 1, {}, set(), set()).table)
    assert draft.place.fs.exists(draft.paths[0])
    pd.testing.assert_frame_equal(read_window(log, ALL), before)
    assert append(log, requests(1).assign(request_id="late")) == 1, "an id that was never committed is free"


def test_a_full_disk_is_a_failure_that_leaves_the_old_log_and_no_parts(
    local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(local, requests(3))
    before = parts_of(local)
    write, calls = pq.write_table, iter(range(100))

    def fill_up(*arguments: object, **options: object) -> None:
        if next(calls) == 2:
            raise OSError(28, "No space left on device")
        write(*arguments, **options)

    monkeypatch.setattr(commits.pq, "write_table", fill_up)
    with pytest.raises(Failure, match=r"No space left on device.*all of the change or nothing"):
        append(local, requests(30, first=3))
    assert parts_of(local) == before
    assert len(read_window(local, ALL)) == 3


def test_an_error_after_the_commit_is_visible_does_not_take_its_parts_away(
    local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = commits.sync

    def fail_at_the_end(path: str) -> None:
        if path.endswith("_commits"):
            raise OSError(5, "Input/output error")
        sync(path)

    monkeypatch.setattr(commits, "sync", fail_at_the_end)
    with pytest.raises(Failure):
        append(local, requests(3))
    assert len(read_window(local, ALL)) == 3


def test_appends_at_the_same_time_lose_nothing(local: str) -> None:
    barrier = Barrier(6)

    def work(number: int) -> int:
        barrier.wait(timeout=300)
        return append(local, requests(5, first=5 * number))

    with ThreadPoolExecutor(6) as threads:
        assert sum(threads.map(work, range(6))) == 30
    assert sorted(read_window(local, ALL)["request_id"]) == sorted(f"r{number}" for number in range(30))


def test_of_appends_of_the_same_ids_at_the_same_time_one_succeeds(local: str) -> None:
    barrier = Barrier(6)

    def work(_: int) -> bool:
        barrier.wait(timeout=300)
        try:
            return append(local, requests(5)) == 5
        except InputError:
            return False

    with ThreadPoolExecutor(6) as threads:
        assert sum(threads.map(work, range(6))) == 1
    assert len(read_window(local, ALL)) == 5


@pytest.mark.parametrize("kind", ["path", "memory"])
def test_an_id_that_another_writer_commits_meanwhile_is_refused(kind: str, tmp_path: Path) -> None:
    log = str(tmp_path / "log") if kind == "path" else f"memory://{tmp_path.name}/meanwhile"
    checked = rows.check({"request_id": ["r1"], "timestamp": ["2026-01-01"], "prompt": ["?"]}, 1, {}, set(), set())
    paths: list[str] = []

    def overtaken() -> None:
        with commits.drafting(commits.locate(log)) as draft:
            commits.stage(draft, checked.table)
            paths.extend(draft.paths)
            append(log, requests(3))
            commits.publish(draft, {}, {"r1"})

    with pytest.raises(InputError, match=r"'r1' among them.*meanwhile"):
        overtaken()
    assert read_window(log, ALL)["prompt"].tolist() == requests(3)["prompt"].tolist()
    assert not commits.locate(log).fs.exists(paths[0])


def test_a_duplicate_that_slipped_through_is_read_once_from_the_older_commit_with_a_warning(
    local: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    append(local, requests(3, meta_from="first"))
    monkeypatch.setattr(commits, "read_ids", lambda place, base: set())
    append(local, requests(2, first=1, meta_from="second"))
    with caplog.at_level(logging.WARNING):
        read = read_window(local, ALL)
    assert read["meta_from"].tolist() == ["first"] * 3
    assert "2 rows" in caplog.text


def test_only_the_days_of_the_window_are_opened(local: str) -> None:
    append(local, requests(9))
    for part in parts_of(local)[1:]:
        part.write_bytes(b"no parquet")
    assert len(read_window(local, Window.parse("2026-01-01..2026-01-02"))) == 3
    with pytest.raises(InputError, match="date=2026-01-02"):
        read_window(local, ALL)


@pytest.mark.parametrize("damage", ["cut", "bit", "gone", "other"])
def test_a_damaged_part_is_an_input_error_that_names_the_file(local: str, damage: str) -> None:
    append(local, requests(3, response="x" * 5000))
    part = parts_of(local)[0]
    data = bytearray(part.read_bytes())
    if damage == "cut":
        part.write_bytes(data[: len(data) // 2])
    elif damage == "bit":
        data[60] ^= 4
        part.write_bytes(data)
    elif damage == "other":
        pq.write_table(pq.ParquetFile(part).read(columns=["prompt"]), part)
    else:
        part.unlink()
    with pytest.raises(InputError, match=part.name) as caught:
        read_window(local, ALL)
    assert "\n" not in str(caught.value)


def test_a_damaged_commit_is_an_input_error_that_names_the_file(local: str) -> None:
    append(local, requests(3))
    commit = next((Path(local) / "_commits").glob("*.json"))
    commit.write_text(commit.read_text()[:40])
    with pytest.raises(InputError, match=commit.name) as caught:
        span(local)
    assert "\n" not in str(caught.value)


def test_no_log_is_an_input_error_that_says_how_to_make_one(log: str) -> None:
    for read in (lambda: read_window(log, ALL), lambda: span(log)):
        with pytest.raises(InputError, match=r"no request log.*import"):
            read()
    with pytest.raises(InputError, match="nosuch"):
        span("nosuch://bucket/log")


def test_the_span_holds_every_row_also_after_being_written_down(log: str) -> None:
    append(log, requests(10))
    append(log, requests(2).assign(request_id=["x", "y"], timestamp=pd.Timestamp("2025-05-05T01:02:03.000004")))
    whole = span(log)
    assert whole.start == datetime(2025, 5, 5, 1, 2, 3, 4, tzinfo=UTC)
    assert whole.end == datetime(2026, 1, 4, 0, 0, 0, 1, tzinfo=UTC)
    assert len(read_window(log, Window.parse(str(whole)))) == 12


def test_the_digest_does_not_depend_on_partition_order_or_dtypes(tmp_path: Path) -> None:
    frame = requests(20, meta_size=1.5)
    one, many = str(tmp_path / "one"), str(tmp_path / "many")
    append(one, frame)
    for start in (10, 0, 5, 15):
        append(many, frame.iloc[start : start + 5].iloc[::-1])
    digest = window_digest(read_window(one, ALL))
    assert digest == window_digest(read_window(many, ALL))
    assert digest == window_digest(frame.sample(frac=1, random_state=0)[list(frame.columns[::-1])])
    assert len(digest) == 64


def test_the_digest_of_a_window_stays_when_a_later_import_brings_a_column(local: str) -> None:
    append(local, requests(3))
    window = Window.parse("2026-01-01..2026-01-02")
    before = window_digest(read_window(local, window))
    append(local, requests(3, first=3, meta_new="x"))
    assert window_digest(read_window(local, window)) == before


@pytest.mark.parametrize(
    ("column", "value"),
    [("request_id", "z"), ("prompt", "?"), ("response", None), ("mean_logprob", -0.5), ("reference", "x")],
)
def test_the_digest_changes_with_any_value(column: str, value: object) -> None:
    frame = requests(5, response="", mean_logprob=-0.25)
    changed = frame.astype({"response": object})
    changed.loc[2, column] = value
    assert window_digest(changed) != window_digest(frame)


def test_the_digest_tells_where_one_text_ends_and_the_next_begins() -> None:
    frame = requests(2)
    assert window_digest(frame.assign(prompt=["ab", "c"])) != window_digest(frame.assign(prompt=["a", "bc"]))
    assert window_digest(frame.iloc[:0]) != window_digest(frame)


def test_the_row_hash_is_the_crc32_of_the_id() -> None:
    ids = pd.Series(["0704.0001", "é", "r1"], dtype="string")
    hashes = row_hash(ids)
    assert hashes.dtype == np.int64
    assert hashes.tolist() == [zlib.crc32(str(value).encode()) % 100 for value in ids]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("2016-01-01..2017-01-01", "2016-01-01..2017-01-01"),
        ("2016-01-01T12:00..2016-01-02", "2016-01-01T12:00:00Z..2016-01-02T00:00:00Z"),
        ("2016-01-01T00:00:00+02:00..2016-01-02", "2015-12-31T22:00:00Z..2016-01-02T00:00:00Z"),
        ("2016-01-01..2016-01-01T00:00:00.000001Z", "2016-01-01T00:00:00Z..2016-01-01T00:00:00.000001Z"),
    ],
)
def test_a_window_is_read_as_utc_and_written_so_that_it_reads_back(text: str, written: str) -> None:
    window = Window.parse(text)
    assert str(window) == written
    assert Window.parse(str(window)) == window


@pytest.mark.parametrize(
    "text", ["", "2016", "2016-01-01", "2016-01-01..", "..", "a..b", "2016-13-01..2017-01-01", "2017-01-01..2016-01-01",
             "2016-01-01..2016-01-01", "2016-01-01...2017-01-01", "0001-01-01T00:00+10:00..2016-01-01"],
)  # fmt: skip
def test_a_wrong_window_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError, match="window"):
        Window.parse(text)


def test_a_window_needs_time_zones_and_is_kept_in_utc() -> None:
    with pytest.raises(InputError, match="no time zone"):
        Window(datetime(2016, 1, 1), datetime(2017, 1, 1))
    east = timezone(timedelta(hours=2))
    assert Window(datetime(2016, 1, 1, tzinfo=east), datetime(2017, 1, 1, tzinfo=east)).start.tzinfo is UTC


def test_rows_before_a_moment_are_counted_as_they_would_be_read(log: str) -> None:
    append(log, requests(10))
    append(log, requests(10, first=10))
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for hours in (0, 1, 8, 24, 77, 160, 10_000):
        end = start + timedelta(hours=hours)
        read = len(read_window(log, Window(start - timedelta(days=1), end)))
        assert rows_before(log, end) == read, hours
    with pytest.raises(InputError, match="there is no request log"):
        rows_before(f"{log}-none", start)
