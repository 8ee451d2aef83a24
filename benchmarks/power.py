"""python -m benchmarks.power [--rows N ...] [--reference N] [--runs N] [--windows N]

How soon drift is noticed, by simulation with fixed seeds: eight drifts of a world of six columns, of which one or none
moves, and the world without drift. In each run successive windows are compared with one frozen reference, columns and
whole rows, until a report is at warning. Prints a Markdown section for RESULTS.md.
"""

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from benchmarks.false_alarms import freeze
from benchmarks.machine import machine
from monitoring.drift import compare, compare_rows
from monitoring.settings import DriftSettings
from monitoring.tally import count

SAMPLE = 1000  # rows of either side that are compared as a whole
LABELS = np.array(list("abcde"), object)

First = tuple[int | None, int | None]  # windows until the first at info, and at warning; None: none was


def world(rng: np.random.Generator, rows: int, correlation: float = 0.8) -> pd.DataFrame:
    """Return five normal columns, the first two correlated, and one of five categories."""
    values = rng.normal(size=(rows, 5))
    values[:, 1] = correlation * values[:, 0] + np.sqrt(1 - correlation**2) * values[:, 1]
    frame = pd.DataFrame(values, columns=[f"x{i}" for i in range(5)])
    return frame.assign(label=rng.choice(LABELS, rows))


def _shift(size: float) -> Callable[[np.random.Generator, int], pd.DataFrame]:
    return lambda rng, rows: world(rng, rows).assign(x3=lambda frame: frame["x3"] + size)


def _mixture(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """A tenth of the rows comes from elsewhere: three standard deviations away."""
    return world(rng, rows).assign(x3=lambda frame: frame["x3"] + 3 * (rng.random(rows) < 0.1))


def _new_category(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    frame = world(rng, rows)
    return frame.assign(label=np.where(rng.random(rows) < 0.1, "new", frame["label"]))


DRIFTS: dict[str, Callable[[np.random.Generator, int], pd.DataFrame]] = {
    "none": world,
    "shift 0.1 sd": _shift(0.1),
    "shift 0.15 sd": _shift(0.15),
    "shift 0.25 sd": _shift(0.25),
    "shift 0.5 sd": _shift(0.5),
    "scale x1.5": lambda rng, rows: world(rng, rows).assign(x3=lambda frame: frame["x3"] * 1.5),
    "10 % mixture": _mixture,
    "new category": _new_category,
    "correlation flip": lambda rng, rows: world(rng, rows, -0.8),
}


def until_alarm(name: str, rows: int, windows: int, seed: int, reference: int = 5000) -> First:
    """Return how many successive windows it takes until one is at info, and at warning; None: none of `windows` is."""
    rng, settings = np.random.default_rng(seed), DriftSettings()
    profile = freeze(world(rng, reference), SAMPLE)
    info = None
    for number in range(1, windows + 1):
        tally = count(profile, DRIFTS[name](rng, rows), sample_rows=SAMPLE, seed=0)
        report = compare_rows(profile, tally.sample, compare(profile, tally, name, settings), settings)
        if report.severity != "none":
            info = info or number
        if report.drifted:
            return info, number
    return info, None


def until(found: list[int | None], windows: int) -> str:
    """Say how many windows it takes on average: those that were looked at for each alarm, runs without one included."""
    looked_at = sum(number or windows for number in found)
    alarms = sum(number is not None for number in found)
    return f"{looked_at / alarms:.1f}" if alarms else f"none in {looked_at}"


def section(given: argparse.Namespace) -> str:
    """Return the Markdown of windows until alarm."""
    lines = [
        f"## Windows until alarm, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"`python -m benchmarks.power`, {machine('numpy', 'scipy', 'pandas', 'scikit-learn')}",
        "",
        f"Windows looked at for each first one at info / at warning, over {given.runs} runs, each with a reference of "
        f"{given.reference:,} rows of its own; a run ends at its first warning, or after {given.windows} windows, "
        "which count too:",
        "",
        "| drift | " + " | ".join(f"{rows:,} rows: info | warning" for rows in given.rows) + " |",
        "|---|" + "---|---|" * len(given.rows),
    ]
    for name in DRIFTS:
        print(f"{name} ...", file=sys.stderr)
        cells = []
        for rows in given.rows:
            seeds = range(rows, rows + given.runs)
            firsts = [until_alarm(name, rows, given.windows, seed, given.reference) for seed in seeds]
            cells += [until(list(found), given.windows) for found in zip(*firsts, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.power", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rows", type=int, nargs="+", default=[300, 1000], metavar="N", help="of a window")
    parser.add_argument("--reference", type=int, default=5000, metavar="N", help="rows of a reference")
    parser.add_argument("--runs", type=int, default=10, metavar="N", help="runs of each drift")
    parser.add_argument("--windows", type=int, default=20, metavar="N", help="windows of a run at most")
    print(section(parser.parse_args()))


if __name__ == "__main__":
    main()
