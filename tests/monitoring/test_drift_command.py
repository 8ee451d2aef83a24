"""python -m monitoring.drift REFERENCE CURRENT: any two tables, an exit code that a script can go by."""

import datetime
import decimal
import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from monitoring import drift_command
from monitoring.errors import InputError
from monitoring.profile import ReferenceProfile

BUILT: dict[str, Any] = {"window": "then", "model_version": "1", "max_categories": 50, "sample_rows": 100, "seed": 0}


def table(rows: int, shift: float = 0.0, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {"x": rng.normal(size=rows) + shift, "y": rng.normal(size=rows), "c": rng.choice([*"abc"], rows)}
    )


@pytest.fixture
def reference(tmp_path: Path) -> str:
    table(2000).to_parquet(tmp_path / "then.parquet")
    return str(tmp_path / "then.parquet")


def strict(printed: str) -> dict[str, Any]:
    """Return printed JSON; NaN and Infinity are none."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found: dict[str, Any] = json.loads(printed, parse_constant=refuse)
    return found


def test_exit_code_0_is_quiet_and_3_is_drift(
    reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table(900, seed=1).to_csv(tmp_path / "quiet.csv", index=False)
    table(900, shift=1.0, seed=2).to_csv(tmp_path / "moved.csv", index=False)
    assert drift_command.main([reference, str(tmp_path / "quiet.csv")]) == 0
    assert capsys.readouterr().out.startswith("QUIET  ")
    assert drift_command.main([reference, str(tmp_path / "moved.csv")]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("CRITICAL  ")
    assert lines[3].split()[:2] == ["x", "critical"]
    assert "above 1.2" in lines[3], "the bin that carries the drift is named"


def test_json_is_the_whole_report(reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(900, shift=1.0).to_parquet(tmp_path / "now.parquet")
    assert drift_command.main([reference, str(tmp_path / "now.parquet"), "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert (report["severity"], report["drifted_columns"], report["rows"]) == ("critical", ["x"], 900)


def test_thresholds_come_from_the_settings_file(reference: str, tmp_path: Path) -> None:
    table(900, shift=1.0).to_parquet(tmp_path / "now.parquet")
    config = tmp_path / "redistill.toml"
    config.write_text("[drift]\npsi_bound = 90\ncritical_bound = 99\nks_distance = 1.0\nauc_bound = 0.9\n")
    assert drift_command.main([reference, str(tmp_path / "now.parquet"), "--config", str(config)]) == 0


def test_a_folder_of_parquet_is_one_table_and_a_profile_is_a_reference(reference: str, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    for part, frame in enumerate(np.array_split(np.arange(900), 3)):
        path = folder / f"date=2026-01-0{part + 1}" / "part.parquet"
        path.parent.mkdir(parents=True)
        table(900, seed=3).iloc[frame].to_parquet(path)
    assert sum(len(frame) for frame in drift_command.frames(str(folder))) == 900
    ReferenceProfile.build(table(2000), **BUILT).save(tmp_path / "profile")
    assert drift_command.main([str(tmp_path / "profile"), str(folder)]) == 0


def test_the_page_shows_the_window(reference: str, tmp_path: Path) -> None:
    table(900, shift=1.0).to_parquet(tmp_path / "now.parquet")
    page = tmp_path / "drift.html"
    assert drift_command.main([reference, str(tmp_path / "now.parquet"), "--html", str(page)]) == 3
    assert "drift in x" in page.read_text()


GZIPPED = gzip.compress(table(900).to_csv(index=False).encode(), mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("absent.parquet", None, "is not there"),
        ("broken.parquet", b"PAR1 and no more", "cannot be read"),
        ("empty.csv", b"", "cannot be read"),
        ("image.csv", b"\x89PNG\r\n\x1a\n\xff\xfe", "cannot be read"),
        ("b.zip", b"abc", "cannot be read"),
        ("b.csv.xz", b"no xz at all", "cannot be read"),
        ("b.tar", b"no tar at all", "cannot be read"),
        ("half.csv.gz", GZIPPED[: len(GZIPPED) // 2], "cannot be read"),
        ("damaged.csv.gz", GZIPPED[:30] + b"\xff" * 30 + GZIPPED[60:], "cannot be read"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_line_and_exit_code_2(
    name: str, content: bytes | None, told: str, reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert drift_command.main([reference, str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert told in error
    assert name in error


def test_settings_that_cannot_be_used_are_told(reference: str, tmp_path: Path) -> None:
    config = tmp_path / "redistill.toml"
    config.write_text("[drift]\npsi_bond = 1\n")
    assert drift_command.main([reference, reference, "--config", str(config)]) == 2


@pytest.mark.parametrize("note", [b"[]", b"{", b'{"index_columns": ["absent"], "columns": [], "column_indexes": []}'])
def test_what_pandas_noted_in_a_parquet_file_may_be_damaged(note: bytes, reference: str, tmp_path: Path) -> None:
    noted = pa.Table.from_pandas(table(900, seed=1)).replace_schema_metadata({b"pandas": note})
    pq.write_table(noted, tmp_path / "noted.parquet")
    assert drift_command.main([reference, str(tmp_path / "noted.parquet")]) == 0


def test_an_index_that_pandas_wrote_is_no_column(tmp_path: Path) -> None:
    table(9).sample(frac=1, random_state=0).to_parquet(tmp_path / "shuffled.parquet")
    assert "__index_level_0__" in pq.read_schema(tmp_path / "shuffled.parquet").names
    assert [list(part) for part in drift_command.frames(str(tmp_path / "shuffled.parquet"))] == [["x", "y", "c"]]


def test_settings_nested_without_end_are_one_line(
    reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000)
    assert drift_command.main([reference, reference, "--config", str(tmp_path / "deep.toml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_page_without_a_name_is_bad_input(reference: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert drift_command.main([reference, reference, "--html", "."]) == 2
    assert "names no file" in capsys.readouterr().err


def test_columns_twice_in_one_of_several_files_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log").mkdir()
    for name, names in (("a", ["x", "y"]), ("b", ["x", "x"])):
        pq.write_table(pa.table([[1.0], [2.0]], names=names), tmp_path / "log" / f"{name}.parquet")
    assert drift_command.main([str(tmp_path / "log"), str(tmp_path / "log")]) == 2
    assert "columns twice: ['x']" in capsys.readouterr().err


def extreme(path: Path) -> str:
    pd.DataFrame({"x": [1e308, -1.7e308] * 300, "y": range(600)}).to_parquet(path)
    return str(path)


@pytest.mark.filterwarnings("error")
def test_json_is_strict_whatever_the_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = extreme(tmp_path / "extreme.parquet")
    assert drift_command.main([path, path, "--json"]) == 0
    columns = strict(capsys.readouterr().out)["columns"]
    assert {column["name"]: column["wasserstein"] for column in columns} == {"x": 0.0, "y": 0.0}


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_the_largest_floats_are_drawn(tmp_path: Path) -> None:
    path, page = extreme(tmp_path / "extreme.parquet"), tmp_path / "drift.html"
    assert drift_command.main([path, path, "--html", str(page)]) == 0
    assert page.stat().st_size > 1000


@pytest.mark.parametrize("values", [[1e16, 1e16 + 2], [0.0, 5e-324], [1e308, 1e308], [2**60, 2**60]])
def test_what_no_picture_can_tell_apart_is_in_the_table_of_the_page(values: list[float], tmp_path: Path) -> None:
    pd.DataFrame({"x": values * 300, "y": range(600)}).to_parquet(tmp_path / "close.parquet")
    path, page = str(tmp_path / "close.parquet"), tmp_path / "drift.html"
    assert drift_command.main([path, path, "--html", str(page)]) == 0
    assert "<td>x</td>" in page.read_text()


def test_max_rows_are_drawn_from_the_whole_of_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drift_command, "_BATCH_ROWS", 500)
    pd.DataFrame({"x": np.arange(20_000.0)}).to_parquet(tmp_path / "log.parquet")
    (tmp_path / "few.toml").write_text("[drift]\nmax_rows = 1000\n")
    path, config = str(tmp_path / "log.parquet"), ["--config", str(tmp_path / "few.toml")]
    assert drift_command.main([path, path, "--json", *config]) == 0, "rows of one part alone would drift"
    assert strict(capsys.readouterr().out)["rows"] == 1000
    drawn = pd.concat(drift_command._drawn(drift_command.frames(path), 1000))["x"]
    assert drawn.is_unique
    counts = np.histogram(drawn, bins=20, range=(0, 20_000))[0]  # 50 expected, standard deviation 7
    assert 25 < counts.min() <= counts.max() < 75
    assert len(drift_command._drawn(iter([table(0)]), 10)[0]) == 0
    assert sum(len(part) for part in drift_command._drawn(iter([table(6), table(0), table(4)]), 10)) == 10


@pytest.mark.parametrize("case", ["semicolons", "no rows", "a profile without columns", "other columns"])
def test_nothing_compared_is_no_quiet(
    case: str, reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    current = tmp_path / "now.csv"
    table(900).to_csv(current, index=False, sep=";" if case == "semicolons" else ",")
    if case == "no rows":
        current.write_text("x,y,c\n")
    if case == "other columns":
        table(900).rename(columns=str.upper).to_csv(current, index=False)
    if case == "a profile without columns":
        ReferenceProfile.build(table(300)[[]], **BUILT).save(tmp_path / "profile")
        reference = str(tmp_path / "profile")
    assert drift_command.main([reference, str(current)]) == 2
    printed = capsys.readouterr()
    assert printed.out.startswith("NOTHING COMPARED  ")
    assert printed.err.count("\n") == 1
    assert "no column of" in printed.err
    assert drift_command.main([reference, str(current), "--json"]) == 2
    assert strict(capsys.readouterr().out)["max_psi"] is None


def test_an_empty_table_is_a_finding(reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "header.csv").write_text("x,y,c\n")
    assert drift_command.main([reference, str(tmp_path / "header.csv")]) == 2
    assert "finding: the window is empty" in capsys.readouterr().out
    with pytest.raises(InputError, match="no rows"):
        drift_command.profile_of(str(tmp_path / "header.csv"), drift_command.DriftSettings())


@pytest.mark.parametrize("content", [None, ".hidden"])
def test_a_folder_without_parquet_is_bad_input(
    content: str | None, reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    if content:
        (tmp_path / "folder" / content).write_text("no table")
    assert drift_command.main([reference, str(tmp_path / "folder")]) == 2
    assert "has no Parquet file" in capsys.readouterr().err


def test_a_profile_that_lost_its_json_is_not_compared_by_its_sample(
    reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ReferenceProfile.build(table(2000), **BUILT).save(tmp_path / "profile")
    (tmp_path / "profile" / "profile.json").unlink()
    assert drift_command.main([str(tmp_path / "profile"), reference]) == 2
    assert "lacks profile.json" in capsys.readouterr().err


def test_decimals_times_and_durations_are_compared_as_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for at, shift in enumerate((0, 40)):
        days = np.random.default_rng(at).integers(0, 100, 900) + shift
        columns = {
            "price": [decimal.Decimal(int(day)) / 100 for day in days],
            "day": [datetime.date(2020, 1, 1) + datetime.timedelta(int(day)) for day in days],
            "time": [datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(int(day)) for day in days],
            "took": [datetime.timedelta(hours=int(day)) for day in days],
        }
        made = {name: [None, *values[1:]] for name, values in columns.items()}
        pq.write_table(pa.table(made), tmp_path / f"{at}.parquet")
        paths.append(str(tmp_path / f"{at}.parquet"))
    assert drift_command.main([*paths, "--json"]) == 3
    found = strict(capsys.readouterr().out)["columns"]
    assert {column["name"] for column in found} == {"price", "day", "time", "took"}
    for column in found:
        assert (column["kind"], column["severity"]) == ("numeric", "critical")
        assert column["missing_current"] == pytest.approx(1 / 900)
        assert column["ks_distance"] == found[0]["ks_distance"]


def test_a_name_that_the_terminal_cannot_show_is_escaped(
    reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    table(900, seed=1).rename(columns={"c": "größe"}).to_parquet(tmp_path / "now.parquet")
    monkeypatch.setattr(sys, "stdout", out)
    assert drift_command.main([reference, str(tmp_path / "now.parquet")]) == 0
    assert b"finding: gr\\xf6\\xdfe: not in the reference" in out.buffer.getvalue()  # type: ignore[attr-defined]


def test_the_command_imports_neither_evidently_nor_torch_nor_prefect() -> None:
    code = "import sys, monitoring.drift; print([n for n in ('evidently', 'torch', 'prefect') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    assert done.stdout == "[]\n"


@pytest.mark.integration
def test_the_command_runs_as_a_module(reference: str) -> None:
    command = [sys.executable, "-m", "monitoring.drift", reference, reference]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.integration
def test_a_reader_that_stops_reading_is_no_error(reference: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wide = pd.DataFrame(rng.normal(size=(30, 3000)), columns=[f"column {at}" for at in range(3000)])  # > a pipe holds
    wide.to_parquet(tmp_path / "wide.parquet")
    process = subprocess.Popen(
        [sys.executable, "-m", "monitoring.drift", "wide.parquet", "wide.parquet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(drift_command.__file__).parents[1])},
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("QUIET  ")
    process.stdout.close()
    assert process.stderr is not None
    said = process.stderr.read()
    assert (process.wait(600), said) == (0, "")
    process.stderr.close()
