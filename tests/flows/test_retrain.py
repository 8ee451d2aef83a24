"""The loop end to end on a small workspace: what comes out, where it lies, and that a request is answered once."""

import json
import logging
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from prefect import flow
from prefect.blocks.core import Block
from prefect.blocks.notifications import CustomWebhookNotificationBlock

from flows.retrain import retrain

pytestmark = [pytest.mark.slow, pytest.mark.integration]

REFERENCE, LATER = "2025-04-01..2025-04-11", "2025-04-11..2025-04-18"
STAGES = ["watch", "signals", "train", "judge", "register", "bento", "profile", "promote"]


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_without_a_champion_the_first_is_made_from_the_reference_window(with_champion: Any) -> None:
    workspace, ended = with_champion
    assert ended["outcome"] == "promoted"
    assert ended["window"] == REFERENCE
    assert ended["champion"] == ended["challenger"] == "1"
    assert list(ended["seconds"]) == STAGES
    assert ended["signals"]["bought_tokens"] > 0
    run = workspace.folder / "runs" / ended["retrain_id"]
    for stage in STAGES:
        manifest = json.loads((run / stage / "manifest.json").read_text())
        assert {"inputs", "settings", "code_revision", "start", "end", "seconds", "peak_memory_mb"} <= set(manifest)
    assert not list(run.glob("*.partial"))
    asked = {path.name.removesuffix(".asked.npy") for path in run.glob("*.asked.npy")}
    assert asked == {"signals", "judge", "profile"}, "each stage that asks the teacher keeps what it lacked"


def test_no_held_out_row_is_learned(with_champion: Any) -> None:
    from monitoring import traffic

    workspace, ended = with_champion
    rows = pd.read_parquet(workspace.folder / "runs" / ended["retrain_id"] / "signals" / "rows.parquet")
    assert len(rows) > 100
    assert (traffic.row_hash(rows["request_id"]) < 60).all()


def test_mlflow_holds_settings_losses_load_window_and_revision(with_champion: Any) -> None:
    from mlflow import MlflowClient

    workspace, ended = with_champion
    client = MlflowClient(f"sqlite:///{workspace.folder / 'mlflow.db'}")
    version = client.get_model_version_by_alias("helpdesk", "champion")
    run = client.get_run(version.run_id)
    assert run.data.params["training.first_epochs"] == "1.0"
    assert run.data.params["window_rows"] == str(
        len(pd.read_parquet(workspace.folder / "runs" / ended["retrain_id"] / "window.parquet"))
    )
    steps = client.get_metric_history(version.run_id, "train/loss")
    assert [metric.step for metric in steps] == list(range(1, len(steps) + 1))
    assert len(steps) > 5
    assert client.get_metric_history(version.run_id, "system/cpu_utilization_percentage")
    for stage in ("signals", "judge", "profile"):
        said = json.loads((workspace.folder / "runs" / ended["retrain_id"] / stage / "manifest.json").read_text())
        for origin in ("bought", "reused"):
            asked = said["result"]["cost"][origin]["rows"]
            assert run.data.metrics[f"teacher/{stage}/{origin}_rows"] == asked, "whenever it was asked"
    assert {"sha256", "window_digest", "verdict", "teacher", "code_revision", "retrain_id"} <= set(version.tags)
    assert version.tags["retrain_id"] == ended["retrain_id"]


def test_prompts_reach_neither_bento_nor_mlflow_nor_result(with_champion: Any) -> None:
    workspace, ended = with_champion
    prompts = [prompt.encode() for prompt in workspace.prompts() if len(prompt) > 40][:200]
    assert len(prompts) == 200
    places = [*files_below(workspace.folder / "bentoml"), *files_below(workspace.folder / "mlartifacts")]
    places += [workspace.folder / "mlflow.db", workspace.folder / "runs" / ended["retrain_id"] / "result.json"]
    assert len(places) > 10
    for path in places:
        text = path.read_bytes()
        assert not any(prompt in text for prompt in prompts), path


def test_the_same_request_is_answered_without_work(with_champion: Any) -> None:
    workspace, ended = with_champion
    first = workspace.folder / "runs" / ended["retrain_id"]
    times = {path: path.stat().st_mtime_ns for path in files_below(first)}
    held = retrain(str(workspace.config), LATER)
    assert held["outcome"] == "held"
    assert held["drift"]["rows"] > 100
    assert retrain(str(workspace.config), LATER) == held
    assert {path: path.stat().st_mtime_ns for path in files_below(first)} == times


def test_a_run_killed_after_its_promotion_is_completed_and_trains_no_second_time(make_workspace: Any) -> None:
    workspace = make_workspace()
    ended = retrain(str(workspace.config))
    (workspace.folder / "runs" / ended["retrain_id"] / "result.json").unlink()  # as a kill leaves it
    assert retrain(str(workspace.config)) == ended
    assert [path.name for path in (workspace.folder / "runs").iterdir()] == [ended["retrain_id"]]

    forced = retrain(str(workspace.config), LATER, force=True)
    assert forced["outcome"] in ("promoted", "held", "rejected")
    assert forced["challenger"] == "2"
    assert forced["verdict"]["exact_match"].keys() == {f"fresh {LATER}", f"old {REFERENCE}"}
    probed, true = forced["probe"], forced["probe"]["came_true"]
    assert probed["reason"].endswith("(forced)")
    assert true["tokens"] == forced["signals"]["bought_tokens"] - probed["bought_tokens"] > 0
    assert true["tokens"] < 1.1 * probed["expected"]["tokens"], "the profile is paid for only when it is promoted"
    assert probed["expected"]["seconds"] > 0
    checks = {(check["kind"], check["metric"]): check for check in forced["verdict"]["checks"]}
    assert true["gain"] == checks["fresh", "exact_match"]["difference"]
    assert (workspace.folder / "runs" / forced["retrain_id"] / "probe.asked.npy").is_file()
    again = retrain(str(workspace.config), LATER, force=True, again=True)
    unpaid = 0 if forced["outcome"] == "promoted" else probed["expected"]["tokens"] - true["tokens"]
    assert again["probe"]["expected"]["tokens"] == pytest.approx(unpaid, rel=0.05), "at most the profile's rows"
    assert again["retrain_id"] == f"{forced['retrain_id']}-2"
    assert again["signals"]["bought_tokens"] == 0
    assert again["signals"]["reused_tokens"] > 0


def test_a_golden_set_is_judged_in_every_retrain_and_another_one_is_another_request(
    make_workspace: Any, helpdesk_rows: Any, tmp_path: Path
) -> None:
    golden = tmp_path / "golden.csv"
    rows = helpdesk_rows("2025-03-01..2025-03-04").dropna(subset="reference").drop_duplicates("prompt")
    rows[["prompt", "reference"]].to_csv(golden, index=False)
    workspace = make_workspace(judging={"golden": str(golden)})
    first = retrain(str(workspace.config))
    assert first["outcome"] == "promoted", "there is nobody to compare the first champion with"
    assert first["verdict"]["metrics"]["golden"]["exact_match"]["rows"] == len(rows)
    forced = retrain(str(workspace.config), LATER, force=True)
    checks = {check["metric"]: check for check in forced["verdict"]["checks"] if check["slice"] == "golden"}
    assert checks["exact_match"]["rows"] == len(rows)
    assert checks["exact_match"]["outcome"] in ("pass", "fail", "inconclusive")
    rows[["prompt", "reference"]].head(-1).to_csv(golden, index=False)
    other = retrain(str(workspace.config), LATER, force=True)
    assert other["retrain_id"] != forced["retrain_id"]
    assert other["verdict"]["metrics"]["golden"]["exact_match"]["rows"] == len(rows) - 1
    inputs = [
        json.loads((workspace.folder / "runs" / ended["retrain_id"] / "judge" / "manifest.json").read_text())["inputs"]
        for ended in (forced, other)
    ]
    assert inputs[0]["golden"] != inputs[1]["golden"]


def test_a_retrain_that_the_policy_held_goes_on_once_the_monitor_asks_for_it(make_workspace: Any) -> None:
    from monitoring.history import Observation
    from monitoring.ledger import Ledger

    workspace = make_workspace()
    retrain(str(workspace.config))
    held = retrain(str(workspace.config), LATER)
    assert (held["outcome"], list(held["seconds"])) == ("held", ["watch"])
    assert retrain(str(workspace.config), LATER) == held
    ledger = Ledger(workspace.folder / "decisions.db")
    (decision,) = ledger.decisions()
    seen = {name: decision[name] for name in Observation.model_fields} | {
        "trigger": True,
        "reason": "its time has come",
    }
    question = {name: decision[name] for name in ("student", "window_digest", "champion_digest", "settings_digest")}
    ledger.answer(
        lambda _: Observation.model_validate(seen), **question, time=datetime.now(UTC), source="monitor", forced=False
    )
    ended = retrain(str(workspace.config), LATER)
    assert ended["retrain_id"] == held["retrain_id"]
    assert list(ended["seconds"])[:4] == ["watch", "probe", "signals", "train"]
    assert ended["challenger"] == "2"


def test_the_command_ends_with_a_table_and_one_json_object(with_champion: Any) -> None:
    workspace, _ = with_champion
    done = subprocess.run(
        workspace.command("--window", LATER, "--json"), capture_output=True, text=True, check=True, cwd=workspace.folder
    )
    *table, last = done.stdout.splitlines()
    ended = json.loads(last)
    assert ended["outcome"] == "held"
    expected = {"outcome", "retrain_id", "champion", "challenger", "drift", "verdict", "signals", "bento", "seconds"}
    assert expected <= set(ended)
    assert "HELD" in done.stdout
    assert any("report.html" in line for line in table)
    assert "<!DOCTYPE html>" in Path(ended["report"]).read_text()


@contextmanager
def webhook(told: list[str]) -> Iterator[str]:
    """A server on loopback that keeps what it is told; yields its address."""

    class Keeper(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Keeper) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def monitor_with_block(monitor: Any, config: str, window: str, url: str) -> dict[str, Any]:
    """Run the monitor inside a flow that has saved the notification block: one temporary API for both."""

    @flow
    def both() -> dict[str, Any]:
        block = CustomWebhookNotificationBlock(
            name="redistill-test",
            url=url,
            json_data={"text": "{{subject}} {{body}}"},
            allow_private_urls=True,
            timeout=300,
        )
        block.save("redistill-test", overwrite=True)
        try:
            return dict(monitor(config, window))
        finally:
            Block.delete("custom-webhook/redistill-test")

    return both()


def test_a_block_that_is_not_there_is_logged_and_holds_nothing_up() -> None:
    from flows.monitor import _notify

    said: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    seen = {
        "drift": {"severity": "warning", "drifted_parts": ["x"]},
        "trigger": True,
        "window": "2025-04-20..2025-04-24",
        "champion": "1",
        "report": "report.html",
    }

    @flow
    def tells() -> bool:
        return _notify("custom-webhook/nobody", "helpdesk", seen)

    logger, keeper = logging.getLogger("prefect.flow_runs"), Keeper()
    logger.addHandler(keeper)
    try:
        assert tells() is False
    finally:
        logger.removeHandler(keeper)
    assert any(text.startswith("policy.notify = 'custom-webhook/nobody' was not told: ") for text in said)


def test_the_monitor_says_quiet_and_starts_nothing(with_champion: Any) -> None:
    workspace, _ = with_champion
    runs = sorted(path.name for path in (workspace.folder / "runs").iterdir())
    done = subprocess.run(
        workspace.command("--window", LATER, "--json", flow="monitor"), capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["trigger"] is False
    assert f"QUIET  window {LATER}: no column drifted; the largest is " in done.stdout
    assert seen["retrain"] is None
    assert Path(seen["report"]).is_file()
    assert sorted(path.name for path in (workspace.folder / "runs").iterdir()) == runs


def test_a_monitor_whose_history_cannot_be_written_says_so_and_looks_on(
    with_champion: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And of a window with more rows than drift.max_rows it compares so many."""
    from flows import settings, wiring
    from tasks import watch

    workspace, _ = with_champion
    chosen = settings.load(workspace.config, {"drift": {"max_rows": 100}})
    places = wiring.Places(chosen)
    (tmp_path / "evidently").write_text("no folder")

    @flow
    def look() -> dict[str, Any]:
        return watch.monitor(
            wiring.registry(chosen, places),
            places.runs,
            tmp_path,
            places.log,
            tmp_path / "decisions.db",
            asked=LATER,
            reference=chosen.reference,
            settings=wiring.watching(chosen),
        )

    seen = look()
    assert "the report is not in the metrics or the history: " in caplog.text
    assert seen["trigger"] is False
    assert seen["drift"]["rows"] == 100
    assert len(pd.read_parquet(Path(seen["report"]).with_name("rows.parquet"))) == 100


def test_a_rollback_without_a_previous_champion_says_so(with_champion: Any) -> None:
    workspace, _ = with_champion
    done = subprocess.run(workspace.command(flow="rollback"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "nothing to roll back to" in said


def test_without_an_api_the_monitor_calls_the_retrain_itself_and_once(make_workspace: Any, helpdesk_rows: Any) -> None:
    from flows.monitor import monitor
    from monitoring import traffic
    from monitoring.ledger import Ledger

    workspace = make_workspace(policy={"notify": "custom-webhook/redistill-test"})
    retrain(str(workspace.config))
    window = "2025-04-20..2025-04-24"
    traffic.append(str(workspace.folder / "traffic"), helpdesk_rows(window).assign(meta_channel="fax"))
    told: list[str] = []
    with webhook(told) as url:
        seen = monitor_with_block(monitor, str(workspace.config), window, url)
    assert seen["trigger"] is True
    assert seen["notified"] is True
    (message,) = told
    assert "meta_channel" in message
    assert not any(prompt in message for prompt in workspace.prompts())
    assert 'redistill_drift_severity{student="helpdesk"} ' in (workspace.folder / "monitor/helpdesk.prom").read_text()
    (run,) = (workspace.folder / "monitor" / "evidently").glob("*/snapshots/*.json")
    assert json.loads(run.read_text())["name"] == window
    assert not any(prompt in run.read_text() for prompt in workspace.prompts())
    assert seen["drift"]["drifted_columns"] == ["meta_channel"]
    assert seen["retrain"]["window"] == window
    ended = seen["retrain"]
    assert ended["challenger"] == "2"
    examples = (workspace.folder / "runs" / ended["retrain_id"] / "watch" / "examples.jsonl").read_text().splitlines()
    assert len(examples) == 20
    assert all(json.loads(line)["drifted_in"] == ["meta_channel"] for line in examples)
    ledger = Ledger(workspace.folder / "decisions.db")
    (decision,) = ledger.decisions()  # made by the monitor, and found there by the retrain
    assert (decision["window"], decision["source"], decision["trigger"]) == (window, "monitor", True)
    (probed,) = ledger.probes()
    assert (probed.retrain_id, probed.true) == (ended["retrain_id"], ended["probe"]["came_true"])
    assert probed.pays, "these models never agree: a probe that can see nothing holds nothing"
    results = [json.loads(path.read_text()) for path in workspace.folder.glob("runs/*/result.json")]
    bought = [result["signals"]["bought_tokens"] for result in results]
    assert ledger.history("helpdesk", datetime.now(UTC)).bought_tokens == sum(bought) > 0
    with webhook(told) as url:
        again = monitor_with_block(monitor, str(workspace.config), window, url)
    assert again["repeated"]
    assert "notified" not in again
    assert len(told) == 1, "a decision that is only repeated is told to nobody"
    assert again["retrain"]["retrain_id"] == seen["retrain"]["retrain_id"]
    assert len(list((workspace.folder / "runs").iterdir())) == 2
