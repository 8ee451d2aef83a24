"""How fast a student is served: rows a second and latency at 1, 8 and 32 clients, by five servers of the same student.

    python -m benchmarks.serving [--rounds N] [--width N] [--blocks N] [--new-tokens N]

Each server is a process of its own, and all of them are asked in turns, so that what else the machine does falls on all
alike; a ratio is the median over rounds of what two of them did in the same round. Prints the section of RESULTS.md.
"""

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import numpy as np
import psutil

from benchmarks.machine import machine
from deployments import process
from deployments.bento.build import Bento, build
from deployments.bento.quantised import Measured
from deployments.bento.smoke import serve
from deployments.settings import PackagingSettings

CLIENTS = (1, 8, 32)
VOCABULARY = 8192
PROMPT_WORDS = (8, 40)  # shortest and longest prompt [words, a token each]
PLAIN, MICRO = "FastAPI + transformers", "FastAPI, micro-batching"
UNBATCHED, BENTO, INT8 = "Bento, unbatched", "Bento", "Bento, onnx-int8"


@dataclass
class Contender:
    """A server and what it did; a list has one entry a round."""

    name: str
    url: str
    pid: int
    rows: dict[int, list[float]] = field(default_factory=dict)  # clients -> rows/s
    latencies: dict[int, list[float]] = field(default_factory=dict)  # clients -> of each request [s]

    cpu: dict[int, list[float]] = field(default_factory=dict)  # clients -> CPU seconds a row

    def ratio(self, other: "Contender", clients: int) -> float:
        """Return how many times as many rows a second as the other one, the median over rounds."""
        return statistics.median(a / b for a, b in zip(self.rows[clients], other.rows[clients], strict=True))

    def thrift(self, other: "Contender", clients: int) -> float:
        """Return how many times as many rows a CPU second as the other one, the median over rounds."""
        return statistics.median(b / a for a, b in zip(self.cpu[clients], other.cpu[clients], strict=True))

    def seconds(self) -> float:
        """Return the CPU seconds of the server and its workers so far."""
        top = psutil.Process(self.pid)
        times = [each.cpu_times() for each in (top, *top.children(recursive=True))]
        return sum(each.user + each.system for each in times)


def asked(contender: Contender, clients: int, prompts: list[str]) -> None:
    """Have so many clients ask all prompts, a prompt a request, each its next one when it is answered."""
    left, took = iter(prompts), list[float]()

    async def client(http: httpx.AsyncClient) -> None:
        for prompt in left:
            began = time.perf_counter()
            reply = await http.post("/generate", json={"prompts": [prompt]})
            reply.raise_for_status()
            took.append(time.perf_counter() - began)

    async def all_of_them() -> None:
        async with httpx.AsyncClient(base_url=contender.url, timeout=300, trust_env=False) as http:
            await asyncio.gather(*(client(http) for _ in range(clients)))

    began, before = time.perf_counter(), contender.seconds()
    asyncio.run(all_of_them())
    contender.rows.setdefault(clients, []).append(len(prompts) / (time.perf_counter() - began))
    contender.cpu.setdefault(clients, []).append((contender.seconds() - before) / len(prompts))
    contender.latencies.setdefault(clients, []).extend(took)


def student(folder: Path, width: int, blocks: int, stops: float) -> Path:
    """Make a Llama with random weights, a tokenizer of words, and this share of all tokens ending an answer.

    So answers are of different lengths, as those to real traffic; with none all are as long as they may be.
    """
    import torch

    from benchmarks.material import model_of, tokenizer_of

    torch.manual_seed(0)
    model = model_of(VOCABULARY, width, width * 11 // 4, blocks)
    ends = np.random.default_rng(0).choice(np.arange(3, VOCABULARY), int(stops * VOCABULARY), replace=False)
    model.generation_config.eos_token_id = [1, *sorted(map(int, ends))]
    model.save_pretrained(folder)
    tokenizer_of(VOCABULARY).save_pretrained(folder)
    return folder


def prompts_of(count: int, seed: int) -> list[str]:
    """Return prompts of random words."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(*PROMPT_WORDS, count, endpoint=True)
    return [" ".join(f"w{word}" for word in rng.integers(3, VOCABULARY, length)) for length in lengths]


@contextmanager
def _fastapi(kind: str, checkpoint: Path, new_tokens: int) -> Iterator[tuple[str, int]]:
    port = process.free_port("127.0.0.1", 0, "port")
    command = [sys.executable, "-m", "benchmarks.servers", kind, str(checkpoint), str(port), str(new_tokens)]
    server = process.start(command, environment={"OMP_WAIT_POLICY": "PASSIVE"}, output=sys.stderr.fileno())
    try:
        url = f"http://127.0.0.1:{port}"
        _await(url, lambda: server.poll() is None)
        yield url, server.pid
    finally:
        process.stop(server, set())


def _await(url: str, lives: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and lives():
        try:
            httpx.get(url, trust_env=False)
            return
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError(f"{url} does not answer")


def _bento(checkpoint: Path, home: Path, name: str, new_tokens: int, settings: PackagingSettings) -> Bento:
    return build(
        checkpoint,
        student=name,
        model_version="1",
        retrain_id="benchmark",
        labels={},
        max_prompt_tokens=PROMPT_WORDS[1],
        max_new_tokens=new_tokens,
        settings=settings,
        home=home,
        log=lambda line: print(line, file=sys.stderr),
        prompts=prompts_of(32, seed=1),
    )


def run(checkpoint: Path, home: Path, rounds: int, new_tokens: int) -> tuple[list[Contender], Measured]:
    """Return what each server did, and what 8-bit weights cost and bring in the engine alone."""
    chosen = {
        UNBATCHED: PackagingSettings(max_batch_size=1, max_latency_ms=300_000),
        BENTO: PackagingSettings(max_latency_ms=300_000),
        INT8: PackagingSettings(format="onnx-int8", min_agreement=0, max_latency_ms=300_000),
    }
    bentos = {name: _bento(checkpoint, home, f"b{at}", new_tokens, s) for at, (name, s) in enumerate(chosen.items())}
    measured = bentos[INT8].measured
    assert measured is not None
    with ExitStack() as stack:
        urls = {
            name: stack.enter_context(_fastapi(kind, checkpoint, new_tokens))
            for name, kind in ((PLAIN, "plain"), (MICRO, "micro"))
        }
        for name, bento in bentos.items():
            server = stack.enter_context(serve(bento, timeout=300))
            urls[name] = server.url, server.pid
        contenders = [Contender(name, *at) for name, at in urls.items()]
        for contender in contenders:
            asked(Contender("warm-up", contender.url, contender.pid), 4, prompts_of(4, seed=2))
        for number in range(rounds):
            for clients in CLIENTS:
                prompts = prompts_of(max(6, 2 * clients), seed=10 + number)
                for contender in contenders:
                    asked(contender, clients, prompts)
                    print(f"{number} {clients} {contender.name}: {contender.rows[clients][-1]:.2f}", file=sys.stderr)
    return contenders, measured


def section(contenders: list[Contender], measured: Measured, shape: str) -> str:
    """Return the Markdown section."""
    found = {contender.name: contender for contender in contenders}
    lines = [
        "## Serving (`python -m benchmarks.serving`)",
        "",
        machine("torch", "transformers", "bentoml", "onnxruntime", "fastapi"),
        "",
        shape,
        "",
        "| server | clients | rows/s | p50 [s] | p95 [s] | CPU s/row | x unbatched Bento (by CPU) | "
        "x micro-batching (by CPU) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for contender in contenders:
        for clients in CLIENTS:
            p50, p95 = np.quantile(contender.latencies[clients], (0.5, 0.95))
            lines.append(
                f"| {contender.name} | {clients} | {statistics.median(contender.rows[clients]):.2f} | {p50:.2f} | "
                f"{p95:.2f} | {statistics.median(contender.cpu[clients]):.3f} | "
                + " | ".join(
                    f"{contender.ratio(other, clients):.2f} ({contender.thrift(other, clients):.2f})"
                    for other in (found[UNBATCHED], found[MICRO])
                )
                + " |"
            )
    lines += [
        "",
        f"The 8-bit engine alone, on {measured.prompts} prompts: decode {measured.decode_speedup:.2f} x, prefill "
        f"{measured.prefill_speedup:.2f} x, {measured.size:.2f} of the size, {measured.same_tokens:.3f} of the tokens "
        f"and {measured.same_answers:.3f} of the answers are the checkpoint's (random weights, hardly ever sure).",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=32, help="of each answer at most")
    parser.add_argument("--stops", type=float, default=0.03, help="share of tokens that end an answer")
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="serving-") as folder:
        checkpoint = student(Path(folder) / "checkpoint", arguments.width, arguments.blocks, arguments.stops)
        found = run(checkpoint, Path(folder) / "store", arguments.rounds, arguments.new_tokens)
    shape = (
        f"A Llama, width {arguments.width}, {arguments.blocks} blocks, vocabulary {VOCABULARY}; prompts of "
        f"{PROMPT_WORDS[0]} to {PROMPT_WORDS[1]} tokens, answers of at most {arguments.new_tokens}, "
        f"which {arguments.stops:.0%} of all tokens end; the median of "
        f"{arguments.rounds} rounds in turns; a prompt a request."
    )
    print(section(*found, shape))


if __name__ == "__main__":
    main()
