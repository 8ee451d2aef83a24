"""The signal store: payload of a token, and what reading, unpacking and delivering it costs a training step.

First the store alone: opened, checksums verified, batches of 64 answers of 64 tokens unpacked in random order, in a
store of some shards that this process has not read before. Then in a training step with cached top-64: all its batches
are made by the trainer's own code from a store just opened, beside the step itself in the same round.
"""

import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.material import Size, made, make
from benchmarks.turns import in_turns
from distill.signals import SignalStore, key
from distill.store import encodings, shards

ROWS, TOKENS, BATCH = 512, 64, 64  # rows of a shard, tokens of an answer, rows of a batch
FORMATS = ("topk:64", "hidden:bf16", "hidden:int8", "hidden:svd256")


@dataclass(frozen=True)
class Measured:
    """One format."""

    format: str
    payload: float  # bytes a token
    error: float  # relative, of states
    first: float  # tokens a CPU second, opening and checksums included
    again: float  # tokens a CPU second, all verified before


def measure(name: str, count: int, root: Path) -> Measured:
    """Write `count` shards of a format and read them twice."""
    store, keys = SignalStore(root), []
    for number in range(count):
        whole = made(name, ROWS * TOKENS, number)
        records = []
        for row in range(ROWS):
            keys.append(key("teacher", name, "greedy", np.array([number, row], np.int32)))
            part = encodings.picked(whole, np.arange(row * TOKENS, (row + 1) * TOKENS))
            records.append((keys[-1], TOKENS, part))
        store.put(records)
    every = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32)
    order = every[np.random.default_rng(0).permutation(len(every))]
    times = []
    for _ in range(2):
        began = time.process_time()
        reader = SignalStore(root)
        for first in range(0, len(order), BATCH):
            reader.get_many(order[first : first + BATCH])
        times.append(time.process_time() - began)
    tokens = len(order) * TOKENS
    size = sum(path.stat().st_size for path in root.glob("shard-*/data"))
    indexes = [shards.read_index(path) for path in root.glob("shard-*")]
    error = float(np.sqrt(np.mean(np.concatenate([index.table["error"] for index in indexes]) ** 2)))
    return Measured(name, size / tokens, error, tokens / times[0], tokens / times[1])


def section(given: Namespace) -> Iterator[str]:
    """Yield the lines of the section; given: rounds, steps, rows, row_tokens, shards."""
    yield "### Teacher signals\n"
    yield f"Batches of {BATCH} answers of {TOKENS} tokens in random order, {given.shards} shards of {ROWS} answers:\n"
    yield "| format | payload [B/token] | relative error | first read [tokens/CPU s] | later |"
    yield "|---|---|---|---|---|"
    with tempfile.TemporaryDirectory() as folder:
        for at, name in enumerate(FORMATS):
            each = measure(name, given.shards, Path(folder) / str(at))
            error = f"{each.error:.4f}" if each.error else "-"
            yield f"| {each.format} | {each.payload:.1f} | {error} | {each.first:,.0f} | {each.again:,.0f} |"
    lengths = [given.row_tokens] * given.rows[0] * given.steps
    share, cost = delivered(lengths, given.rows[0], given.rounds)
    yield (
        f"\nIn the whole step with cached top-64 ({given.rows[0]} rows of {given.row_tokens} tokens): opening the "
        f"store, checksums, reading, unpacking and delivering {sum(lengths):,} tokens once cost {share:.2%} of the CPU "
        f"time of the {given.steps} steps that learn them ({cost * 1e6:.1f} CPU microseconds a token).\n"
    )


def delivered(lengths: list[int], each: int, rounds: int, size: Size | None = None) -> tuple[float, float]:
    """Return delivery's share of a step's CPU time, the median of rounds, and its CPU seconds a token."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), lengths, size or Size())
        commands = {name: ["benchmarks.steppers", name, folder, str(each)] for name in ("ours, top 64", "delivery")}
        with in_turns(commands, rounds) as (found, absent):
            if absent:
                raise RuntimeError(f"not measured: {absent}")
            step, delivery = (found[name].rounds for name in commands)
            shares = [b["cpu"] / (a["cpu"] * b["value"]) for a, b in zip(step, delivery, strict=True)]
            return statistics.median(shares), found["delivery"].median("cpu") / sum(lengths)
