"""The embedded default: `python -m flows.retrain` without a config."""

import json
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo import helpdesk, loop
from flows import settings
from monitoring import traffic

pytestmark = [pytest.mark.slow, pytest.mark.integration]


@pytest.fixture(scope="module")
def printed(demo_folder: Path) -> str:
    return (demo_folder / "demo.txt").read_text()


@pytest.fixture(scope="module")
def ended(printed: str) -> dict[str, Any]:
    return dict(json.loads(printed.splitlines()[-1]))


def test_a_quiet_window_is_held_and_then_a_drifted_one_promoted(printed: str) -> None:
    assert re.findall(r"^(HELD|PROMOTED|REJECTED) ", printed, re.MULTILINE) == ["HELD", "PROMOTED"]


def test_the_json_is_of_the_last_retrain(ended: dict[str, Any]) -> None:
    assert ended["outcome"] == "promoted"
    assert ended["champion"] == ended["challenger"] == "2"
    assert ended["verdict"]["outcome"] == "pass"
    assert ended["drift"]["drifted_columns"]
    assert ended["signals"]["bought_tokens"] > 0
    assert ended["signals"]["reused_tokens"] > 0  # the replay's
    assert ended["bento"].startswith("helpdesk:2-")


def test_the_new_student_is_better_on_the_new_traffic_and_not_worse_on_the_old(ended: dict[str, Any]) -> None:
    checks = {(check["kind"], check["metric"]): check for check in ended["verdict"]["checks"]}
    fresh, old = checks["fresh", "exact_match"], checks["old", "exact_match"]
    assert fresh["lower"] > 0.05
    assert old["lower"] > -0.02


def test_what_the_probe_expected_came_true(printed: str, ended: dict[str, Any]) -> None:
    probed, true = ended["probe"], ended["probe"]["came_true"]
    assert probed["pays"]
    assert true["tokens"] == pytest.approx(probed["expected"]["tokens"], rel=0.1)
    assert probed["expected_gain"]["low"] - 0.05 < true["gain"] < probed["expected_gain"]["high"] + 0.05
    assert "came true" in " ".join(printed.split())


def test_it_says_where_everything_lies(printed: str, ended: dict[str, Any], demo_folder: Path) -> None:
    assert str(demo_folder / loop.WORKSPACE) in printed
    assert Path(ended["report"]).is_file()
    for place in ended["places"].values():
        assert Path(place.removeprefix("sqlite:///")).exists(), place


def test_no_process_of_it_used_more_than_its_memory_budget(demo_folder: Path) -> None:
    manifests = [json.loads(path.read_text()) for path in (demo_folder / loop.WORKSPACE).glob("runs/*/*/manifest.json")]
    assert len(manifests) > 8
    assert max(manifest["peak_memory_mb"] for manifest in manifests) < 2560


def command(demo_folder: Path, flow: str, *options: str) -> subprocess.CompletedProcess[str]:
    config = demo_folder / loop.WORKSPACE / "redistill.toml"
    argv = [sys.executable, "-m", f"flows.{flow}", "--config", str(config), *options]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_a_drift_that_costs_no_agreement_is_held_by_the_probe(demo_folder: Path) -> None:
    """Every second ticket comes by fax, and nothing else is new."""
    rows = helpdesk.stream(date(2024, 6, 1), date(2024, 6, 12))
    fax = np.arange(len(rows)) % 2 == 0
    rows["meta_channel"] = rows["meta_channel"].mask(fax, "fax")
    traffic.append(str(demo_folder / loop.WORKSPACE / "traffic"), rows)
    # With 64 rows one probe in ten would not be sure enough.
    done = command(demo_folder, "retrain", "--window", "2024-06-01..2024-06-12", "--probe.rows", "200", "--json")
    assert done.returncode == 0, done.stderr
    held = json.loads(done.stdout.splitlines()[-1])
    assert held["drift"]["drifted_columns"][0] == "meta_channel"
    assert (held["outcome"], held["challenger"]) == ("held", None)
    assert list(held["seconds"]) == ["watch", "probe"]
    assert "surely below probe.margin" in held["reason"]
    assert held["reason"] in " ".join(done.stdout.split())
    assert held["probe"]["expected"]["tokens"] > 0
    examples = (Path(held["report"]).parent / "examples.jsonl").read_text().splitlines()
    assert len(examples) == 20
    assert all("meta_channel" in json.loads(line)["drifted_in"] for line in examples)


def test_a_rollback_puts_the_previous_champion_and_its_profile_back_once(demo_folder: Path) -> None:
    workspace = demo_folder / loop.WORKSPACE
    done = command(demo_folder, "rollback", "--reason", "a test", "--json")
    assert done.returncode == 0, done.stderr
    undone = json.loads(done.stdout.splitlines()[-1])
    assert (undone["from"], undone["to"]) == ("2", "1")
    profile = json.loads((Path(undone["profile"]) / "profile.json").read_text())
    assert profile["window"] == helpdesk.REFERENCE_WINDOW
    seen = command(demo_folder, "monitor", "--window", helpdesk.QUIET_WINDOW, "--json")
    report = json.loads(seen.stdout.splitlines()[-1])
    assert report["champion"] == "1"
    assert report["drift"]["reference_window"] == helpdesk.REFERENCE_WINDOW
    answered = command(demo_folder, "retrain", "--window", helpdesk.DRIFTED_WINDOW, "--json")
    assert (
        "the champion is version 1, --again makes a new retrain"
        in json.loads(answered.stdout.splitlines()[-1])["notice"]
    )
    again = command(demo_folder, "rollback")
    assert again.returncode == 2
    assert "error: nothing to roll back to" in again.stderr
    assert (workspace / "mlflow.db").is_file()


def test_teacher_and_champion_are_kept_and_put_back_for_the_next_run(demo_folder: Path) -> None:
    folder = demo_folder / loop.WORKSPACE
    assert (folder / "teacher" / "model.safetensors").is_file()
    assert (folder / loop.KEPT / "mlflow.db").is_file()
    config = str(folder / "redistill.toml")
    asked: list[str] = []

    def retrain(config: str, window: str) -> dict[str, Any]:
        asked.append(window)
        raise RuntimeError("a champion would be made")

    loop.first_champion(folder, config, retrain, settings.result_changing(settings.load(config)))
    assert asked == []
    assert (folder / "mlflow.db").is_file()
