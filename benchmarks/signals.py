"""python -m benchmarks.signals [--json]

The signal store: payload of a token, and what it costs to open a store, verify its checksums, unpack and deliver
batches of 64 answers of 64 tokens in random order, in a store of 16 shards that this process has not read before.
Beside it the share of a training step, which trains STEP tokens a CPU second (student 32M, cached top-64, vocabulary
32k). Prints a Markdown section for RESULTS.md.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from benchmarks.machine import machine
from distill.signals import SignalStore, key
from distill.store import encodings, shards
from distill.teachers.protocol import AnySignal, HiddenSignal, Signal

STEP = 760  # tokens that a training step takes a CPU second
ROWS, TOKENS, BATCH = 512, 64, 64  # rows of a shard, tokens of an answer, rows of a batch
FORMATS = ("topk:64", "hidden:bf16", "hidden:int8", "hidden:svd256")
WIDTH = 1024  # of the states


@dataclass(frozen=True)
class Measured:
    """One format."""

    format: str
    payload: float  # bytes a token
    error: float  # relative, of states
    first: float  # tokens a CPU second, opening and checksums included
    again: float  # tokens a CPU second, all verified before


def made(name: str, tokens: int, seed: int) -> AnySignal:
    """Return random tokens of a format: vocabulary 2**18, or states of 64 strong directions and noise."""
    rng = np.random.default_rng(seed)
    answer = rng.integers(0, 2**18, tokens, dtype=np.int32)
    kind, k = encodings.parse(name)
    if kind != "topk":
        directions = np.random.default_rng(7).normal(size=(64, WIDTH)).astype(np.float32)
        states = rng.normal(size=(tokens, 64)).astype(np.float32) @ directions
        states += rng.normal(size=states.shape).astype(np.float32)
        return HiddenSignal(answer, states, np.full(tokens, -0.5, np.float16), name)
    logits = -np.sort(-rng.normal(0, 3, (tokens, 2 * k)).astype(np.float32), axis=1)
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    ids = rng.integers(0, 2**18, (tokens, k), dtype=np.int32)
    tail = np.exp(logprobs[:, k:]).sum(1)
    return Signal(ids[:, 0].copy(), ids, logprobs[:, :k].astype(np.float16), tail)


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


def section(found: list[Measured]) -> str:
    """Return the measurements as a Markdown section."""
    lines = [
        f"## Teacher signals, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"`python -m benchmarks.signals`, {machine('numpy')}",
        "",
        f"Batches of {BATCH} answers of {TOKENS} tokens in random order; a step trains {STEP} tokens a CPU second:",
        "",
        "| format | payload [B/token] | relative error | first read [tokens/CPU s] | later | share of a step |",
        "|---|---|---|---|---|---|",
    ]
    for each in found:
        error = f"{each.error:.4f}" if each.error else "-"
        lines.append(
            f"| {each.format} | {each.payload:.1f} | {error} | {each.first:,.0f} | {each.again:,.0f} "
            f"| {STEP / each.first:.2%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.signals",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--shards", type=int, default=16, metavar="N", help="of 512 answers each")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of Markdown")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = [measure(name, given.shards, Path(folder) / str(at)) for at, name in enumerate(FORMATS)]
    print(json.dumps([vars(each) for each in found]) if given.json else section(found))


if __name__ == "__main__":
    main()
