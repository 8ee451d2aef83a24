"""A real Prefect server and a real process worker: a drift becomes a new champion with no hand."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from demo import helpdesk, loop
from flows import events
from tests.flows.services import PREFECT, answers, started, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parents[2]
BUSY = (429, 502, 503)  # what Prefect's client asks again after; nothing was done
QUIET, DRIFTED = helpdesk.QUIET_WINDOW, helpdesk.DRIFTED_WINDOW


@dataclass(frozen=True)
class Workspace:
    """A workspace and its settings file."""

    folder: Path
    config: Path


@dataclass(frozen=True)
class Server:
    """A Prefect server with the deployments of this repository and a worker that runs them."""

    url: str
    environment: dict[str, str]
    workspace: Workspace
    worker: int  # its process
    planned: list[str]  # times of the monitor's runs that the schedule had planned; it is paused since

    def monitor(self, window: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "flows.monitor", "--config", str(self.workspace.config), "--window", window]
        command.append("--json")
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True)
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def post(self, path: str, **body: Any) -> Any:
        return self.ask("POST", path, **body)

    def ask(self, method: str, path: str, **body: Any) -> Any:
        """Ask as Prefect's own client does: again while the server says that it is busy (its SQLite was locked)."""

        def answered() -> httpx.Response | None:
            answer = httpx.request(method, f"{self.url}{path}", json=body, timeout=120)
            return None if answer.status_code in BUSY else answer.raise_for_status()

        answer = wait_for(f"an answer to {method} {path} other than 'busy'", answered, 120)
        return answer.json() if answer.content else None

    def runs(self, flow: str) -> list[dict[str, Any]]:
        found = self.post("/flow_runs/filter", flows={"name": {"any_": [flow]}}, sort="EXPECTED_START_TIME_ASC")
        return [run for run in found if run["deployment_id"] is not None]

    def drift_events(self) -> int:
        found = self.post("/events/filter", filter={"event": {"name": [events.DRIFT_DETECTED]}}, limit=50)
        return int(found["total"])

    def artifacts(self) -> list[dict[str, Any]]:
        return [row for row in self.post("/artifacts/filter", limit=200) if row["key"]]

    def logs(self, run: dict[str, Any]) -> str:
        rows = self.post("/logs/filter", logs={"flow_run_id": {"any_": [run["id"]]}}, limit=200, sort="TIMESTAMP_ASC")
        return "\n".join(row["message"] for row in rows)


@pytest.fixture(scope="module")
def workspace(demo_folder: Path) -> Workspace:
    """The demo's workspace, as it was when its first champion had just been made."""
    folder = demo_folder / loop.WORKSPACE
    loop.restore(folder)
    return Workspace(folder, folder / "redistill.toml")


@pytest.fixture(scope="module")
def server(
    workspace: Workspace, free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    logs, port = tmp_path_factory.mktemp("prefect"), free_port()
    url = f"http://127.0.0.1:{port}/api"
    environment = {
        **os.environ,
        "PREFECT_HOME": str(logs / "home"),  # nobody else's runs, blocks and artifacts
        "PREFECT_API_URL": url,
        "REDISTILL_CONFIG": str(workspace.config),
    }
    serve = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with started(serve, {**environment, "PREFECT_API_URL": ""}, logs / "server.log"):
        wait_for("the Prefect server", lambda: answers(f"{url}/health"))
        for command in (
            ["work-pool", "create", "redistill", "--type", "process"],
            ["deploy", "--all", "--prefect-file", "deployments/prefect.yaml"],
        ):
            done = subprocess.run(
                [*PREFECT, *command], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
        planned = paused_schedule(Server(url, environment, workspace, 0, []))
        start = [*PREFECT, "worker", "start", "--pool", "redistill"]
        with started(start, environment, logs / "worker.log") as worker:
            yield Server(url, environment, workspace, worker.pid, planned)


def paused_schedule(server: Server) -> list[str]:
    """Wait until the monitor's runs are planned, and pause it: at a full hour it would join in the tests."""
    (monitor,) = server.post("/deployments/filter", deployments={"name": {"any_": ["monitor"]}})

    def planned() -> list[dict[str, Any]]:
        return runs if len(runs := server.runs("monitor")) > 1 else []

    runs = wait_for("the monitor's schedule", planned)
    server.post(f"/deployments/{monitor['id']}/pause_deployment")
    return [run["expected_start_time"] for run in runs]


@contextlib.contextmanager
def paused_worker(server: Server) -> Iterator[None]:
    """Let no run begin meanwhile: after a new champion's promotion the same window is no drift any more."""
    server.ask("PATCH", "/work_pools/redistill", is_paused=True)
    try:
        yield
    finally:
        server.ask("PATCH", "/work_pools/redistill", is_paused=False)


def champion(workspace: Workspace) -> str:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workspace.folder / 'mlflow.db'}")
    return str(client.get_model_version_by_alias("helpdesk", "champion").version)


def test_the_monitor_is_planned_hourly(server: Server) -> None:
    times = [datetime.fromisoformat(text) for text in server.planned]
    assert len(times) >= 2
    assert all((time.minute, time.second) == (0, 0) for time in times)
    assert {later - time for time, later in pairwise(times)} == {timedelta(hours=1)}


def test_a_quiet_window_leads_to_no_run(server: Server) -> None:
    seen = server.monitor(QUIET)
    assert seen["trigger"] is False
    assert server.drift_events() == 0
    assert server.runs("retrain") == []


def test_a_drift_reported_three_times_leads_to_one_retrain_and_a_new_champion(server: Server) -> None:
    before = champion(server.workspace)
    with paused_worker(server):
        reports = [server.monitor(DRIFTED) for _ in range(3)]
    assert all(report["trigger"] for report in reports)
    assert all(report["retrain"] == "left to the automation" for report in reports)
    wait_for("three drift events", lambda: server.drift_events() == 3)

    def ended() -> list[dict[str, Any]]:
        runs = server.runs("retrain")
        failed = [run for run in runs if run["state"]["type"] in ("FAILED", "CRASHED", "CANCELLED")]
        assert not failed, server.logs(failed[0])
        return runs if len(runs) == 3 and all(run["state"]["type"] == "COMPLETED" for run in runs) else []

    runs = wait_for("the retrain runs", ended, 2400)
    assert {run["parameters"]["window"] for run in runs} == {DRIFTED}
    drifted = [path for path in (server.workspace.folder / "runs").iterdir() if _window(path) == DRIFTED]
    assert len(drifted) == 1, "the same drift was trained more than once"
    assert champion(server.workspace) != before

    def answered_before() -> list[dict[str, Any]]:
        return [run for run in runs if "has been answered before" in server.logs(run)]

    # The lines of a run reach the server a little after its end.
    wait_for("the log lines of both runs that found it answered", lambda: len(answered_before()) == 2, 300)

    artifacts = server.artifacts()
    shown = {row["key"]: row["type"] for row in artifacts}
    assert shown["drift"] == shown["probe"] == shown["verdict"] == "table"
    assert shown["drift-report"] == "markdown"
    assert shown["bento"] == "markdown"
    assert shown["training"] == "progress"
    examples = [json.loads(line) for line in (drifted[0] / "watch" / "examples.jsonl").read_text().splitlines()]
    assert len(examples) == 20
    told = json.dumps(artifacts) + json.dumps(server.post("/events/filter", filter={}, limit=50))
    assert not any(row["prompt"] in told or row["request_id"] in told for row in examples)


def _window(run: Path) -> str:
    return str(json.loads((run / "request.json").read_text())["window"])


def below(server: Server, words: str) -> list[psutil.Process]:
    """Return the worker's descendants whose command line has these words."""
    family = psutil.Process(server.worker).children(recursive=True)
    return [process for process in family if words in _line(process)]


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@pytest.mark.parametrize("how", ["cancel", "kill"])
def test_a_cancelled_or_killed_run_leaves_no_training_process(server: Server, how: str) -> None:
    parameters = {"window": DRIFTED, "force": True, "again": True, "overrides": {"training": {"epochs": 400.0}}}
    (deployment,) = server.post("/deployments/filter", deployments={"name": {"any_": ["retrain"]}})
    path = f"/deployments/{deployment['id']}/create_flow_run"
    run = server.post(path, parameters=parameters, state={"type": "SCHEDULED"})
    training = wait_for("the training", lambda: below(server, "distill.worker"))
    if how == "cancel":
        cancel = [*PREFECT, "flow-run", "cancel", run["id"]]
        subprocess.run(cancel, env=server.environment, check=True, capture_output=True)
    else:
        engines = below(server, "prefect.engine")
        assert engines
        for process in engines:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended with the one before
                process.kill()
    _, alive = psutil.wait_procs(training, timeout=600)
    assert not alive, [_line(process) for process in alive]
