"""A mixture small enough to learn from in seconds, and requests to do so."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.sglang.server import Options, Served, interpreter, serving
from distill import mixture
from distill.prompts import encode, load_tokenizer
from distill.request import TrainRequest
from distill.settings import TrainingSettings
from distill.signals import SignalStore, key
from distill.teachers.protocol import Signal

STEPS = 6
RequestMaker = Callable[..., Path]


@pytest.fixture(scope="session")
def made_up_mixture(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 32 prompts and made-up signals of a teacher that always answers the same."""
    folder = tmp_path_factory.mktemp("mixture")
    tokenizer = load_tokenizer(tiny_checkpoint)
    more = [" at all" * (n % 7) ** 2 for n in range(32)]  # a few long rows among many short ones
    prompts = encode(tokenizer, [f"the printer {n} does not print{text}" for n, text in enumerate(more)], 96).ids
    answer = np.array([*tokenizer("billing high")["input_ids"], tokenizer.eos_token_id], np.int32)
    ids = np.stack([answer, (answer + 1) % 300], 1).astype(np.int32)
    logprobs = np.log(np.tile([0.9, 0.05], (len(answer), 1))).astype(np.float16)
    keys = [key("made up", "topk:2", "greedy", prompt) for prompt in prompts]
    made = Signal(answer, ids, logprobs, np.full(len(answer), 0.05, np.float32))
    SignalStore(folder / "signals").put([(k, len(p), made) for k, p in zip(keys, prompts, strict=True)])
    mixture.save(folder / "mixture.safetensors", prompts, np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32))
    return folder


@pytest.fixture(scope="session")
def request_in(made_up_mixture: Path, tiny_checkpoint: Path) -> RequestMaker:
    """Return request_in(output, start=..., steps=STEPS, **settings) -> request.json of a training."""

    def make(output: Path, *, start: Path = tiny_checkpoint, steps: int = STEPS, **changes: object) -> Path:
        few: dict[str, object] = {"tokens_per_step": 600, "seed": 5, "warmup_steps": 1, "checkpoint_steps": 2}
        output.mkdir(exist_ok=True)
        TrainRequest(
            start=str(start),
            mixture=str(made_up_mixture / "mixture.safetensors"),
            signals=str(made_up_mixture / "signals"),
            output=str(output),
            epochs=steps / 4,
            learning_rate=1e-2,
            settings=TrainingSettings.model_validate({**few, "device": "cpu", **changes}),
        ).save(output / "request.json")
        return output / "request.json"

    return make


@pytest.fixture(scope="session")
def records_of() -> Callable[[Path], list[dict[str, Any]]]:
    """Return records_of(output) -> the record of every step."""
    return lambda output: [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def teacher_checkpoint(tmp_path_factory: pytest.TempPathFactory, checkpoint_maker: Callable[..., Path]) -> Path:
    """Return a teacher with room for long prompts."""
    return checkpoint_maker(tmp_path_factory.mktemp("sglang") / "teacher", context=1024)


@pytest.fixture(scope="session")
def teacher_server(teacher_checkpoint: Path) -> Iterator[Served]:
    """Return a real SGLang server of it that wants a key; tests leave it as it was."""
    from tests.distill.sglang_servers import KEY

    interpreter()  # an error here is told once, and by its own name
    with serving(Options(str(teacher_checkpoint), hidden_states="float32", api_key=KEY)) as server:
        yield server
