"""python -m benchmarks.drift [--rows N ...] [--stream-rows N] [--nannyml PYTHON]

Compares two tables of 20 numeric and 5 categorical columns, ours beside Evidently, numpy with scipy, and NannyML: CPU
seconds of the comparison alone, each in a process of its own, on the same tables. NannyML asks for other versions than
Evidently, so it may lie in another environment, whose interpreter `--nannyml` names. Then what a large folder of
Parquet needs when it streams through, and what importing costs. Prints a Markdown section for RESULTS.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from benchmarks import contenders
from benchmarks.contenders import CATEGORICAL, CONTENDERS, NUMERIC, REFERENCE_ROWS, table
from benchmarks.machine import installed, machine

VERSIONS = "from importlib.metadata import version; print(*(f'{name} {version(name)}' for name in %r), sep=', ')"


def command(*arguments: str, python: str = sys.executable) -> tuple[float, float, str]:
    """Run Python with these arguments; returns its CPU seconds, its peak memory in MB, and what it printed."""
    process = subprocess.Popen([python, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 3):  # 3: drifted
        sys.exit(f"{' '.join(arguments)} failed with {code}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**10, printed


def streamed(rows: int) -> tuple[float, float]:
    """Return CPU seconds and peak MB of `python -m monitoring.drift` on a folder of Parquet with so many rows."""
    from monitoring.profile import ReferenceProfile

    part = min(rows, 1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        log, profile = Path(folder) / "log", Path(folder) / "profile"
        log.mkdir()
        whole = table(part, 1)
        for number in range(rows // part):
            whole.to_parquet(log / f"part-{number:03}.parquet", index=False)
        del whole
        ReferenceProfile.build(
            table(REFERENCE_ROWS, 0), window="then", model_version="1", max_categories=50, sample_rows=100, seed=0
        ).save(profile)
        cpu, peak, printed = command("-m", "monitoring.drift", str(profile), str(log), "--json")
        compared = json.loads(printed)["rows"]
        if compared != rows // part * part:
            sys.exit(f"{compared} rows were compared of {rows}")
        return cpu, peak


def imports() -> dict[str, float]:
    """Return the CPU seconds of importing us, and pandas with scipy.stats, the best of five in turns."""
    lines = {"monitoring.drift": "import monitoring.drift", "pandas, scipy.stats": "import pandas, scipy.stats"}
    taken: dict[str, list[float]] = {name: [] for name in lines}
    for _ in range(5):
        for name, line in lines.items():
            taken[name].append(command("-c", line)[0])
    return {name: min(seconds) for name, seconds in taken.items()}


def one(name: str, rows: int, nannyml: str | None) -> float:
    """Return the CPU seconds of one contender's comparison, NannyML's by its own interpreter."""
    print(f"{name}, {rows:,} rows ...", file=sys.stderr)
    if name == "NannyML" and nannyml:
        printed = command(contenders.__file__, name, str(rows), python=nannyml)[2]
    else:
        printed = command("-m", "benchmarks.contenders", name, str(rows))[2]
    return float(printed.split()[-1])


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], metavar="N")
    parser.add_argument("--stream-rows", type=int, default=20_000_000, metavar="N")
    parser.add_argument("--nannyml", metavar="PYTHON", help="interpreter of an environment that has NannyML")
    given = parser.parse_args()
    there = given.nannyml or find_spec("nannyml")
    names = [name for name in CONTENDERS if name != "NannyML" or there]
    measured: dict[str, list[float]] = {name: [] for name in names}
    for rows in given.rows:
        for name in names:
            measured[name].append(one(name, rows, given.nannyml))
    print("streaming ...", file=sys.stderr)
    cpu, peak = streamed(given.stream_rows)
    taken = imports()
    print(section(given.rows, measured, of_nannyml(given.nannyml)))
    print(f"A folder of Parquet of {given.stream_rows:,} rows: {cpu:.0f} CPU s, {peak:.0f} MB at the peak.\n")
    ratio = taken["monitoring.drift"] / taken["pandas, scipy.stats"]
    print(f"Import: {', '.join(f'{name} {s:.2f} CPU s' for name, s in taken.items())}, {ratio:.2f} times.")


def of_nannyml(python: str | None) -> str:
    """Return NannyML's version, and which versions it ran with where it has an environment of its own."""
    if not python:
        return f"nannyml {installed('nannyml')}"
    first, others = command("-c", VERSIONS % (("nannyml", "numpy", "scipy", "pandas"),), python=python)[2].split(
        ", ", 1
    )
    return f"{first} in an environment of its own ({others.strip()})"


def section(sizes: list[int], measured: dict[str, list[float]], of_nannyml: str) -> str:
    """Return the Markdown of what was measured, and how many times our CPU seconds each needs."""
    lines = [
        f"## Drift of {NUMERIC + CATEGORICAL} columns, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"`python -m benchmarks.drift`, {machine('numpy', 'scipy', 'pandas', 'evidently')}, {of_nannyml}",
        "",
        f"CPU seconds (times ours); our reference is a frozen profile of {REFERENCE_ROWS:,} rows, that of the others "
        "a table as large as the window:",
        "",
        "| | " + " | ".join(f"{rows:,} rows" for rows in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    for name, seconds in measured.items():
        cells = [f"{own:.3f} ({own / base:.1f})" for own, base in zip(seconds, measured["ours"], strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        f"| {name} | " + " | ".join(["not installed"] * len(sizes)) + " |" for name in CONTENDERS.keys() - measured
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
