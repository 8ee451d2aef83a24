"""python -m benchmarks.teacher [--rows N] [--rounds N] ...

A teacher on an SGLang server of this machine, as a Markdown section for RESULTS.md: our client beside the naive way
(nested JSON lists, one request at a time), in turns on the same server and rows; what the client costs beside the
server; how soon stored rows are recognised; and the client's memory as rows grow.

The model has random weights; nothing is fetched.
"""

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import machine

if TYPE_CHECKING:
    from deployments.sglang.server import Served
    from distill.teachers.sglang import SGLangTeacher

TOP_K, NEW, LONGEST, SEED = 64, 16, 64, 0
Prompts = list[NDArray[np.int32]]
_Way = Callable[[Prompts], int]  # asks, and returns the tokens that came


def main(given: list[str] | None = None) -> None:
    """Measure and print."""
    words = sys.argv[1:] if given is None else given
    arguments = _parser().parse_args(words)
    if arguments.peak:
        print(peak(Path(arguments.peak[0]), arguments.peak[1], int(arguments.peak[2])))
        return
    from deployments.sglang.server import Options, serving

    print(f"## Teacher signals from a server, {datetime.now(UTC):%Y-%m-%d}\n")
    print(f"    {shlex.join(['python', '-m', 'benchmarks.teacher', *words])}\n")
    print(f"{machine('torch', 'httpx')}, SGLang 0.5.23 on the CPU.")
    print(f"Load averages at the start: {', '.join(f'{minutes:.1f}' for minutes in os.getloadavg())}.\n")
    with tempfile.TemporaryDirectory() as folder:
        model = made(Path(folder) / "teacher", arguments.width)
        with serving(Options(str(model))) as hooked, serving(Options(str(model), hidden_states="lists")) as plain:
            lines = compared(model, hooked, plain, arguments.rows, arguments.rounds)
            for line in chain(lines, grown(model, hooked.url, arguments.rows)):
                print(line, flush=True)
        for line in recognised(Path(folder) / "signals", arguments.stored):
            print(line, flush=True)


def made(folder: Path, width: int) -> Path:
    """Write a Llama with random weights and a tokenizer of its vocabulary."""
    import torch

    from benchmarks.material import model_of, tokenizer_of

    torch.manual_seed(SEED)
    model_of(4096, width, 2 * width, 2).save_pretrained(folder)
    tokenizer_of(4096).save_pretrained(folder)
    return folder


def drawn(rows: int, seed: int) -> Prompts:
    """Return prompts of random tokens, 8 to 64 each."""
    rng = np.random.default_rng(seed)
    return [rng.integers(4, 4096, rng.integers(8, LONGEST + 1), dtype=np.int32) for _ in range(rows)]


@cache
def client(model: Path, url: str, format: str) -> "SGLangTeacher":
    """Return our client; a job reads tokenizer and configuration once, and so does this."""
    from distill.teachers.sglang import SGLangTeacher

    return SGLangTeacher(model, [url], top_k=TOP_K, max_new_tokens=NEW, signals_format=format)


def asked(model: Path, url: str, format: str, prompts: Prompts) -> int:
    """Ask by our client; returns the tokens that came."""
    return sum(len(signal.answer) for _, signal in client(model, url, format).ask(prompts))


def naive(url: str, hidden: bool, prompts: Prompts) -> int:
    """Ask one prompt after the other and read nested lists; returns the tokens that came."""
    import httpx

    tokens = 0
    with httpx.Client(base_url=url, timeout=300) as client:
        for prompt in prompts:
            wanted = {"return_hidden_states": True} if hidden else {"return_logprob": True, "top_logprobs_num": TOP_K}
            parameters = {"temperature": 0.0, "max_new_tokens": NEW, "stop_token_ids": [1]}
            body = {"input_ids": prompt.tolist(), "sampling_params": parameters, **wanted}
            reply = client.post("/generate", json=body).raise_for_status().json()
            meta = reply["meta_info"]
            if hidden:  # those of the prompt come as one list, those of each new token as one more
                first, *later = meta["hidden_states"]
                states = np.array([*first[-1:], *(each for each in later)], np.float32)
                tokens += len(states)
            else:
                rows = meta["output_top_logprobs"]
                logprobs = np.array([[entry[0] for entry in row] for row in rows], np.float32)
                ids = np.array([[entry[1] for entry in row] for row in rows], np.int32)
                tokens += len(ids) if ids.shape == logprobs.shape else 0
    return tokens


def compared(model: Path, hooked: "Served", plain: "Served", rows: int, rounds: int) -> Iterator[str]:
    """Yield a table of rows a second, and of what client and server compute for a row."""
    url = hooked.url
    # For each: our way, the naive one, and the server that it asks.
    ways: dict[str, tuple[_Way, _Way, Served]] = {
        f"top-{TOP_K}": (lambda p: asked(model, url, f"topk:{TOP_K}", p), lambda p: naive(url, False, p), hooked),
        "hidden states, bfloat16": (
            lambda p: asked(model, url, "hidden:bf16", p),
            lambda p: naive(plain.url, True, p),
            plain,
        ),
    }
    yield (
        f"{rows} prompts of 8 to {LONGEST} tokens a round, {NEW} new tokens each; {rounds} rounds after one that "
        "is not counted; medians of rows a second of wall clock and of their ratio. CPU time is that of all rounds, in "
        "milliseconds a row, and depends less on what else the machine does.\n"
    )
    yield "| signals | ours | naive | ours / naive | client + server CPU, ours | naive | our client / server |"
    yield "|---|---|---|---|---|---|---|"
    for name, (ours, other, its) in ways.items():
        pairs = []
        for number in range(rounds + 1):
            fast = _measured(ours, hooked, drawn(rows, number))
            pairs.append((fast, _measured(other, its, drawn(max(4, rows // 8), 1000 + number))))
        fasts, slows = zip(*pairs[1:], strict=True)
        ratio = statistics.median(fast.speed / slow.speed for fast, slow in pairs[1:])
        speeds = [statistics.median(each.speed for each in way) for way in (fasts, slows)]
        own, served = statistics.mean(each.client for each in fasts), statistics.mean(each.server for each in fasts)
        cpu = [
            f"{statistics.mean(each.client for each in way):.1f} + {statistics.mean(each.server for each in way):.1f}"
            for way in (fasts, slows)
        ]
        yield f"| {name} | {speeds[0]:.1f} | {speeds[1]:.2f} | {ratio:.1f} | {cpu[0]} | {cpu[1]} | {own / served:.1%} |"
    yield ""


class _Measured(NamedTuple):
    speed: float  # rows a second
    client: float  # CPU time [ms] a row
    server: float


def _measured(ask: _Way, served: "Served", prompts: Prompts) -> _Measured:
    cpu, began = (time.process_time(), _cpu(served.process.pid)), time.monotonic()
    if ask(prompts) < len(prompts):
        raise RuntimeError("fewer tokens than prompts came back")
    took = time.monotonic() - began
    own, server = time.process_time() - cpu[0], _cpu(served.process.pid) - cpu[1]
    return _Measured(len(prompts) / took, 1000 * own / len(prompts), 1000 * server / len(prompts))


def _cpu(process: int) -> float:
    import psutil

    parent = psutil.Process(process)
    times = [each.cpu_times() for each in [parent, *parent.children(recursive=True)]]
    return sum(time.user + time.system for time in times)


def grown(model: Path, url: str, rows: int) -> Iterator[str]:
    """Yield the client's peak memory for some rows and for eight times as many, each in a process of its own."""
    sizes = []
    for count in (rows, 8 * rows):
        command = [sys.executable, "-m", "benchmarks.teacher", "--peak", str(model), url, str(count)]
        sizes.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    yield f"Peak memory of the client: {sizes[0]:.0f} MB for {rows} rows, {sizes[1]:.0f} MB for {8 * rows}.\n"


def peak(model: Path, url: str, rows: int) -> float:
    """Return the peak memory of this process [MB] after asking for some rows, none of which is kept."""
    import resource

    asked(model, url, f"topk:{TOP_K}", drawn(rows, SEED))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def recognised(root: Path, rows: int) -> Iterator[str]:
    """Yield how long it takes to see that stored rows need not be bought."""
    from distill.buying import lacking
    from distill.signals import SignalStore, key
    from distill.teachers.protocol import Signal

    prompts = [np.array([number, *range(4, 24)], np.int32) for number in range(rows)]
    keys = [key(_Known.digest, _Known.format, _Known.sampling, prompt) for prompt in prompts]
    ids, logprobs = np.array([[5]], np.int32), np.zeros((1, 1), np.float16)
    one = Signal(ids[:, 0], ids, logprobs, np.zeros(1, np.float32))
    SignalStore(root).put([(each, 21, one) for each in keys])
    began = time.monotonic()
    _, missing = lacking(SignalStore(root), _Known(), prompts)  # type: ignore[arg-type]
    took = time.monotonic() - began
    if len(missing):
        raise RuntimeError(f"{len(missing)} stored rows were not recognised")
    yield f"{rows:,} stored rows were recognised in {took:.2f} s, the store opened anew.\n"


class _Known:
    digest, format, sampling = "0" * 64, "topk:1", "greedy"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.teacher",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--rows", type=int, default=256, help="prompts a round [count]; default: %(default)s")
    add("--rounds", type=int, default=3, help="rounds that count; default: %(default)s")
    add("--width", type=int, default=1024, help="of the model; default: %(default)s")
    add("--stored", type=int, default=100_000, help="rows to recognise [count]; default: %(default)s")
    add("--peak", nargs=3, metavar=("MODEL", "URL", "ROWS"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
