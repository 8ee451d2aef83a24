"""SIGKILL in every stage: the same command goes on from the last finished stage, and training from its checkpoint."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.integration]

STAGES = ["signals", "train", "judge", "register", "bento", "profile", "promote"]


def kill_in(command: list[str], runs: Path, stage: str) -> None:
    """Start the command and SIGKILL its process as soon as the stage is at work (training: has a checkpoint)."""
    at_work = f"*/{stage}.partial" if stage != "train" else "*/train.partial/checkpoints/LATEST"
    over = f"*/{stage}"  # on a busy machine a stage of milliseconds is over before we look
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 900
    while not (list(runs.glob(at_work)) or list(runs.glob(over))):
        assert process.poll() is None, f"the retrain ended before stage {stage}"
        assert time.monotonic() < deadline, f"stage {stage} did not begin"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGSTOP)  # the stage ends no more, and starts nothing, while we look around
    descendants = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    ours = [child for child in descendants if any(name in _line(child) for name in ("distill.worker", "bentoml"))]
    _, alive = psutil.wait_procs(ours, timeout=300)
    assert not alive, f"left running after SIGKILL in {stage}: {[_line(child) for child in alive]}"
    for child in descendants:  # Prefect's temporary server outlives a SIGKILL of its client: it is none of ours
        if "prefect.server" in _line(child):
            child.kill()


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def manifests(runs: Path) -> dict[str, str]:
    return {
        path.parent.name: path.read_text() for path in runs.glob("*/*/manifest.json") if ".partial" not in str(path)
    }


@pytest.mark.timeout(3600)
def test_a_retrain_killed_in_any_stage_goes_on_from_the_last_finished_one(make_workspace: Any) -> None:
    workspace = make_workspace(training={"first_epochs": 3.0})
    runs = workspace.folder / "runs"
    before: dict[str, str] = {}
    for number, stage in enumerate(STAGES):
        kill_in(workspace.command(), runs, stage)
        finished = manifests(runs)
        assert set(STAGES[:number]) <= set(finished), f"a stage before {stage} was lost"
        assert stage not in finished or stage in ("profile", "promote", "register")  # over in milliseconds
        assert {name: text for name, text in finished.items() if name in before} == before, "a stage was done again"
        before = finished
    done = subprocess.run(workspace.command("--json"), capture_output=True, text=True, check=True)
    ended = json.loads(done.stdout.splitlines()[-1])
    assert ended["outcome"] == "promoted"
    assert ended["champion"] == "1", "more than one version was registered"
    assert len(list(runs.iterdir())) == 1
    (run,) = runs.iterdir()
    steps = [json.loads(line)["step"] for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert not list(run.glob("*.partial"))
