"""python -m monitoring.drift REFERENCE CURRENT: any two tables, an exit code that a script can go by."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from monitoring import drift_command
from monitoring.errors import InputError
from monitoring.profile import ReferenceProfile


def table(rows: int, shift: float = 0.0, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {"x": rng.normal(size=rows) + shift, "y": rng.normal(size=rows), "c": rng.choice([*"abc"], rows)}
    )


@pytest.fixture
def reference(tmp_path: Path) -> str:
    table(2000).to_parquet(tmp_path / "then.parquet")
    return str(tmp_path / "then.parquet")


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
    ReferenceProfile.build(
        table(2000), window="then", model_version="1", max_categories=50, sample_rows=100, seed=0
    ).save(tmp_path / "profile")
    assert drift_command.main([str(tmp_path / "profile"), str(folder)]) == 0


def test_the_page_shows_the_window(reference: str, tmp_path: Path) -> None:
    table(900, shift=1.0).to_parquet(tmp_path / "now.parquet")
    page = tmp_path / "drift.html"
    assert drift_command.main([reference, str(tmp_path / "now.parquet"), "--html", str(page)]) == 3
    assert "drift in x" in page.read_text()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("absent.parquet", None, "is not there"),
        ("broken.parquet", b"PAR1 and no more", "cannot be read"),
        ("empty.csv", b"", "cannot be read"),
        ("image.csv", b"\x89PNG\r\n\x1a\n\xff\xfe", "cannot be read"),
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


def test_an_empty_table_is_a_finding(reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "header.csv").write_text("x,y,c\n")
    assert drift_command.main([reference, str(tmp_path / "header.csv")]) == 0
    assert "finding: the window is empty" in capsys.readouterr().out
    with pytest.raises(InputError, match="no rows"):
        drift_command.profile_of(str(tmp_path / "header.csv"), drift_command.DriftSettings())


def test_the_command_imports_neither_evidently_nor_torch_nor_prefect() -> None:
    code = "import sys, monitoring.drift; print([n for n in ('evidently', 'torch', 'prefect') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


@pytest.mark.integration
def test_the_command_runs_as_a_module(reference: str) -> None:
    command = [sys.executable, "-m", "monitoring.drift", reference, reference]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
