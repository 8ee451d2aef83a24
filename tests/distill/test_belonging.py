"""All processes of a training learn from the same files, and all of them say so when they do not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distill.training.belonging import difference

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 180.0  # seconds, on a machine that is busy with something else
SAME = {"request": "r", "start": "s", "mixture": "m"}
TRAIN = """
import sys
from pathlib import Path
import torch.distributed as dist
from distill.errors import InputError
from distill.request import TrainRequest
from distill.trainer import train

rank, store = int(sys.argv[1]), dist.FileStore(sys.argv[2], 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
for request in sys.argv[3:]:
    try:
        train(TrainRequest.load(Path(request)))
    except InputError as error:
        print("refused:", error)
"""


def test_what_differs_and_where_is_said() -> None:
    assert difference([SAME]) == difference([SAME] * 4) == ""
    said = difference([SAME, {**SAME, "mixture": "n"}, SAME, {**SAME, "mixture": "n", "start": "t"}])
    assert "the same start (other on rank 3) nor the same mixture (other on rank 1, 3) as rank 0: copy rank 0's" in said
    assert difference([SAME, {"error": "start '/x': there is no such folder"}]).startswith("rank 1: start '/x'")


@pytest.mark.slow
def test_two_processes_that_would_learn_from_different_files_both_refuse(
    request_in: Any, made_up_mixture: Path, checkpoint_maker: Any, tmp_path: Path
) -> None:
    """One machine has another mixture, then another start, each at the path that it was given."""
    output = tmp_path / "run"
    first = request_in(output, steps=1)
    fields = json.loads(first.read_text())
    other_mixture = tmp_path / "other.safetensors"
    shutil.copyfile(made_up_mixture / "mixture.safetensors", other_mixture)
    content = bytearray(other_mixture.read_bytes())
    content[-1] ^= 1
    other_mixture.write_bytes(content)
    other_start = checkpoint_maker(tmp_path / "start", seed=9)
    others = {"mixture": {"mixture": str(other_mixture)}, "start": {"start": str(other_start)}}
    requests: list[list[str]] = [[], []]
    for name, change in others.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**fields, **change}))
        requests[0].append(str(first))
        requests[1].append(str(path))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(rank), str(tmp_path / "store"), *requests[rank]],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=LIMIT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    refused = [[line for line in text.splitlines() if line.startswith("refused:")] for text in said]
    assert refused[0] == refused[1], said
    assert [
        f"the same {name} (other on rank 1) as rank 0" in line for name, line in zip(others, refused[0], strict=True)
    ] == [True, True]
    assert not (output / "checkpoints" / "REQUEST").exists()
