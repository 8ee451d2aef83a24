"""python -m benchmarks.distill [--section loss step signals processes] [--rounds N] ...

Distillation, ours beside others, as a Markdown section for RESULTS.md:

    loss       loss and gradients from hidden states and output layers (benchmarks/losses.py)
    step       the whole training step, beside plain torch and TRL's GKD (benchmarks/steps.py)
    signals    payload of stored signals, and what they cost a step (benchmarks/signals.py)
    processes  two training processes beside one (benchmarks/processes.py)

Contenders are processes of their own that take turns; a ratio is the median over rounds of what two of them took in the
same round, in CPU seconds. "extra MB" is peak memory above what lay there before. Contenders that do not run here are
named, with the reason.
"""

import argparse
import os
import shlex
import sys
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec

from benchmarks.machine import machine

SECTIONS = {"loss": "losses", "step": "steps", "signals": "signals", "processes": "processes"}


def main(given: list[str] | None = None) -> None:
    """Compare and print."""
    words = sys.argv[1:] if given is None else given
    parser = _parser()
    arguments = parser.parse_args(words)
    if arguments.rounds < 1 or arguments.process_rounds < 1:
        parser.error("--rounds and --process-rounds: give one or more")
    if arguments.step_tokens < arguments.row_tokens:
        parser.error(f"--step-tokens {arguments.step_tokens} is less than a row of {arguments.row_tokens}")
    others = [name for name in ("trl", "liger-kernel") if find_spec(name.replace("-", "_"))]
    command, load = shlex.join(["python", "-m", "benchmarks.distill", *words]), os.getloadavg()
    print(f"## Distillation, {datetime.now(UTC):%Y-%m-%d}\n\n    {command}\n")
    print(f"{machine('torch', 'transformers', *others)}.")
    print(f"Load averages at the start: {', '.join(f'{minutes:.1f}' for minutes in load)}.\n")
    for name in arguments.section:
        section = import_module(f"benchmarks.{SECTIONS[name]}").section
        for line in section(arguments):
            print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--section", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="what to measure; default: all")
    add("--rounds", type=int, default=7, help="turns of each contender [count]; default: %(default)s")
    add("--tokens", type=int, nargs="+", default=[1024, 4096, 16384], help="loss: sizes [tokens]")
    add("--vocabulary", type=int, nargs="+", default=[32_000, 152_000], help="loss: sizes [tokens]")
    kinds = ["forward_kl", "jensen_shannon"]
    add("--divergences", nargs="+", choices=kinds, default=kinds, help="loss: default: both")
    add("--contenders", nargs="+", metavar="NAME", help="loss: whom to compare ours with; default: all")
    add("--rows", type=int, nargs=2, default=[4, 8], help="step: rows of one length, of real lengths [rows a step]")
    add("--row-tokens", type=int, default=256, help="step, signals, processes: length of rows [tokens]")
    add("--steps", type=int, default=8, help="step, signals: different steps made [count]")
    add("--shards", type=int, default=16, help="signals: shards of the store [count]")
    add("--process-rounds", type=int, default=3, help="processes: trainings of each kind [count]")
    add("--process-steps", type=int, default=4, help="processes: steps of a training that count [count]")
    add("--step-tokens", type=int, default=8192, help="processes: size of a step [tokens]")
    return parser


if __name__ == "__main__":
    main()
