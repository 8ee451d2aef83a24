"""What 8-bit weights cost in agreement with the checkpoint, and what they bring in speed."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np

from deployments.bento import onnx_graph
from deployments.bento.serving.engines import ONNX, Engine, Ints, OnnxEngine, TorchEngine
from deployments.bento.serving.text import Text
from deployments.errors import InputError

BATCH = 16  # prompts answered at once
TIMED = 3  # times that both engines do the first batch, in turns


@dataclass(frozen=True)
class Measured:
    """8-bit weights against the checkpoint's own, on the same prompts, machine and moment."""

    prompts: int
    same_answers: float  # share of prompts
    same_tokens: float  # share of the checkpoint's tokens that are also the likeliest by 8 bits, given those before
    decode_speedup: float  # seconds by the checkpoint / seconds by 8 bits, for the tokens of an answer
    prefill_speedup: float  # the same for prompts
    size: float  # bytes by 8 bits / bytes of the checkpoint's weights
    answers: list[str]  # by 8 bits

    def numbers(self) -> dict[str, float]:
        """Return all but the answers."""
        return {name: value for name, value in asdict(self).items() if name != "answers"}

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Measured":
        """Return what `to_json` wrote."""
        return cls(**json.loads(text))


def write(checkpoint: Path, folder: Path, *, max_prompt_tokens: int, max_new_tokens: int) -> None:
    """Write a checkpoint's decoder with 8-bit weights; InputError for an architecture that cannot be written so."""
    vocabulary = Text(checkpoint, max_prompt_tokens).vocabulary
    onnx_graph.write(checkpoint, folder / ONNX, vocabulary=vocabulary, longest=max_prompt_tokens + max_new_tokens)


def measure(
    checkpoint: Path, quantised: Path, prompts: Sequence[str], *, max_prompt_tokens: int, max_new_tokens: int
) -> Measured:
    """Return what becomes of a checkpoint's answers in a folder with its 8-bit graph and tokenizer."""
    if not prompts:
        raise InputError("8-bit weights are measured on prompts, and there are none: give some held-out ones")
    text = Text(checkpoint, max_prompt_tokens)
    own, small = TorchEngine(checkpoint, text.vocabulary), OnnxEngine(quantised / ONNX)
    rows = text.encode(list(prompts))
    expected: list[list[int]] = []
    found: list[list[int]] = []
    same = total = 0
    for at in range(0, len(rows), BATCH):
        part = rows[at : at + BATCH]
        answers = _answers(own, part, text, max_new_tokens)
        forced, *_ = _forced(small, part, answers, text.pad)
        for answer, likeliest in zip(answers, forced, strict=True):
            same += sum(a == b for a, b in zip(answer, likeliest, strict=True))
            total += len(answer)
        expected += answers
        found += _answers(small, part, text, max_new_tokens)
    prefill, decode = _speedups(own, small, rows[:BATCH], expected[:BATCH], text.pad)
    weights = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    return Measured(
        prompts=len(rows),
        same_answers=sum(a == b for a, b in zip(expected, found, strict=True)) / len(rows),
        same_tokens=same / total,
        decode_speedup=decode,
        prefill_speedup=prefill,
        size=(quantised / ONNX).stat().st_size / weights,
        answers=[text.decode(answer) for answer in found],
    )


def _answers(engine: Engine, rows: list[list[int]], text: Text, limit: int) -> list[list[int]]:
    """Return the greedy answers, stop tokens included."""
    tokens, mask = _padded(rows, text.pad)
    best, _, past = engine.forward(tokens, mask, None)
    steps = [best]
    while len(steps) < limit and not np.isin(np.array(steps), list(text.stops)).any(0).all():
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
        best, _, past = engine.forward(steps[-1][:, None], mask, past)
        steps.append(best)
    answers = [list(map(int, column)) for column in np.array(steps).T]
    ends = [next((at for at, token in enumerate(answer) if token in text.stops), limit) for answer in answers]
    return [answer[: end + 1] for answer, end in zip(answers, ends, strict=True)]


def _forced(
    engine: Engine, rows: list[list[int]], answers: list[list[int]], pad: int
) -> tuple[list[list[int]], float, float]:
    """Return the likeliest token before each of `answers`' own, and the seconds for prompts and for steps."""
    tokens, mask = _padded(rows, pad)
    began = time.perf_counter()
    best, _, past = engine.forward(tokens, mask, None)
    read = time.perf_counter()
    steps = [best]
    for at in range(max(map(len, answers)) - 1):
        newest = np.array([[answer[at] if at < len(answer) else pad] for answer in answers], np.int64)
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
        best, _, past = engine.forward(newest, mask, past)
        steps.append(best)
    ended = time.perf_counter()
    likeliest = [
        list(map(int, column[: len(answer)])) for column, answer in zip(np.array(steps).T, answers, strict=True)
    ]
    return likeliest, read - began, ended - read


def _speedups(
    own: Engine, small: Engine, rows: list[list[int]], answers: list[list[int]], pad: int
) -> tuple[float, float]:
    """Return how many times faster the second engine reads prompts and makes tokens; 1 where there are no steps."""
    pairs = [(_forced(own, rows, answers, pad), _forced(small, rows, answers, pad)) for _ in range(TIMED)]
    prefill = median(a[1] / b[1] for a, b in pairs)
    return prefill, median(a[2] / b[2] for a, b in pairs) if max(map(len, answers)) > 1 else 1.0


def _padded(rows: list[list[int]], pad: int) -> tuple[Ints, Ints]:
    length = max(map(len, rows))
    tokens = np.array([[pad] * (length - len(row)) + row for row in rows], np.int64)
    mask = np.array([[0] * (length - len(row)) + [1] * len(row) for row in rows], np.int64)
    return tokens, mask
