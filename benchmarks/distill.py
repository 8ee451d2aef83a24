"""python -m benchmarks.distill [--rounds N] [--tokens N ...] [--vocabulary N ...]

Loss and gradients from hidden states and output layers, ours beside plain torch, a compiled loss over whole logits, the
two-pass way over chunks of the vocabulary, TRL and Liger where they are installed and run. Each contender is a process
of its own; they take turns, and a ratio is the median over rounds of what two of them took in the same round, in CPU
seconds. "extra MB" is peak memory above the inputs, the returned gradients included. Prints a Markdown section for
RESULTS.md.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.util import find_spec

from benchmarks.machine import machine

WIDTH = 1024
WHOLE_LOGITS = {"naive", "compiled"}  # of these a larger size would not fit beside the others
LARGEST_WHOLE = 4096 * 32_000  # elements of one [tokens, vocabulary]


class Contender:
    """A process that works a loss out whenever it is asked."""

    def __init__(self, name: str, kind: str, tokens: int, vocabulary: int) -> None:
        command = [sys.executable, "-m", "benchmarks.losses", name, kind, *map(str, (tokens, vocabulary, WIDTH))]
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.rounds: list[dict[str, float]] = []

    def reason(self) -> str | None:
        """Return why it does not run, or None when it is ready."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        if any(line == "ready\n" for line in self.process.stdout):
            return None
        return self.process.stderr.read().strip().splitlines()[-1]

    def turn(self) -> None:
        """Have it work the loss out once."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.rounds.append(json.loads(self.process.stdout.readline()))

    def ratio(self, other: "Contender") -> float:
        """Return the median ratio of CPU seconds to another one's in the same round."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(own["cpu"] / theirs["cpu"] for own, theirs in pairs)

    def median(self, figure: str) -> float:
        """Return the median of a figure over the rounds."""
        return statistics.median(measured[figure] for measured in self.rounds)


@contextlib.contextmanager
def started(names: list[str], kind: str, tokens: int, vocabulary: int) -> Iterator[list[Contender]]:
    """Start contenders, one after the other, and end them."""
    found: list[Contender] = []
    try:
        for name in names:
            contender = Contender(name, kind, tokens, vocabulary)
            found.append(contender)
            if reason := contender.reason():
                found.pop()
                print(f"{name} does not run {kind} at {tokens} tokens here: {reason}", file=sys.stderr)
        yield found
    finally:
        for contender in found:
            contender.process.kill()
            contender.process.wait()


def compared(kind: str, tokens: int, vocabulary: int, rounds: int) -> list[str]:
    """Return the table rows of one divergence at one size."""
    from benchmarks.losses import CONTENDERS

    names = [name for name in CONTENDERS if tokens * vocabulary <= LARGEST_WHOLE or name not in WHOLE_LOGITS]
    with started(names, kind, tokens, vocabulary) as contenders:
        for _ in range(rounds):
            for contender in contenders:
                contender.turn()
        ours = contenders[0]
        return [
            f"| {kind} | {tokens:,} | {vocabulary:,} | {each.name} | {each.median('cpu'):.2f} | "
            f"{ours.ratio(each):.2f} | {each.median('extra_mb'):.0f} | "
            f"{ours.median('extra_mb') / each.median('extra_mb'):.2f} |"
            for each in contenders
        ]


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender [count]; default: %(default)s")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 16384], help="sizes [tokens]")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32_000, 152_000], help="sizes [tokens]")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds {arguments.rounds}: give one or more")
    packages = ["torch", "transformers", *(name for name in ("trl", "liger-kernel") if find_spec(name.split("-")[0]))]
    print(f"## Losses, {datetime.now(UTC):%Y-%m-%d}\n\n    python -m benchmarks.distill\n\n{machine(*packages)}\n")
    print(f"Width {WIDTH:,}, float32. Ratios are ours divided by theirs, of the same round.\n")
    print("| divergence | tokens | vocabulary | contender | CPU s | ours / theirs | extra MB | ours / theirs |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in ("forward_kl", "jensen_shannon"):
        for vocabulary in arguments.vocabulary:
            for tokens in arguments.tokens if vocabulary <= 32_000 else [min(arguments.tokens)]:
                print("\n".join(compared(kind, tokens, vocabulary, arguments.rounds)), flush=True)


if __name__ == "__main__":
    main()
