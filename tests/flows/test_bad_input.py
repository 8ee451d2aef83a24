"""Bad input and broken surroundings: each a clear error with the right exit code, and nothing lost."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from deployments.errors import Failure as ShippingFailure
from deployments.errors import InputError as ShippingInputError
from distill.errors import InputError as LearningInputError
from flows.retrain import retrain
from monitoring.errors import InputError as WatchingInputError

pytestmark = [pytest.mark.slow, pytest.mark.integration]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in (folder / "traffic").rglob("*") if path.is_file()}


def runs_of(folder: Path) -> list[str]:
    return [path.name for path in (folder / "runs").glob("*")]


def test_a_window_outside_the_log_names_the_span(with_champion: Any) -> None:
    workspace, _ = with_champion
    before = runs_of(workspace.folder)
    with pytest.raises(WatchingInputError, match=r"window 2031-01-01\.\.2031-02-01 holds no rows.*spans 2025-04-01"):
        retrain(str(workspace.config), "2031-01-01..2031-02-01")
    assert runs_of(workspace.folder) == before


def test_an_empty_window_inside_the_log_is_said(with_champion: Any) -> None:
    workspace, _ = with_champion
    with pytest.raises(WatchingInputError, match="holds no rows"):
        retrain(str(workspace.config), "2025-04-03T03:00:00Z..2025-04-03T03:00:01Z")


def test_the_command_says_it_in_one_line_and_exits_with_2(with_champion: Any) -> None:
    workspace, _ = with_champion
    done = subprocess.run(
        workspace.command("--window", "2031-01-01..2031-02-01"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert said[0].startswith("error: window 2031-01-01..2031-02-01 holds no rows")
    assert "Traceback" not in done.stderr


def test_no_log_at_all_is_said(make_workspace: Any) -> None:
    workspace = make_workspace()
    shutil.rmtree(workspace.folder / "traffic")
    with pytest.raises(WatchingInputError, match="traffic"):
        retrain(str(workspace.config))


def test_a_corrupt_parquet_file_of_the_log_is_named(make_workspace: Any) -> None:
    workspace = make_workspace()
    part = sorted((workspace.folder / "traffic").rglob("*.parquet"))[0]
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(WatchingInputError, match=part.name):
        retrain(str(workspace.config))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"training": {"loss_kernel": "triton", "device": "cpu"}}, "needs a CUDA device|triton is not installed"),
        (
            {"training": {"mode": "on_policy"}, "on_policy": {"sampler": "sglang"}},
            r"on_policy\.sampler sglang without on_policy\.urls: '/nowhere/python' is no Python interpreter",
        ),
    ],
)
def test_what_is_missing_for_the_training_is_said_before_the_teacher_is_asked(
    given: dict[str, Any], told: str, make_workspace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDISTILL_SGLANG_PYTHON", "/nowhere/python")
    workspace = make_workspace(**given)
    with pytest.raises(LearningInputError, match=told):
        retrain(str(workspace.config))
    assert not runs_of(workspace.folder)


@pytest.mark.parametrize(
    ("setting", "error", "told"),
    [
        ("golden", WatchingInputError, r"judging\.golden .* 1 rows cannot be used \(row 2: no reference\)"),
        ("lm_eval", LearningInputError, r"judging\.lm_eval: task .*task\.yaml' cannot be read"),
    ],
)
def test_what_cannot_be_judged_by_is_said_before_the_teacher_is_asked(
    setting: str, error: type[Exception], told: str, make_workspace: Any, tmp_path: Path
) -> None:
    if setting == "lm_eval":
        pytest.importorskip("lm_eval")
    (tmp_path / "golden.jsonl").write_text('{"prompt": "a", "reference": "b"}\n{"prompt": "c", "reference": null}\n')
    (tmp_path / "task.yaml").write_text("task: [")
    given = {"golden": str(tmp_path / "golden.jsonl"), "lm_eval": str(tmp_path / "task.yaml")}
    workspace = make_workspace(judging={setting: given[setting]})
    with pytest.raises(error, match=told):
        retrain(str(workspace.config))
    assert not runs_of(workspace.folder)
    assert not (workspace.folder / "signals").exists()


def test_a_teacher_with_another_tokenizer_is_refused_before_anything_is_asked(
    make_workspace: Any, other_checkpoint: Path
) -> None:
    workspace = make_workspace(teacher={"model": str(other_checkpoint)})
    with pytest.raises(LearningInputError, match="different tokenizers"):
        retrain(str(workspace.config))
    assert not runs_of(workspace.folder)
    assert not (workspace.folder / "signals").exists()


def test_a_checkpoint_without_a_shard_is_refused(make_workspace: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    AutoModelForCausalLM.from_pretrained(broken).save_pretrained(broken, max_shard_size="40KB")
    (broken / "model.safetensors").unlink()
    shards = sorted(broken.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[1].unlink()
    workspace = make_workspace(student={"base": str(broken)})
    with pytest.raises(LearningInputError, match=rf"student\.base.*lacks 1 of {len(shards)} shards.*{shards[1].name}"):
        retrain(str(workspace.config))
    assert not runs_of(workspace.folder)


def test_a_champion_that_is_not_what_was_registered_is_refused(make_workspace: Any) -> None:
    workspace = make_workspace()
    retrain(str(workspace.config))
    (weights,) = (workspace.folder / "mlartifacts").rglob("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\1\2\3")
    with pytest.raises(LearningInputError, match="not what was registered"):
        retrain(str(workspace.config), "2025-04-11..2025-04-18")


def test_a_registry_that_does_not_answer_is_a_failure_within_its_time_limit(
    make_workspace: Any, free_port: Callable[[], int]
) -> None:
    port = free_port()
    workspace = make_workspace(registry={"uri": f"http://127.0.0.1:{port}", "timeout": 3.0})
    with pytest.raises(ShippingFailure, match=f"127.0.0.1:{port}"):
        retrain(str(workspace.config))


def test_a_taken_port_of_the_smoke_test_is_said_before_anything_is_started(make_workspace: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        workspace = make_workspace(packaging={"port": port})
        with pytest.raises(ShippingInputError, match=rf"packaging\.port = {port}"):
            retrain(str(workspace.config))
    assert not runs_of(workspace.folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a small file system takes root and mount")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up_during_a_stage_is_said_and_with_room_the_retrain_goes_on(
    make_workspace: Any, small_disk: Path
) -> None:
    workspace = make_workspace(training={"first_epochs": 2.0})
    log = snapshot(workspace.folder)
    (workspace.folder / "runs").symlink_to(small_disk)
    filler = small_disk / "filler"
    filler.write_bytes(b"\0" * (small_disk_free(small_disk) - 400_000))
    with pytest.raises(OSError, match=r"stage '\w+'.*is full.*give the same command again"):
        retrain(str(workspace.config))
    finished = {path.parent.name for path in small_disk.glob("*/*/manifest.json") if ".partial" not in str(path)}
    assert "train" not in finished
    assert snapshot(workspace.folder) == log
    filler.unlink()
    assert retrain(str(workspace.config))["outcome"] == "promoted"


def small_disk_free(folder: Path) -> int:
    return shutil.disk_usage(folder).free
