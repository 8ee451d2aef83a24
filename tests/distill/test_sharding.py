"""Every way to train, with two processes, beside the plain one."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "replicas": {"replicas": 2},
    "offload": {"cpu_offload": True},
    "checkpointed": {"checkpoint_activations": True},
    "compiled": {"compile": True},
    "bf16": {"precision": "bf16"},
    "lora": {"lora_rank": 4, "lora_alpha": 16.0},
    "all": {"precision": "bf16", "replicas": 2, "cpu_offload": True, "checkpoint_activations": True, "lora_rank": 4},
}
LINKED = " " not in torch.__file__  # what torch.compile makes cannot be linked where torch's path has a space
if not LINKED:
    del WAYS["compiled"]
SAME = [
    "replicas",
    "offload",
    "checkpointed",
    pytest.param("compiled", marks=pytest.mark.skipif(not LINKED, reason="torch lies under a path with a space")),
]
TRAIN = """
import sys
from pathlib import Path
import torch.distributed as dist
from distill.request import TrainRequest
from distill.trainer import train
dist.init_process_group("gloo")
for request in sys.argv[1:]:
    train(TrainRequest.load(Path(request)))
dist.destroy_process_group()
"""


def run_in(processes: int, requests: list[Path]) -> subprocess.CompletedProcess[str]:
    """Train all of them, one after the other, in the same processes."""
    elastic = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*elastic, "--no-python", sys.executable, "-c", TRAIN, *map(str, requests)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def trained(request_in: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ways")
    requests = [request_in(folder / name, **settings) for name, settings in WAYS.items()]
    done = run_in(2, requests)
    assert done.returncode == 0, done.stdout[-5000:]
    shutil.copytree(folder / "lora", folder / "halted")
    shutil.rmtree(folder / "halted" / "checkpoints" / "step-000006")
    done = run_in(1, [request_in(folder / "halted", **WAYS["lora"])])
    assert done.returncode == 0, done.stdout[-5000:]
    return folder


@pytest.fixture
def values(trained: Path, records_of: Callable[[Path], list[dict[str, Any]]]) -> Callable[[str, str], list[float]]:
    return lambda way, what: [record[what] for record in records_of(trained / way)]


@pytest.mark.parametrize("way", SAME)
def test_how_it_is_computed_changes_nothing(way: str, values: Callable[[str, str], list[float]]) -> None:
    for what in ("loss", "grad_norm"):
        np.testing.assert_allclose(values(way, what)[0], values("plain", what)[0], rtol=1e-6)
    np.testing.assert_allclose(values(way, "loss"), values("plain", "loss"), rtol=1e-3)


def test_bf16_learns_much_the_same_and_keeps_fp32_weights(
    trained: Path, values: Callable[[str, str], list[float]]
) -> None:
    assert values("bf16", "loss") != values("plain", "loss")
    np.testing.assert_allclose(values("bf16", "loss"), values("plain", "loss"), rtol=0.05)
    assert {array.dtype.name for array in load_file(trained / "bf16" / "student" / "model.safetensors").values()} == {
        "float32"
    }


@pytest.mark.parametrize("way", ["lora", "all"])
def test_adapters_learn_and_only_their_layers_change(
    way: str, trained: Path, tiny_checkpoint: Path, values: Callable[[str, str], list[float]]
) -> None:
    assert values(way, "loss")[5] < values(way, "loss")[0]
    before = load_file(tiny_checkpoint / "model.safetensors")
    after = load_file(trained / way / "student" / "model.safetensors")
    assert set(before) == set(after)
    for name, weight in before.items():
        rank = np.linalg.matrix_rank(after[name] - weight, tol=1e-5) if weight.ndim == 2 else 0
        if "proj" in name:
            assert 0 < rank <= 4, name
        else:
            np.testing.assert_array_equal(after[name], weight)


def test_adapters_go_on_in_one_process_from_a_state_of_two_that_holds_them_alone(
    trained: Path, values: Callable[[str, str], list[float]]
) -> None:
    assert len(values("halted", "loss")) == 6
    np.testing.assert_allclose(values("halted", "loss"), values("lora", "loss"), rtol=1e-3)
    before, after = (load_file(trained / way / "student" / "model.safetensors") for way in ("lora", "halted"))
    for name, weight in before.items():
        np.testing.assert_allclose(after[name], weight, atol=1e-3)
    size = {way: sum(file.stat().st_size for file in (trained / way).rglob("*.distcp")) for way in ("lora", "plain")}
    assert size["lora"] < 0.7 * size["plain"]


def test_replicas_that_do_not_divide_the_processes_are_refused(request_in: Callable[..., Path], tmp_path: Path) -> None:
    done = run_in(1, [request_in(tmp_path / "uneven", replicas=2)])
    assert done.returncode
    assert "training.replicas = 2: 1 processes cannot be divided" in done.stdout
