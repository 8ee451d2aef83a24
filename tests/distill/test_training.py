"""Training in real processes through torch elastic."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from distill import checkpoint
from distill.errors import Failure, InputError
from distill.launch import train_in_processes
from distill.request import TrainRequest
from distill.settings import TrainingSettings

pytestmark = pytest.mark.slow
STEPS, EPOCHS = 6, 1.5  # four steps make a pass
SEED = 5  # its first step has rows of 22 to 77 tokens, which can be packed


def request_for(output: Path, made_up_mixture: Path, start: Path, *, epochs: float = EPOCHS, **changes: object) -> Path:
    settings = TrainingSettings.model_validate(
        {"tokens_per_step": 600, "seed": SEED, "warmup_steps": 1, "checkpoint_steps": 2, "device": "cpu", **changes}
    )
    output.mkdir(exist_ok=True)
    TrainRequest(
        start=str(start),
        mixture=str(made_up_mixture / "mixture.safetensors"),
        signals=str(made_up_mixture / "signals"),
        output=str(output),
        epochs=epochs,
        learning_rate=1e-2,
        settings=settings,
    ).save(output / "request.json")
    return output / "request.json"


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


def norms(output: Path) -> list[float]:
    return [json.loads(line)["grad_norm"] for line in (output / "metrics.jsonl").read_text().splitlines()]


def positions(output: Path) -> int:
    """Tokens and padding of the first process in the first step."""
    return int(json.loads((output / "metrics.jsonl").read_text().splitlines()[0])["positions"])


def trained(request: Path, processes: int = 1) -> Path:
    seen: list[int] = []
    train_in_processes(
        request, processes, on_line=lambda line: None, on_step=lambda record: seen.append(record["step"])
    )
    assert seen[-1] == STEPS
    return request.parent


@pytest.fixture(scope="module")
def plain(made_up_mixture: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(request_for(tmp_path_factory.mktemp("plain"), made_up_mixture, tiny_checkpoint))


def test_the_loss_falls_and_the_student_is_a_whole_checkpoint(plain: Path) -> None:
    curve = losses(plain)
    assert len(curve) == STEPS
    assert curve[-1] < 0.8 * curve[0]
    checkpoint.check(plain / "student")
    assert (plain / "student" / "chat_template.jinja").is_file()


def test_the_same_seed_gives_the_same_curve(
    plain: Path, made_up_mixture: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    again = trained(request_for(tmp_path / "again", made_up_mixture, tiny_checkpoint))
    assert losses(again) == losses(plain)
    assert checkpoint.digest(again / "student") == checkpoint.digest(plain / "student")


def trained_together(requests: list[Path], processes: int) -> None:
    """Train them one after the other in the same processes, which are slow to start."""
    code = (
        "import sys; from pathlib import Path;"
        "from distill.request import TrainRequest; from distill.trainer import train;"
        "[train(TrainRequest.load(Path(path))) for path in sys.argv[1:]]"
    )
    elastic = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*elastic, "--no-python", sys.executable, "-c", code, *map(str, requests)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_packed_padded_two_processes_and_accumulation_learn_as_one(
    plain: Path, made_up_mixture: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    ways: dict[str, dict[str, object]] = {
        "packed": {},
        "padded": {"packing": False},
        "accumulated": {"tokens_per_pass": 60},
    }
    for processes in (1, 2):
        requests = {
            name: request_for(tmp_path / f"{name}{processes}", made_up_mixture, tiny_checkpoint, **changes)
            for name, changes in ways.items()
        }
        trained_together(list(requests.values()), processes)
        seen = {name: positions(request.parent) for name, request in requests.items()}
        assert seen["padded"] > seen["packed"] > seen["accumulated"]  # they are different ways indeed
        for name, request in requests.items():
            np.testing.assert_allclose(losses(request.parent)[0], losses(plain)[0], rtol=1e-6, err_msg=name)
            np.testing.assert_allclose(norms(request.parent)[0], norms(plain)[0], rtol=1e-6, err_msg=name)
            np.testing.assert_allclose(losses(request.parent), losses(plain), rtol=1e-3, err_msg=name)


def test_a_process_without_rows_takes_part(made_up_mixture: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    ways = {"one": 1, "three": 3}
    for name, processes in ways.items():
        changes: dict[str, object] = {"tokens_per_step": 100, "packing": name == "one", "checkpoint_steps": 99}
        request = request_for(tmp_path / name, made_up_mixture, tiny_checkpoint, epochs=0.4, **changes)
        trained_together([request], processes)
    lines = (tmp_path / "three" / "metrics.jsonl").read_text().splitlines()
    assert min(json.loads(line)["rows"] for line in lines) < 3
    np.testing.assert_allclose(losses(tmp_path / "three")[0], losses(tmp_path / "one")[0], rtol=1e-6)
    np.testing.assert_allclose(norms(tmp_path / "three")[0], norms(tmp_path / "one")[0], rtol=1e-6)
    np.testing.assert_allclose(losses(tmp_path / "three"), losses(tmp_path / "one"), rtol=1e-3)


def children_of(process: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since it was listed
            if "distill.worker" in " ".join(child.cmdline()):
                found.append(child)
    return found


def lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def wait_until(condition: Callable[[], bool], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.05)


def start_training(request: Path) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from pathlib import Path; from distill.launch import train_in_processes;"
        "train_in_processes(Path(sys.argv[1]), 1, on_line=print, on_step=lambda record: None)"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(request)], stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_training_leaves_no_process_and_goes_on_as_if_nothing_had_happened(
    how: signal.Signals, plain: Path, made_up_mixture: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    request = request_for(tmp_path / "killed", made_up_mixture, tiny_checkpoint)
    parent = start_training(request)
    latest = request.parent / "checkpoints" / "LATEST"
    wait_until(latest.is_file)
    workers = children_of(psutil.Process(parent.pid))
    os.kill(parent.pid, how)
    parent.wait()
    wait_until(lambda: not any(lives(worker) for worker in workers))
    lines: list[str] = []
    train_in_processes(request, 1, on_line=lines.append, on_step=lambda record: None)
    assert losses(request.parent) == losses(plain)
    assert checkpoint.digest(request.parent / "student") == checkpoint.digest(plain / "student")


def test_a_training_state_that_was_tampered_with_is_not_read(
    made_up_mixture: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    output = trained(request_for(tmp_path / "tampered", made_up_mixture, tiny_checkpoint))
    step = output / "checkpoints" / f"step-{STEPS:06d}"
    (step / ".metadata").write_bytes(b"something else")
    with pytest.raises(InputError, match="not what was published"):
        train_in_processes(output / "request.json", 1, on_line=lambda line: None, on_step=lambda record: None)


def test_the_reason_of_a_failed_training_is_said(made_up_mixture: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    request = request_for(tmp_path / "failed", made_up_mixture, tiny_checkpoint)
    fields = json.loads(request.read_text())
    request.write_text(json.dumps({**fields, "learning_rate": 1e30}))
    with pytest.raises(Failure, match=r"lower training\.learning_rate"):
        train_in_processes(request, 1, on_line=lambda line: None, on_step=lambda record: None)


def test_only_two_training_states_are_kept(plain: Path) -> None:
    assert sorted(path.name for path in (plain / "checkpoints").glob("step-*")) == ["step-000004", "step-000006"]


def test_a_checkpoint_without_a_shard_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (broken / name).write_bytes((tiny_checkpoint / name).read_bytes())
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    (broken / "model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"lacks 1 of 2 shards \(model-00002"):
        checkpoint.check(broken)
