import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from deployments.registry import Registry, connect
from deployments.registry_command import _list, main
from deployments.verification import file_hash, hashes
from monitoring import traffic
from monitoring.window import Window

WINDOW = "2016-01-01..2016-02-01"


def rows(prompt: str = "hello") -> pd.DataFrame:
    times = pd.date_range("2016-01-02", periods=6, freq="D", tz="UTC")
    return pd.DataFrame(
        {"request_id": [f"q{n}" for n in range(6)], "timestamp": times, "prompt": prompt, "model_version": "1"}
    )


@pytest.fixture
def workspace(schema: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Version 1 replaced by 2, which was trained from it; 3 failed its checks; and there is a student `other`."""
    monkeypatch.setenv("REDISTILL_STUDENT__NAME", "student")
    shutil.copy(schema, tmp_path / "mlflow.db")
    registry = connect(f"sqlite:///{tmp_path}/mlflow.db", "", "student", 10)
    traffic.append(str(tmp_path / "traffic"), rows())
    window = traffic.read_window(str(tmp_path / "traffic"), Window.parse(WINDOW))
    for number in (1, 2, 3):
        register(registry, tmp_path, number, window)
    registry.promote("1", None)
    registry.promote("2", "1")
    registry.tag("1", {"approval": "auto"})
    registry.tag("2", {"approval": "person", "approved_by": "Ada", "approval_note": "looked at it"})
    return tmp_path


def register(registry: Registry, folder: Path, number: int, window: pd.DataFrame) -> None:
    checkpoint, run = folder / f"checkpoint{number}", folder / "runs" / f"r{number}"
    checkpoint.mkdir()
    run.mkdir(parents=True)
    save_file({"layer": np.arange(64, dtype=np.float32) + number}, checkpoint / "model.safetensors")
    (checkpoint / "tokenizer.json").write_text('{"model": {}}')
    window.to_parquet(run / "window.parquet", index=False)
    tags = {
        "verdict": "pass" if number < 3 else "fail",
        "window": WINDOW,
        "window_digest": traffic.window_digest(window),
        "window_sha256": file_hash(run / "window.parquet"),
        "trained": json.dumps([WINDOW] * number),
        "base_champion": str(number - 1) if number > 1 else "",
        "teacher": "t" * 64,
        **hashes(checkpoint),
    }
    mlflow_run = registry.record(f"r{number}", params={}, metrics=[], tags={}, artifacts=[])
    registry.register(f"r{number}", mlflow_run, checkpoint, tags)


def asked(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    capsys.readouterr()
    found = main(list(arguments))
    out, err = capsys.readouterr()
    assert found == code, err
    return out if code < 2 else err


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    return json.loads(asked(capsys, *arguments, "--json", code=code))


def stored(workspace: Path, version: str, name: str) -> Path:
    registry = connect(f"sqlite:///{workspace}/mlflow.db", "", "student", 10)
    return registry.fetch(version, Path("unused")) / name


def test_the_list_tells_what_serves_since_when_and_by_which_verdict(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = as_json(capsys, "list", "--workspace", str(workspace))
    assert listed["student"] == "student"
    first, second, third = listed["versions"]
    assert (first["aliases"], second["aliases"], third["aliases"]) == (["previous"], ["champion"], ["challenger"])
    ((since, until, why),) = second["served"]
    assert (until, why) == ("", "promotion")
    assert first["served"][0][1] == since
    assert third["served"] == []
    assert [each["verdict"] for each in listed["versions"]] == ["pass", "pass", "fail"]
    table = asked(capsys, "list", "--uri", f"sqlite:///{workspace}/mlflow.db")
    assert f"{since[:16]} .. now (promotion)" in table
    assert WINDOW in table


def test_a_version_is_shown_with_its_data_its_approval_its_lineage_and_its_hashes(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = as_json(capsys, "show", "champion", "--workspace", str(workspace))
    assert shown["version"] == "2"
    assert shown["lineage"] == ["2", "1"]
    assert shown["approval"] == {"approval": "person", "approval_note": "looked at it", "approved_by": "Ada"}
    assert shown["trained_on"] == [WINDOW, WINDOW]
    assert set(shown["files"]) == {"model.safetensors", "tokenizer.json"}
    assert len(shown["window_digest"]) == len(shown["sha256"]) == len(shown["tokenizer_sha256"]) == 64
    table = asked(capsys, "show", "--workspace", str(workspace))
    for told in ("looked at it", shown["sha256"], f"tokenizer.json  {shown['files']['tokenizer.json']}"):
        assert told in table


def test_a_version_that_nobody_approved_is_not_shown_as_approved(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("--workspace", str(workspace))
    assert as_json(capsys, "show", "1", *place)["approval"] == {"approval": "auto"}
    assert as_json(capsys, "show", "3", *place)["approval"] == {}
    table = asked(capsys, "show", "3", *place)
    assert "not approved" in table
    assert "auto" not in table
    connect(f"sqlite:///{workspace}/mlflow.db", "", "student", 10).tag("3", {"approval": "refused"})
    assert as_json(capsys, "show", "3", *place)["approval"] == {"approval": "refused"}


@pytest.mark.parametrize("damaged", ["[not JSON", '{"a": 1}', "[1]", "null"])
def test_a_damaged_tag_is_shown_as_it_is(damaged: str, workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = connect(f"sqlite:///{workspace}/mlflow.db", "", "student", 10)
    registry.tag("2", dict.fromkeys(("trained", "profiled", "files"), damaged))
    shown = as_json(capsys, "show", "2", "--workspace", str(workspace))
    assert [shown[name] for name in ("trained_on", "profiled_on", "files")] == [damaged] * 3
    assert damaged in asked(capsys, "show", "2", "--workspace", str(workspace))


def test_credentials_of_the_registry_and_of_a_log_are_masked(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = connect(f"sqlite:///{workspace}/mlflow.db", "", "student", 10)
    _list(replace(registry, uri="https://ada:secret@registry"), argparse.Namespace(json=True))
    assert json.loads(capsys.readouterr().out)["uri"] == "https://***@registry"
    log = ("--log", "nowhere://ada:secret@logs/traffic")
    assert main(["verify", "--workspace", str(workspace), *log]) == 1
    assert "secret" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("timeout", ["-1", "0", "nan", "inf", "soon"])
def test_a_timeout_that_is_no_time_is_refused(timeout: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["list", "--workspace", "nowhere", f"--timeout={timeout}"])
    assert stopped.value.code == 2
    assert f"argument --timeout: {'invalid' if timeout == 'soon' else timeout}" in capsys.readouterr().err


def test_a_rollback_and_its_reason_are_shown(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    connect(f"sqlite:///{workspace}/mlflow.db", "", "student", 10).rollback("worse [sic] answers")
    shown = as_json(capsys, "show", "2", "--workspace", str(workspace))
    assert shown["rolled_back"]["rollback_reason"] == "worse [sic] answers"
    assert "(rollback: worse [sic] answers)" in asked(capsys, "list", "--workspace", str(workspace))


def test_what_was_not_changed_is_verified_and_what_cannot_be_is_said(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = asked(capsys, "verify", "--workspace", str(workspace), "--log", str(workspace / "traffic"))
    assert "2 files read" in out
    assert out.count(": unchanged, ") == 2
    assert "all of this is what was registered" in out
    (workspace / "runs" / "r1" / "window.parquet").unlink()
    told = as_json(capsys, "verify", "1", "--workspace", str(workspace))
    assert [text.partition(":")[0] for text in told["data"].values()] == ["not verified"]
    assert told["data_verified"] is False
    last = asked(capsys, "verify", "1", "--workspace", str(workspace)).splitlines()[-1]
    assert last.startswith("files as registered; data NOT verified (window ")
    assert f"in the run's folder: there is no {workspace}" in last
    log = ("--log", str(workspace / "traffic"))
    last = asked(capsys, "verify", "1", "--workspace", str(workspace), *log).splitlines()[-1]
    assert last.startswith("files as registered; data in part NOT verified (window ")
    assert as_json(capsys, "verify", "2", "--workspace", str(workspace), *log)["data_verified"] is True


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("name", "said"),
    [("model.safetensors", "weights model.safetensors has SHA-256"), ("tokenizer.json", "tokenizer is a foreign one")],
)
def test_a_changed_file_of_the_champion_is_named_and_the_exit_code_is_1(
    name: str, said: str, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(stored(workspace, "2", name))
    (told,) = as_json(capsys, "verify", "champion", "--workspace", str(workspace), code=1)["differences"]
    assert said in told
    assert f"differs: {told}" in asked(capsys, "verify", "--workspace", str(workspace), code=1)
    asked(capsys, "verify", "previous", "--workspace", str(workspace))


def test_changed_data_is_named_and_the_exit_code_is_1(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(workspace / "runs" / "r2" / "window.parquet")
    more = rows("hello again").assign(request_id=[f"late{n}" for n in range(6)])
    traffic.append(str(workspace / "traffic"), more)
    told = as_json(capsys, "verify", "--workspace", str(workspace), "--log", str(workspace / "traffic"), code=1)
    assert len(told["differences"]) == 2
    assert "r2/window.parquet: changed: SHA-256 " in told["differences"][0]
    assert f"window {WINDOW} of {workspace / 'traffic'}: changed: digest " in told["differences"][1]


def test_what_is_not_there_is_bad_use_and_nothing_is_made(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "REDISTILL_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    place = str(workspace)
    assert "has no version '9': it has 1, 2, 3" in asked(capsys, "show", "9", "--workspace", place, code=2)
    other = asked(capsys, "list", "--workspace", place, "--student", "none", code=2)
    assert "has no student 'none', it has other, student: choose by --student" in other
    several = asked(capsys, "list", "--workspace", place, "--student", "", code=2)
    assert "has not one student only, it has other, student" in several
    assert "which registry? give --workspace" in asked(capsys, "list", code=2)
    (tmp_path / "empty").mkdir()
    assert "there is no registry at" in asked(capsys, "list", "--workspace", str(tmp_path / "empty"), code=2)
    assert list((tmp_path / "empty").iterdir()) == []
    log = ("--log", str(tmp_path / "empty"))
    assert main(["verify", "--workspace", place, *log]) == 1
    assert "cannot be read: " in capsys.readouterr().err


def test_help_has_examples_and_imports_nothing_heavy() -> None:
    heavy = (
        "import sys; sys.argv = ['x', '--help']\ntry:\n import deployments.registry_command as c; c.main()\nfinally:\n"
    )
    heavy += " print([name for name in ('mlflow', 'pandas', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert "python -m deployments.registry verify 2 --workspace" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
