"""A retrain whose student learns from its own answers: in rounds, killed in one of them, and said in its result."""

import json
import os
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import settings
from flows.words import training
from monitoring.ledger import Ledger

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(1800)]

ON_POLICY: dict[str, dict[str, Any]] = {"training": {"mode": "on_policy"}, "on_policy": {"rounds": 2, "share": 0.5}}


def finished(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def manifest(workspace: Any, stage: str) -> dict[str, Any]:
    (path,) = (workspace.folder / "runs").glob(f"*/{stage}/manifest.json")
    return dict(json.loads(path.read_text()))


@pytest.fixture(scope="module")
def ended(make_workspace: Any) -> tuple[Any, dict[str, Any]]:
    """Return a workspace in which a first champion was made on-policy, and how that ended."""
    workspace = make_workspace(**ON_POLICY)
    return workspace, finished(workspace.command("--json"))


def test_a_champion_is_made_in_rounds_and_what_they_cost_is_said(ended: tuple[Any, dict[str, Any]]) -> None:
    workspace, result = ended
    assert result["outcome"] == "promoted"
    train, signals = manifest(workspace, "train"), manifest(workspace, "signals")
    came = train["result"]
    assert train["settings"]["mode"] == "on_policy"
    assert train["settings"]["on_policy"]["rounds"] == 2
    assert [each["round"] for each in came["rounds"]] == [1, 2]
    assert came["on_policy"]["own_rows"] > 50
    assert came["bought_tokens"] + came["reused_tokens"] == came["on_policy"]["scored_tokens"] > 1000
    others = [manifest(workspace, name)["result"]["bought_tokens"] for name in ("judge", "profile")]
    assert result["signals"]["bought_tokens"] == signals["result"]["bought_tokens"] + came["bought_tokens"] + sum(
        others
    )
    (run,) = (workspace.folder / "runs").iterdir()
    now = datetime.now(UTC)
    assert (
        Ledger(workspace.folder / "decisions.db").bought(now)
        >= came["bought_tokens"] + signals["result"]["bought_tokens"]
    )
    assert f"{came['on_policy']['own_rows']} answers of its own in 2 rounds" in training(result["training"])
    steps = [json.loads(line)["step"] for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, came["steps"] + 1))


def test_killed_within_a_round_the_same_command_buys_the_rest_and_makes_the_same_student(
    ended: tuple[Any, dict[str, Any]], make_workspace: Any
) -> None:
    workspace = make_workspace(**ON_POLICY)
    process = subprocess.Popen(workspace.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 900
    while not list((workspace.folder / "runs").glob("*/train.partial/round-2/request.json")):
        assert process.poll() is None, "the retrain ended before its second round"
        assert time.monotonic() < deadline, "the second round did not begin"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGSTOP)
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for child in family:
        if child.is_running() and "prefect.server" in " ".join(child.cmdline()):
            child.kill()
    again = finished(workspace.command("--json"))
    whole, resumed = (manifest(each, "train")["result"] for each in (ended[0], workspace))
    assert again["outcome"] == "promoted"
    assert resumed["student_sha256"] == whole["student_sha256"]
    assert (resumed["bought_tokens"], resumed["reused_tokens"]) == (whole["bought_tokens"], whole["reused_tokens"])


def test_without_it_a_request_has_the_identity_that_it_had_before(tmp_path: Path) -> None:
    plain = settings.result_changing(settings.load(None, {"workspace": str(tmp_path)}))
    assert not [key for key in plain if key.startswith("on_policy.") or key == "training.mode"]
    same = settings.load(None, {"workspace": str(tmp_path), "on_policy": {"rounds": 9}})
    assert settings.result_changing(same) == plain
    chosen = settings.load(None, {"training": {"mode": "on_policy"}, "on_policy": {"urls": "http://a:1"}})
    added = settings.result_changing(chosen).keys() - plain.keys()
    assert added == {
        "training.mode",
        *(f"on_policy.{name}" for name in ("rounds", "share", "divergence", "temperature", "sampler")),
    }


def test_what_cannot_be_is_said_before_anything_is_asked() -> None:
    several = {"mode": "on_policy", "nodes": 2, "rendezvous": "here:1"}
    with pytest.raises(settings.SettingsError, match=r"set training\.nodes to 1"):
        settings.load(None, {"training": several})
    asked = {"training": {"mode": "on_policy"}, "on_policy": {"sampler": "sglang", "urls": "http://a:1,a:2"}}
    with pytest.raises(settings.SettingsError, match=r"^on_policy\.urls in .*: 'a:2' is no http://"):
        settings.load(None, asked)
    settings.load(None, {**asked, "training": {"mode": "off_policy"}})


@pytest.mark.sglang
@pytest.mark.timeout(3600)
def test_the_whole_loop_with_teacher_and_student_on_servers_that_are_gone_afterwards(make_workspace: Any) -> None:
    workspace = make_workspace(
        teacher={"backend": "sglang", "serve": True},
        training={"mode": "on_policy"},
        on_policy={"rounds": 2, "share": 0.5, "sampler": "sglang"},
    )
    result = finished(workspace.command("--json"))
    assert result["outcome"] == "promoted"
    came = manifest(workspace, "train")["result"]
    assert [each["round"] for each in came["rounds"]] == [1, 2]
    assert came["on_policy"]["own_rows"] > 50
    assert came["on_policy"]["scored_tokens"] == came["bought_tokens"] + came["reused_tokens"] > 1000
    left = [each.info["cmdline"] for each in psutil.process_iter(["cmdline"]) if each.info["cmdline"]]
    assert not [words for words in left if str(workspace.folder) in " ".join(words)]
