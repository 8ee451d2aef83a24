"""The whole training step, ours beside plain torch and TRL's GKD on the same rows."""

import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import steppers
from benchmarks.material import PROMPT, Size, make
from benchmarks.turns import Contender, in_turns

MEDIAN, SPREAD, SHORTEST, LONGEST = 96, 0.9, 16, 512  # tokens; of the natural logarithm; tokens
ALIKE = 1e-4  # relative difference of two contenders' first losses
BASES = "plain torch", "TRL GKD", "TRL GKD, JSD"


def even(rows: int, tokens: int) -> list[int]:
    """Return the lengths of rows that are all as long."""
    return [tokens] * rows


def long_tail(rows: int) -> list[int]:
    """Return log-normal lengths [tokens], cut at both ends."""
    drawn = np.random.default_rng(0).lognormal(np.log(MEDIAN), SPREAD, rows)
    return [int(length) for length in drawn.clip(SHORTEST, LONGEST)]


def compared(lengths: list[int], each: int, rounds: int, size: Size) -> Iterator[str]:
    """Yield a table of all contenders on rows of these lengths, `each` a step, and whether they compute the same."""
    yield "| contender | CPU s a step | tokens a CPU s | x plain torch | x GKD | x GKD, JSD | extra MB |"
    yield "|---|---|---|---|---|---|---|"
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), lengths, size)
        commands = {name: ["benchmarks.steppers", name, folder, str(each)] for name in steppers.CONTENDERS}
        with in_turns(commands, rounds) as (contenders, absent):
            steps = steppers.groups(len(lengths), each)  # the first was taken when they started
            tokens = sum(lengths[row] for n in range(1, rounds + 1) for row in steps[n % len(steps)])
            for contender in contenders.values():
                speeds = [
                    f"{1 / contender.ratio(contenders[base]):.2f}" if base in contenders else "-" for base in BASES
                ]
                yield (
                    f"| {contender.name} | {contender.median('cpu'):.2f} | {tokens / contender.total('cpu'):.0f} | "
                    f"{' | '.join(speeds)} | {contender.median('extra_mb'):.0f} |"
                )
            yield ""
            yield from (f"{name} was not run: {why}." for name, why in absent.items())
            yield _alike(contenders)


def _alike(contenders: dict[str, Contender]) -> str:
    """Return a sentence on the first losses of those that learn by the forward KL to a live teacher."""
    names = [name for name in ("ours, live", "plain torch", "TRL GKD") if name in contenders]
    losses = [contenders[name].first["value"] for name in names]
    spread = (max(losses) - min(losses)) / max(map(abs, losses))
    told = ", ".join(f"{name} {loss:.7f}" for name, loss in zip(names, losses, strict=True))
    return f"First losses, forward KL: {told}: {'equal' if spread <= ALIKE else 'NOT EQUAL'} ({spread:.1g} relative).\n"


def section(given: Namespace, size: Size | None = None) -> Iterator[str]:
    """Yield the lines of the section; given: rounds, steps, rows, row_tokens."""
    size = size or Size()
    yield "### Whole step\n"
    yield (
        f"Forward, loss, backward, clip, AdamW in float32, on the same rows of random tokens: {PROMPT} of prompt, "
        "learned are all others. Student 31.7M, teacher 51.6M parameters, vocabulary 32,000. Ours is the trainer's own "
        "path: batches made ahead from mixture and store, packed. TRL GKD is its "
        "GKDTrainer's collator (rows padded on the left), training_step and optimizer, with lmbda 0 (nothing is "
        "generated), without gradient checkpointing; beta 0, and for JSD 0.5. x: how many times as fast.\n"
    )
    rows = given.rows[0] * given.steps
    yield f"{given.rows[0]} rows of {given.row_tokens} tokens a step:\n"
    yield from compared(even(rows, given.row_tokens), given.rows[0], given.rounds, size)
    lengths = long_tail(given.rows[1] * given.steps)
    yield (
        f"{given.rows[1]} rows a step of log-normal lengths (median {MEDIAN}, sigma {SPREAD}, cut at {SHORTEST} and "
        f"{LONGEST}; here {np.mean(lengths):.0f} on average), in random order:\n"
    )
    yield from compared(lengths, given.rows[1], given.rounds, size)
