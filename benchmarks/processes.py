"""Two training processes of one thread each beside one such process, both started by distill.launch."""

import os
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import psutil

from benchmarks.material import Size, make
from benchmarks.steppers import RATE, settings_of
from distill.launch import train_in_processes
from distill.request import TrainRequest

UNCOUNTED = 2  # steps: the first fill caches


class Run(NamedTuple):
    """A training's steps but the first: tokens a second, and a CPU second of all its processes."""

    second: float
    cpu_second: float


def trained(folder: Path, processes: int, steps: int, tokens: int) -> Run:
    """Train on cached top-64 for some steps of about `tokens` tokens."""
    seen: list[tuple[float, float, int]] = []  # when a step ended, CPU seconds until then, its tokens

    def on_step(record: dict[str, Any]) -> None:
        seen.append((time.monotonic(), _cpu(), record["answer_tokens"]))

    with tempfile.TemporaryDirectory() as output, patch.dict(os.environ, OMP_NUM_THREADS="1"):
        request = Path(output) / "request.json"
        TrainRequest(
            start=str(folder / "student"),
            mixture=str(folder / "top-64" / "mixture.safetensors"),
            signals=str(folder / "top-64" / "signals"),
            output=output,
            epochs=steps,
            learning_rate=RATE,
            settings=settings_of(tokens_per_step=tokens, checkpoint_steps=10**6),
        ).save(request)
        train_in_processes(request, processes, on_line=lambda _: None, on_step=on_step)
    counted = sum(count for _, _, count in seen[UNCOUNTED:])
    first, last = seen[UNCOUNTED - 1], seen[-1]
    return Run(counted / (last[0] - first[0]), counted / (last[1] - first[1]))


def _cpu() -> float:
    """Return the CPU seconds of all processes below this one."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        times = process.cpu_times()
        total += times.user + times.system
    return total


def section(given: Namespace, size: Size | None = None) -> Iterator[str]:
    """Yield the lines of the section; given: process_rounds, process_steps, step_tokens, row_tokens."""
    rows = given.step_tokens // given.row_tokens
    yield "### Two processes\n"
    yield (
        f"Student 31.7M, cached top-64, {rows} rows of {given.row_tokens} tokens a step, one thread a process, "
        f"{given.process_steps} steps after {UNCOUNTED}; {given.process_rounds} rounds. Tokens a second of wall clock "
        "depend on what else the machine does (load averages: 1, 5, 15 minutes); those a CPU second say what two "
        "processes cost more than one.\n"
    )
    runs: list[tuple[Run, Run]] = []
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), [given.row_tokens] * rows, size or Size())  # an epoch is a step
        for _ in range(given.process_rounds):
            one, two = (
                trained(Path(folder), n, given.process_steps + UNCOUNTED, rows * given.row_tokens) for n in (1, 2)
            )
            runs.append((one, two))
    yield "| | one process | two | two / one |"
    yield "|---|---|---|---|"
    for name in Run._fields:
        ones, twos = ([getattr(pair[at], name) for pair in runs] for at in (0, 1))
        ratio = statistics.median(b / a for a, b in zip(ones, twos, strict=True))
        yield (
            f"| tokens a {name.replace('_', ' ').replace('cpu', 'CPU')} | {statistics.median(ones):.0f} | "
            f"{statistics.median(twos):.0f} | {ratio:.2f} |"
        )
    yield f"\nLoad averages at the end: {', '.join(f'{load:.1f}' for load in os.getloadavg())}.\n"
