"""python -m benchmarks.verdict [--rows N] [--slices N] [--runs N] [--each]

How long a verdict takes: paired scores of all six metrics, made with a fixed seed, over 50 slices of together 100,000
rows; with --each, of 100,000 rows each. Prints a Markdown section for RESULTS.md.
"""

import argparse
import os
import sys
import time
from datetime import UTC, datetime

import numpy as np
import psutil

from benchmarks.machine import machine
from monitoring.judging_settings import JudgingSettings
from monitoring.proportions import compare_proportions
from monitoring.regression import Kind, Paired, Slice, judge

LIMIT = 10.0  # seconds, the target


def scores(rng: np.random.Generator, rows: int) -> dict[str, Paired]:
    """Return all six metrics of two models that answer alike on most rows."""

    def binary(share: float, changed: float) -> Paired:
        champion = rng.random(rows) < share
        flipped = rng.random(rows) < changed
        return Paired(champion.astype(float), (champion ^ flipped).astype(float))

    def near(champion: np.ndarray, spread: float, low: float, high: float) -> np.ndarray:
        return np.asarray(np.clip(champion + rng.normal(0, spread, rows), low, high))

    right, f1, nats, sure = binary(0.7, 0.05), rng.beta(5, 2, rows), rng.lognormal(-1, 1, rows), rng.beta(5, 2, rows)
    before = np.stack([sure, np.asarray(right.champion)], axis=1)
    after = np.stack([near(sure, 0.05, 0, 1), np.asarray(right.challenger)], axis=1)
    return {
        "exact_match": right,
        "token_f1": Paired(f1, near(f1, 0.1, 0, 1)),
        "negative_log_likelihood": Paired(nats, near(nats, 0.2, 0, np.inf)),
        "teacher_agreement": binary(0.75, 0.05),
        "calibration_error": Paired(before, after),
        "refusal_rate": binary(0.02, 0.01),
    }


def slices(count: int, rows: int) -> dict[str, Slice]:
    """Return so many slices of so many rows each: one fresh, the others old, golden, of teacher errors and segments."""
    first: list[Kind] = ["fresh", "golden", "teacher_errors"]
    old: list[Kind] = ["old"]
    segments: list[Kind] = ["segment"]
    kinds = (first + old * 20 + segments * count)[:count]
    return {f"{kind} {at}": Slice(kind, scores(np.random.default_rng(at), rows)) for at, kind in enumerate(kinds)}


def section(given: argparse.Namespace) -> str:
    """Return the Markdown of what was measured."""
    rows = given.rows if given.each else given.rows // given.slices
    made = slices(given.slices, rows)
    load, seconds, cpu = os.getloadavg()[0], [], []
    for _ in range(given.runs):
        compare_proportions.cache_clear()  # what an earlier run has worked out does not count
        start, used = time.perf_counter(), time.process_time()
        verdict = judge(made, JudgingSettings(segment_rows=min(300, rows)))
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
        print(f"{seconds[-1]:.2f} s, {cpu[-1]:.2f} CPU s", file=sys.stderr)
    memory = psutil.Process().memory_info().rss / 2**20
    return "\n".join(
        [
            f"## Verdict, {datetime.now(UTC):%Y-%m-%d}",
            "",
            f"`python -m benchmarks.verdict{' --each' if given.each else ''}`, {machine('numpy', 'scipy')}, "
            f"load before {load:.1f}",
            "",
            f"| slices | rows a slice | checks | seconds, median of {given.runs} | slowest | CPU seconds | target "
            "| memory after, scores included |",
            "|---|---|---|---|---|---|---|---|",
            f"| {given.slices} | {rows:,} | {len(verdict.checks)} | {np.median(seconds):.2f} | {max(seconds):.2f} "
            f"| {np.median(cpu):.2f} | {LIMIT:.0f} | {memory:,.0f} MiB |",
            "",
        ]
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verdict", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=100_000, metavar="N", help="of all slices together")
    parser.add_argument("--slices", type=int, default=50, metavar="N", help="how many there are")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="verdicts that are timed")
    parser.add_argument("--each", action="store_true", help="so many rows in every slice")
    print(section(parser.parse_args()))


if __name__ == "__main__":
    main()
