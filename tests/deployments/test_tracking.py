import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.runs import Metric
from deployments.settings import RegistrySettings
from deployments.tracking import Tracker, track
from flows import settings, wiring

PARAMS = {"training.epochs": 2, "window_rows": 600}
METRICS: list[Metric] = [
    ("train/loss", 0.5, 1, 1000),
    ("train/loss", 0.25, 2, 2000),
    ("judge/fresh/exact_match_challenger", 0.75, 0, 3000),
]
KEY = "0123456789" * 4


def read(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    """Return parameters, history and project, with host and git, of an offline run; by wandb's own reader."""
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    (file,) = run.glob("run-*.wandb")
    store = DataStore()
    store.open_for_scan(str(file))
    config: dict[str, Any] = {}
    history, project = [], ""
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            project = f"{record.run.project} {record.run.host} {record.run.git}".strip()
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField("history"):
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            history.append(items)
    return config, history, project


@pytest.fixture
def unreachable() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        yield f"http://127.0.0.1:{deaf.getsockname()[1]}"


def test_an_offline_run_has_the_parameters_and_the_numbers_of_the_mlflow_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    done = track(Tracker("offline", "ours"), "r1", "student", params=PARAMS, metrics=METRICS, folder=tmp_path)
    assert done == {"folder": done["folder"], "points": 3, "sent": False, "trouble": ""}
    config, history, project = read(tmp_path / done["folder"])
    assert project == "ours redistill"  # the name of no machine, no git revision
    assert {key: config[key] for key in PARAMS} == {key: str(value) for key, value in PARAMS.items()}
    assert [(items["_step"], items["train/loss"]) for items in history[1:]] == [(1, 0.5), (2, 0.25)]
    assert history[0]["judge/fresh/exact_match_challenger"] == 0.75


def test_an_unreachable_server_is_said_in_time_without_the_key_and_what_was_to_be_sent_is_kept(
    tmp_path: Path, unreachable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_BASE_URL", unreachable)
    done = track(Tracker("online", "ours", KEY, 20), "r1", "student", params=PARAMS, metrics=METRICS, folder=tmp_path)
    assert done["trouble"] == f"wandb sync {done['folder']}: not done within registry.wandb_timeout = 20 s"
    assert done["sent"] is False
    assert read(tmp_path / done["folder"])[1][-1]["train/loss"] == 0.25
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY.encode() not in written


def test_a_writer_that_fails_is_said_and_raises_nothing(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    bad = Tracker("offline", "no/such:project")
    done = track(bad, "r1", "student", params=PARAMS, metrics=METRICS, folder=tmp_path)
    assert "deployments.tracking run.json: " in done["trouble"]
    assert (done["folder"], done["sent"]) == ("", False)


def test_a_missing_package_is_an_error_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.settings.find_spec", lambda name: None)
    assert RegistrySettings().wandb == ""
    with pytest.raises(settings.SettingsError, match=r"registry.wandb = 'offline'.*pip install 'redistill\[wandb\]'"):
        settings.load(None, {"registry": {"wandb": "offline"}})


def test_online_without_a_key_is_refused_before_anything_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    chosen = settings.load(None, {"registry": {"wandb": "online"}})
    with pytest.raises(settings.SettingsError, match="needs a key: set WANDB_API_KEY"):
        wiring.tracker(chosen)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracker = wiring.tracker(chosen)
    assert tracker is not None
    assert tracker.api_key == KEY
    assert KEY not in repr(tracker)
    assert wiring.tracker(settings.load(None)) is None
    assert not any("wandb" in name for name in settings.result_changing(chosen))
