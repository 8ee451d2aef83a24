import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from deployments import runs
from deployments.errors import Failure, InputError
from deployments.registry import Registry, Version, connect

Cutter = Callable[[Registry, int], Registry]
Served = Callable[[Registry], tuple[str | None, str | None, str | None]]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "model.safetensors").write_bytes(bytes(range(256)))
    return folder


def recorded(registry: Registry, retrain_id: str) -> str:
    return registry.record(retrain_id, params={}, metrics=[], tags={}, artifacts=[])


def registered(registry: Registry, retrain_id: str, checkpoint: Path) -> Version:
    run_id = recorded(registry, retrain_id)
    return registry.register(retrain_id, run_id, checkpoint, {"verdict": "pass", "window": "2016"})


def numbers(registry: Registry, run_id: str, key: str) -> list[float]:
    return sorted(point.value for point in registry.client.get_metric_history(run_id, key))


def test_a_run_holds_everything_beyond_the_batch_limits(registry: Registry, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text("<p>drift</p>")
    metrics = [("loss", 1.0 / (step + 1), step, 1000 + step) for step in range(2500)]
    metrics.append(("system/peak_memory_mib", 812.0, 0, 1000))
    params = {f"distill.p{number}": number for number in range(250)}
    run_id = registry.record("r1", params=params, metrics=iter(metrics), tags={"window": "2016"}, artifacts=[report])
    run = registry.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {key: str(value) for key, value in params.items()}
    assert run.data.tags["window"] == "2016"
    assert run.data.metrics["system/peak_memory_mib"] == 812.0
    assert len(numbers(registry, run_id, "loss")) == 2500
    for _ in range(2):
        registry.add(run_id, [("cost", 3.0, 0, 2000)])
    assert numbers(registry, run_id, "cost") == [3.0]
    assert [file.path for file in registry.client.list_artifacts(run_id)] == ["report.html"]


def test_a_recording_cut_anywhere_is_completed_and_nothing_is_doubled(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: Cutter, was_cut: Callable[..., bool]
) -> None:
    monkeypatch.setattr(runs, "METRICS_A_CALL", 3)
    report = tmp_path / "report.html"
    report.write_text("<p>drift</p>")
    work: dict[str, Any] = {
        "params": {"a": 1},
        "metrics": [("loss", 0.5, step, 7) for step in range(4)],
        "tags": {"window": "2016"},
        "artifacts": [report],
    }
    for fail_at in count(1):
        registry = connect(uri, "", f"student-{fail_at}", 10)
        if not was_cut(cut(registry, fail_at).record, "r1", **work):
            break
        run_id = registry.record("r1", **work)
        assert registry.record("r1", **work) == run_id
        found = {run.info.run_id for run in registry.client.search_runs([registry.experiment])}
        assert found == {run_id, registry.promotions}
        assert registry.client.get_run(run_id).info.status == "FINISHED"
        assert len(numbers(registry, run_id, "loss")) == 4
        assert len(registry.client.list_artifacts(run_id)) == 1
    assert fail_at == 8  # create_run, 4 batches, 1 file, set_terminated; the eighth is not reached


def test_a_parameter_that_would_be_cut_off_is_refused(registry: Registry) -> None:
    with pytest.raises(InputError, match=r"drift.columns.*6001 characters"):
        registry.record("r1", params={"drift.columns": "x" * 6001}, metrics=[], tags={}, artifacts=[])


# -- versions -------------------------------------------------------------------------------------------------------


def test_a_new_registry_has_no_champion(registry: Registry, served: Served) -> None:
    assert served(registry) == (None, None, None)


def test_a_registered_student_is_the_challenger_with_its_tags_and_its_files(
    registry: Registry, checkpoint: Path, tmp_path: Path
) -> None:
    before = datetime.now(UTC)
    version = registered(registry, "r1", checkpoint)
    assert registry.challenger() == version
    assert (version.name, version.version) == ("student", "1")
    assert version.run_id == recorded(registry, "r1")
    assert version.tags == {"verdict": "pass", "window": "2016", "retrain_id": "r1"}
    assert abs((version.created - before).total_seconds()) < 60
    folder = registry.fetch("1", tmp_path / "cache")
    assert (folder / "sub" / "model.safetensors").read_bytes() == bytes(range(256))
    assert not (tmp_path / "cache").exists()  # the store's own folder, nothing copied
    assert folder == registry.fetch("1", tmp_path / "cache")


def test_registering_leaves_the_process_wide_address_as_it_was(
    registry: Registry, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = mlflow.get_tracking_uri()
    registered(registry, "r1", checkpoint)
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert mlflow.get_tracking_uri() == before != registry.uri


def test_a_registration_cut_anywhere_is_completed_and_nothing_is_doubled(
    uri: str, checkpoint: Path, cut: Cutter, was_cut: Callable[..., bool]
) -> None:
    for fail_at in count(1):
        registry = connect(uri, "", f"student-{fail_at}", 10)
        run_id = recorded(registry, "r1")
        if not was_cut(cut(registry, fail_at).register, "r1", run_id, checkpoint, {"verdict": "pass"}):
            break
        version = registry.register("r1", run_id, checkpoint, {"verdict": "pass"})
        assert registry.register("r1", run_id, checkpoint, {"verdict": "pass"}) == version
        assert (version.version, version.tags["verdict"]) == ("1", "pass")
        assert registry.challenger() == version
        assert len(registry.client.search_logged_models([registry.experiment])) == 1
        assert (registry.fetch("1", Path("unused")) / "config.json").read_text() == "{}"
    assert fail_at == 6


def test_registering_again_takes_no_alias_from_the_champion_or_a_newer_challenger(
    registry: Registry, checkpoint: Path, served: Served
) -> None:
    registry.promote(registered(registry, "r1", checkpoint).version, None)
    assert registered(registry, "r1", checkpoint).version == "1"
    assert served(registry) == ("1", None, None)
    registered(registry, "r2", checkpoint)
    registered(registry, "r3", checkpoint)
    registered(registry, "r2", checkpoint)
    assert served(registry) == ("1", None, "3")


def test_an_empty_checkpoint_is_refused(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty is no folder with files"):
        registry.register("r1", recorded(registry, "r1"), tmp_path / "empty", {})


def test_a_lost_checkpoint_is_named_when_it_is_fetched(registry: Registry, checkpoint: Path) -> None:
    registered(registry, "r1", checkpoint)
    folder = registry.fetch("1", Path("unused"))
    shutil.rmtree(folder)
    with pytest.raises(Failure, match=f"version 1 of 'student' is gone from .*{folder.parent.name}"):
        registry.fetch("1", Path("unused"))
