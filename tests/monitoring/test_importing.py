"""Importing a file: every good row gets into the log, every bad one is kept aside, and a kill changes nothing."""

import gzip
import json
import signal
import subprocess
import sys
import time
from datetime import UTC, date, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from monitoring import commits, importing, rows, sources, traffic_command
from monitoring.errors import InputError
from monitoring.importing import import_file
from monitoring.traffic import Window, read_window, window_digest

ALL = Window.parse("1970-01-01..2100-01-01")
MAPPING = {"request_id": "id", "timestamp": "when", "prompt": "question", "meta_queue": "queue"}
GOOD = [
    {"id": "a", "when": "2026-01-01T10:00:00Z", "question": "where,\n\"when\" & 'why'?\x00", "queue": "billing"},
    {"id": "b", "when": "2026-01-02 10:00", "question": " “é” ", "queue": None},
    {"id": "c", "when": "2026-01-02T12:00:00+02:00", "question": "NA", "queue": "returns"},
]


def write_csv(path: Path, records: list[dict[str, object]]) -> Path:
    pd.DataFrame(records).to_csv(path, index=False, lineterminator="\n")
    return path


def write_jsonl(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_parquet(path: Path, records: list[dict[str, object]]) -> Path:
    pq.write_table(pa.Table.from_pylist(records), path)
    return path


WRITERS = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}


def many(count: int) -> list[dict[str, object]]:
    """Rows of the log's own columns, one a day."""
    start = date(2020, 1, 1).toordinal()
    return [
        {"request_id": f"n{n}", "timestamp": date.fromordinal(start + n).isoformat(), "prompt": f"question {n}"}
        for n in range(count)
    ]


@pytest.fixture
def log(tmp_path: Path) -> str:
    return str(tmp_path / "log")


def rejects_of(report: importing.ImportReport) -> list[dict[str, object]]:
    assert report.rejects is not None
    return [json.loads(line) for line in Path(report.rejects).read_text().splitlines()]


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("target", ["path", "file", "memory"])
def test_each_format_gives_the_same_log_on_each_file_system(format: str, target: str, tmp_path: Path) -> None:
    source = WRITERS[format](tmp_path / f"good.{format}", GOOD)
    log = {
        "path": f"{tmp_path}/log", "file": f"file://{tmp_path}/log", "memory": f"memory://{tmp_path.name}/log",
    }[target]  # fmt: skip
    url = str(source) if target != "file" else f"file://{source}"
    report = import_file(url, log, mapping=MAPPING)
    assert (report.accepted, report.rejected, report.rejects) == (3, 0, None)
    read = read_window(log, ALL)
    assert read["request_id"].tolist() == ["a", "b", "c"]
    assert read["prompt"].tolist() == [record["question"] for record in GOOD]
    assert read["meta_queue"].isna().tolist() == [False, True, False]
    assert read["timestamp"][1] == read["timestamp"][2] == pd.Timestamp("2026-01-02T10:00Z")


def test_a_source_may_be_compressed_and_lie_in_a_store(tmp_path: Path, log: str) -> None:
    plain = write_csv(tmp_path / "good.csv", GOOD)
    place = commits.locate(f"memory://{tmp_path.name}")
    place.fs.pipe_file(place.path("good.csv.gz"), gzip.compress(plain.read_bytes()))
    assert import_file(place.name("good.csv.gz"), log, mapping=MAPPING).accepted == 3


def test_every_bad_row_of_a_csv_file_is_kept_with_its_reason(tmp_path: Path, log: str) -> None:
    source = tmp_path / "mixed.csv"
    source.write_bytes(
        b"\xef\xbb\xbfrequest_id,timestamp,prompt,latency_ms\r\n"
        b"a,2026-01-01,fine,1.5\r\n"
        b",2026-01-01,no id,1\r\n"
        b"a,2026-01-01,again,1\r\n"
        b"t,,no time,1\r\n"
        b"u,yesterday,what time,1\r\n"
        b"e,2026-01-01, ,1\r\n"
        b"i,2026-01-01,caf\xe9,1\r\n"
        b"l,2026-01-01,slow,very\r\n"
        b"m,2026-01-01,too,many,fields\r\n"
        b'q,2026-01-01,"never closed,1\r\n'
        b"b,2026-01-01,still read,\r\n"
        b'\r\nc,2026-01-02,"two\r\nlines",2\r\n'
        b'z,2026-01-02,"open to the end,2\r\n'
        b"d,2026-01-03,the last,2"
    )
    report = import_file(str(source), log, max_reject_share=0.8)
    assert report.reasons == {
        "malformed line": 3, "no id": 1, rows.DUPLICATE: 1, "no time": 1, "unparsable time": 1, "empty prompt": 1,
        "invalid UTF-8": 1, "latency_ms is not a number": 1,
    }  # fmt: skip
    assert (report.accepted, report.rejected) == (4, sum(report.reasons.values()))
    read = read_window(log, ALL)
    assert read["request_id"].tolist() == ["a", "b", "c", "d"]
    assert read["prompt"][2] == "two\r\nlines"
    kept = {reject["position"]: reject for reject in rejects_of(report)}
    assert sorted(kept) == [3, 4, 5, 6, 7, 8, 9, 10, 11, 16]
    assert kept[11]["line"] == 'q,2026-01-01,"never closed,1'
    latin = kept[8]["row"]
    assert isinstance(latin, dict)
    assert latin["prompt"].encode(errors="surrogateescape") == b"caf\xe9", "not a byte is lost"
    assert kept[9]["row"] == {"request_id": "l", "timestamp": "2026-01-01", "prompt": "slow", "latency_ms": "very"}


def test_every_bad_line_of_a_jsonl_file_is_kept_with_its_reason(tmp_path: Path, log: str) -> None:
    source = tmp_path / "mixed.jsonl"
    source.write_bytes(
        b'{"request_id": 7, "timestamp": 1767225600, "prompt": "fine", "response": ""}\n'
        b'{"request_id": "u", "timestamp": 1767225600, "prompt": "caf\xe9"}\n'
        b'{"request_id": "s", "timestamp": 1767225600, "prompt": "\\ud800"}\n'
        b'{"request_id": "h", "timestamp": 1767225600, "pro\n'
        b"[1, 2]\n"
        b"\n"
        b'{"timestamp": 1767225600, "prompt": "no id"}\n'
        b'{"request_id": "p", "timestamp": 1767225600, "prompt": {"text": "nested"}}\n'
        b'{"request_id": "k", "timestamp": true, "prompt": "?"}\n'
        b'{"request_id": "b", "timestamp": 1767225600.25, "prompt": "fine", "mean_logprob": NaN}'
    )
    report = import_file(str(source), log, max_reject_share=0.8)
    assert report.reasons == {
        "invalid UTF-8": 2, "malformed line": 2, "no id": 1, "prompt is not text": 1, "unparsable time": 1,
    }  # fmt: skip
    read = read_window(log, ALL)
    assert read["request_id"].tolist() == ["7", "b"]
    assert read["response"][0] == ""
    assert read["timestamp"][1] == pd.Timestamp("2026-01-01T00:00:00.25Z")
    assert [reject["position"] for reject in rejects_of(report)] == [2, 4, 5, 3, 7, 8, 9]


def test_bad_rows_of_parquet_are_kept_also_where_text_is_no_utf8(tmp_path: Path, log: str) -> None:
    prompts = pa.array([b"fine", b"caf\xe9", None, b"fine"], pa.binary()).view(pa.string())
    when = pa.array([1767225600000, 1767225600000, 1767225600000, 2**62], pa.int64()).cast(pa.timestamp("ms"))
    table = pa.table({"request_id": pa.array([1, 2, None, 4]), "timestamp": when, "prompt": prompts})
    source = tmp_path / "mixed.parquet"
    pq.write_table(table, source)
    report = import_file(str(source), log, max_reject_share=0.8)
    assert report.reasons == {"invalid UTF-8": 1, "no id": 1, "unparsable time": 1}
    assert read_window(log, ALL)["timestamp"].tolist() == [pd.Timestamp("2026-01-01T00:00Z")]
    assert [reject["position"] for reject in rejects_of(report)] == [2, 3, 4]


def test_too_many_bad_rows_change_nothing_and_say_where_they_lie(tmp_path: Path, log: str) -> None:
    import_file(str(write_csv(tmp_path / "good.csv", GOOD)), log, mapping=MAPPING)
    before = read_window(log, ALL)
    files = sorted(Path(log).rglob("*.parquet"))
    records = [*many(9), {"request_id": "x", "timestamp": "soon", "prompt": "?"}]
    source = str(write_csv(tmp_path / "bad.csv", records))
    with pytest.raises(InputError, match=r"1 of 10 rows are bad \(unparsable time: 1\).*0.05") as caught:
        import_file(source, log, max_reject_share=0.05)
    rejects = Path(str(caught.value).rsplit(" ", 1)[-1])
    assert json.loads(rejects.read_text())["row"]["request_id"] == "x"
    pd.testing.assert_frame_equal(read_window(log, ALL), before)
    assert sorted(Path(log).rglob("*.parquet")) == files
    assert import_file(source, log, max_reject_share=0.1).accepted == 9, "exactly the share is not above it"


def test_the_same_file_twice_is_refused_and_changes_nothing(tmp_path: Path, log: str) -> None:
    source = str(write_csv(tmp_path / "good.csv", GOOD))
    import_file(source, log, mapping=MAPPING)
    with pytest.raises(InputError, match=f"{rows.KNOWN}: 3"):
        import_file(source, log, mapping=MAPPING)
    assert len(read_window(log, ALL)) == 3


def test_a_failed_first_import_leaves_no_log(tmp_path: Path, log: str) -> None:
    source = str(write_csv(tmp_path / "bad.csv", [{"request_id": "x", "timestamp": "soon", "prompt": "?"}]))
    with pytest.raises(InputError, match="nothing was imported"):
        import_file(source, log)
    with pytest.raises(InputError, match="no request log"):
        read_window(log, ALL)


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("2016-02-29", datetime(2016, 2, 29, tzinfo=UTC)),
        (" 2016-02-29 10:00:00.123456789 ", datetime(2016, 2, 29, 10, 0, 0, 123456, tzinfo=UTC)),
        ("2016-02-29T10:00-05:00", datetime(2016, 2, 29, 15, tzinfo=UTC)),
        ("1456740000", datetime(2016, 2, 29, 10, tzinfo=UTC)),
        ("1456740000.000001", datetime(2016, 2, 29, 10, 0, 0, 1, tzinfo=UTC)),
        (1456740000, datetime(2016, 2, 29, 10, tzinfo=UTC)),
        (1456740000.5, datetime(2016, 2, 29, 10, 0, 0, 500000, tzinfo=UTC)),
        (date(2016, 2, 29), datetime(2016, 2, 29, tzinfo=UTC)),
        (pd.Timestamp("2016-02-29T10:00:00.123456789"), datetime(2016, 2, 29, 10, 0, 0, 123456, tzinfo=UTC)),
    ],
)
def test_a_time_is_iso_text_or_epoch_seconds_and_utc_when_naive(value: object, moment: datetime) -> None:
    assert rows.to_microseconds(value) == (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e6


@pytest.mark.parametrize(
    "value",
    ["0", 0, -1.0, "20160229", 20160229, "1456740000123", 1456740000123, 10**30, float("inf"), "9" * 5000, "2015-02-29",
     "29/02/2016", "9999-12-31", True, b"noon", ["2016-02-29"]],
)  # fmt: skip
def test_a_time_that_can_only_be_guessed_is_unparsable(value: object) -> None:
    with pytest.raises(Exception, match="unparsable time"):
        rows.to_microseconds(value)


def test_meta_columns_are_numbers_only_when_all_of_the_file_is(
    tmp_path: Path, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_BLOCK_ROWS", 4)
    records = [
        {**record, "meta_n": n / 4, "meta_zip": f"0{n}", "meta_late": "x" if n == 9 else n, "meta_none": None,
         "meta_big": 2**60 + n}
        for n, record in enumerate(many(10))
    ]  # fmt: skip
    for format in ("csv", "jsonl"):
        here = f"{log}-{format}"
        import_file(str(WRITERS[format](tmp_path / f"meta.{format}", records)), here)
        read = read_window(here, ALL)
        assert read["meta_n"].tolist() == [n / 4 for n in range(10)]
        assert read["meta_zip"].tolist() == [f"0{n}" for n in range(10)]
        assert read["meta_late"].tolist() == [*(str(n) for n in range(9)), "x"]
        assert read["meta_big"].tolist() == [str(2**60 + n) for n in range(10)]
        assert "meta_none" not in read


def test_a_file_larger_than_memory_allows_is_imported_in_pieces(
    tmp_path: Path, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{**record, "timestamp": "2026-01-01"} for record in many(100)]
    source = str(write_csv(tmp_path / "many.csv", [*records, records[0]]))
    import_file(source, f"{log}-whole", max_reject_share=1)
    monkeypatch.setattr(sources, "_BLOCK_ROWS", 10)
    monkeypatch.setattr(importing, "_STAGE_BYTES", 1000)
    seen: list[tuple[int, int]] = []
    report = import_file(source, log, max_reject_share=1, progress=lambda done, total: seen.append((done, total)))
    assert report.reasons == {rows.DUPLICATE: 1}
    assert len(list(Path(log).rglob("*.parquet"))) > 3
    assert len(list((Path(log) / "_commits").glob("*.json"))) == 1
    assert window_digest(read_window(log, ALL)) == window_digest(read_window(f"{log}-whole", ALL))
    assert seen[-1] == (Path(source).stat().st_size,) * 2


def test_a_mapping_to_a_column_that_is_not_there_names_the_nearest(tmp_path: Path, log: str) -> None:
    source = str(write_csv(tmp_path / "good.csv", GOOD))
    with pytest.raises(InputError, match=r"prompt=Questoin.*'question'\? It has 'id', 'when', 'question', 'queue'"):
        import_file(source, log, mapping=MAPPING | {"prompt": "Questoin"})
    with pytest.raises(InputError, match=r"'promt' is no column of the request log; did you mean 'prompt'"):
        import_file(source, log, mapping=MAPPING | {"promt": "question"})
    assert not Path(log).exists()


def test_columns_that_would_be_lost_are_an_error_unless_ignored(tmp_path: Path, log: str) -> None:
    source = str(write_csv(tmp_path / "good.csv", GOOD))
    mapping = {name: origin for name, origin in MAPPING.items() if name != "meta_queue"}
    with pytest.raises(InputError, match=r"would be lost: 'queue'; .*--ignore-extra"):
        import_file(source, log, mapping=mapping)
    assert import_file(source, log, mapping=mapping, ignore_extra=True).accepted == 3
    with pytest.raises(InputError, match=r"no column 'request_id'; it has 'id', .*--map request_id=COLUMN"):
        import_file(source, log)


@pytest.mark.parametrize("format", WRITERS)
def test_a_damaged_source_is_named_and_changes_nothing(format: str, tmp_path: Path, log: str) -> None:
    import_file(str(write_csv(tmp_path / "good.csv", GOOD)), log, mapping=MAPPING)
    source = WRITERS[format](tmp_path / f"many.{format}", many(200))
    whole = source.read_bytes()
    if format != "parquet":
        source = source.with_suffix(f".{format}.gz")
        whole = gzip.compress(whole)
    source.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=source.name) as caught:
        import_file(str(source), log)
    assert "\n" not in str(caught.value)
    assert len(read_window(log, ALL)) == 3


def test_a_parquet_source_with_a_flipped_page_is_named(tmp_path: Path, log: str) -> None:
    source = tmp_path / "flipped.parquet"
    table = pa.Table.from_pylist(many(500))
    pq.write_table(table, source, write_page_checksum=True, compression="none", use_dictionary=False)
    data = bytearray(source.read_bytes())
    data[len(data) // 2] ^= 1
    source.write_bytes(data)
    with pytest.raises(InputError, match=r"flipped\.parquet"):
        import_file(str(source), log)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("absent.csv", None, "not there"),
        ("data.txt", b"a,b\n", "--format"),
        ("empty.csv", b"", "no column 'request_id'"),
        ("header.csv", b"request_id,timestamp,prompt\n", "holds no rows"),
        ("empty.jsonl", b"\n", "no column 'request_id'"),
        ("latin.csv", b"request_id,timestamp,prompt,caf\xe9\n", "cannot be read as csv"),
        ("twice.csv", b"request_id,timestamp,prompt,prompt\n", "two columns named 'prompt'"),
        ("text.parquet", b"request_id,timestamp,prompt\n", "cannot be read as parquet"),
        ("good.csv.zip", b"", "decompress"),
    ],
)
def test_a_source_that_cannot_be_used_is_one_clear_line(
    name: str, content: bytes | None, told: str, tmp_path: Path, log: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=told) as caught:
        import_file(str(tmp_path / name), log)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_blank_ground_truth_has_not_arrived_yet(tmp_path: Path, log: str) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "".join(
            json.dumps({"request_id": f"n{n}", "timestamp": "2026-01-01", "prompt": "x", "reference": text}) + "\n"
            for n, text in enumerate(("", "  ", "yes"))
        )
    )
    import_file(str(tmp_path / "rows.jsonl"), log)
    assert read_window(log, ALL)["reference"].isna().tolist() == [True, True, False]


@pytest.mark.parametrize("place", ["log", "source"])
def test_a_store_that_does_not_answer_is_one_line_without_its_password(place: str, tmp_path: Path, log: str) -> None:
    url = "ftp://user:secret@127.0.0.1:9/there.csv"
    source = str(write_csv(tmp_path / "good.csv", GOOD))
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9") as caught:
        import_file(source if place == "log" else url, url if place == "log" else log, mapping=MAPPING)
    assert "secret" not in str(caught.value)


def test_the_command_writes_to_the_log_that_the_flows_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(write_csv(tmp_path / "rows.csv", many(3)))
    (tmp_path / "conf").mkdir()
    config = tmp_path / "conf" / "redistill.toml"
    monkeypatch.chdir(tmp_path)
    for text, place in (('[traffic]\npath = "log"', "conf/log"), ('workspace = "../w"', "w/traffic")):
        config.write_text(text)
        assert traffic_command.main(["import", source, "--config", str(config)]) == 0
        assert len(read_window(str(tmp_path / place), ALL)) == 3
    for text, said in (("workspace = 3", "workspace = 3"), ("", "workspace = ''"), ("traffic = 3", "traffic = 3")):
        config.write_text(text)
        assert traffic_command.main(["import", source, "--config", str(config)]) == 2
        assert said in capsys.readouterr().err


KILLED_AT = """
import itertools, os, signal, sys
from monitoring import commits, traffic_command
module, name, calls, when = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
target = {"commits": commits, "os": os, "pq": commits.pq}[module]
original, numbers = getattr(target, name), itertools.count(1)
def killing(*arguments, **options):
    number = next(numbers)  # threads call this: each call has a number of its own
    if number == calls and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*arguments, **options)
    if number == calls and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(target, name, killing)
sys.exit(traffic_command.main(["import", sys.argv[5], "--log", sys.argv[6], "--max-reject-share", "1"]))
"""


@pytest.mark.parametrize(
    ("module", "name", "calls", "when", "new"),
    [
        ("pq", "write_table", 3, "after", False),
        ("commits", "sync", 5, "before", False),
        ("os", "replace", 1, "before", False),
        ("os", "replace", 1, "after", True),
    ],
)
def test_an_import_killed_at_this_point_leaves_the_old_log_or_the_new_one(
    module: str, name: str, calls: int, when: str, new: bool, tmp_path: Path, log: str
) -> None:
    import_file(str(write_csv(tmp_path / "good.csv", GOOD)), log, mapping=MAPPING)
    source = str(write_csv(tmp_path / "many.csv", [*many(10), {"request_id": "x", "prompt": "no time"}]))
    command = [sys.executable, "-c", KILLED_AT, module, name, str(calls), when, source, log]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(read_window(log, ALL)) == (13 if new else 3)
    if not new:
        assert import_file(source, log, max_reject_share=1).accepted == 10, "the next import is not in the way of it"
        assert len(read_window(log, ALL)) == 13


@pytest.mark.parametrize("parts", [1, 60])
def test_an_import_killed_from_outside_leaves_the_old_log_or_the_new_one(parts: int, tmp_path: Path, log: str) -> None:
    import_file(str(write_csv(tmp_path / "good.csv", GOOD)), log, mapping=MAPPING)
    source = str(write_csv(tmp_path / "many.csv", many(600)))
    command = [sys.executable, "-m", "monitoring.traffic", "import", source, "--log", log]
    deadline = time.monotonic() + 600
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None and len(list(Path(log).glob("date=*/*.parquet"))) < 2 + parts:
            assert time.monotonic() < deadline
        process.kill()
        assert process.wait() in (-signal.SIGKILL, 0), process.communicate()
    committed = len(list((Path(log) / "_commits").glob("*.json"))) == 2
    assert len(read_window(log, ALL)) == (603 if committed else 3)


def test_the_command_tells_what_was_taken_and_what_was_not(
    tmp_path: Path, log: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_csv(tmp_path / "mixed.csv", [*many(3), {"request_id": "x", "prompt": "no time"}])
    assert traffic_command.main(["import", str(source), "--log", log, "--max-reject-share", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["accepted", "3"]
    assert lines[1] == "rejected  1 (no time: 1)"
    assert Path(lines[2].split()[-1]).exists()
    assert "2020-01-01T00:00:00Z..2020-01-03T00:00:00.000001Z" in lines[3]
    assert traffic_command.main(["window", log, "2020-01-01..2020-01-03"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split() == ["rows", "2"]
    assert shown[2].split()[1] == window_digest(read_window(log, Window.parse("2020-01-01..2020-01-03")))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--map", "prompt"],
        ["--map", "prompt=question", "--map", "prompt=id"],
        ["--map", "prompt=nothing"],
        ["--max-reject-share", "1.5"],
        [],
    ],
)
def test_bad_arguments_are_one_line_on_stderr_and_exit_code_2(
    arguments: list[str], tmp_path: Path, log: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(write_csv(tmp_path / "good.csv", GOOD))
    assert traffic_command.main(["import", source, "--log", log, *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1


def test_the_help_shows_examples_and_how_times_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        traffic_command.main(["import", "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "--map request_id=arxiv_id" in text
    assert "without a time zone they are UTC" in text
