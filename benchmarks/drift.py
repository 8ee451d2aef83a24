"""python -m benchmarks.drift [--rows N ...] [--stream-rows N]

Compares two tables of 20 numeric and 5 categorical columns, ours beside Evidently, numpy with scipy, and NannyML where
it is installed: CPU seconds of the comparison alone, each in a process of its own, on the same tables. Then what a
large folder of Parquet needs when it streams through, and what importing costs. Prints a Markdown section for
RESULTS.md.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

NUMERIC, CATEGORICAL, REFERENCE_ROWS, CAP = 20, 5, 20_000, 50_000


def table(rows: int, seed: int) -> pd.DataFrame:
    """Return 20 columns of normal numbers and 5 of ten categories."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {f"x{i}": rng.normal(size=rows) for i in range(NUMERIC)}
    names = np.array([f"c{i}" for i in range(10)], object)
    return pd.DataFrame(columns | {f"c{i}": names[rng.integers(0, 10, rows)] for i in range(CATEGORICAL)})


def ours(reference: pd.DataFrame, max_rows: int = 0) -> Callable[[pd.DataFrame], object]:
    """Return the comparison with a frozen profile: PSI and its bound, KS, chi-square, Jensen-Shannon, Wasserstein."""
    from monitoring.drift import compare
    from monitoring.profile import ReferenceProfile
    from monitoring.settings import DriftSettings

    profile = ReferenceProfile.build(
        reference, window="then", model_version="1", max_categories=50, sample_rows=100, seed=0
    )
    settings = DriftSettings(max_rows=max_rows)
    return lambda current: compare(profile, current, "now", settings)


def capped(reference: pd.DataFrame) -> Callable[[pd.DataFrame], object]:
    """Return the same on at most 50,000 rows."""
    return ours(reference, CAP)


def numpy_scipy(reference: pd.DataFrame) -> Callable[[pd.DataFrame], object]:
    """Return PSI on deciles with numpy, KS and chi-square with scipy, from both drift_command."""
    from scipy.stats import chi2_contingency, ks_2samp

    def run(current: pd.DataFrame) -> object:
        found = []
        for name in reference:
            before, now = reference[name], current[name]
            if before.dtype == object:
                counts = pd.concat([before.value_counts(), now.value_counts()], axis=1).fillna(0)
                found.append(chi2_contingency(counts.T.to_numpy()).pvalue)
                continue
            edges = np.quantile(before, np.arange(1, 10) / 10)
            p, q = (
                np.bincount(np.searchsorted(edges, side), minlength=10) / len(side) + 1e-6 for side in (before, now)
            )
            found.append(float(np.sum((p - q) * np.log(p / q))))
            found.append(ks_2samp(before, now, method="asymp").pvalue)
        return found

    return run


def evidently(reference: pd.DataFrame, preset: bool) -> Callable[[pd.DataFrame], object]:
    """Return Evidently's DataDriftPreset, or its PSI of every column and KS of the numeric ones."""
    from evidently import Dataset, Report
    from evidently.metrics import ValueDrift
    from evidently.presets import DataDriftPreset

    if preset:
        metrics: list[Any] = [DataDriftPreset()]
    else:
        metrics = [ValueDrift(column=name, method="psi") for name in reference]
        metrics += [ValueDrift(column=name, method="ks") for name in reference if reference[name].dtype != object]
    return lambda current: Report(metrics).run(Dataset.from_pandas(current), Dataset.from_pandas(reference)).dict()


def evidently_preset(reference: pd.DataFrame) -> Callable[[pd.DataFrame], object]:
    """Return Evidently's DataDriftPreset."""
    return evidently(reference, preset=True)


def evidently_psi_ks(reference: pd.DataFrame) -> Callable[[pd.DataFrame], object]:
    """Return Evidently's PSI and KS."""
    return evidently(reference, preset=False)


def nannyml(reference: pd.DataFrame) -> Callable[[pd.DataFrame], object]:
    """Return NannyML's univariate drift of one chunk: KS and Jensen-Shannon, chi-square and Jensen-Shannon."""
    import nannyml as nml  # type: ignore[import-not-found]

    calculator = nml.UnivariateDriftCalculator(
        column_names=list(reference),
        continuous_methods=["kolmogorov_smirnov", "jensen_shannon"],
        categorical_methods=["chi2", "jensen_shannon"],
        chunk_number=1,
    ).fit(reference)
    return lambda current: calculator.calculate(current).to_df()


CONTENDERS: dict[str, Callable[[pd.DataFrame], Callable[[pd.DataFrame], object]]] = {
    "ours": ours,
    "ours, 50k-row cap": capped,
    "numpy + scipy": numpy_scipy,
    "Evidently PSI + KS": evidently_psi_ks,
    "Evidently DataDriftPreset": evidently_preset,
    "NannyML": nannyml,
}


def cpu_seconds(name: str, rows: int) -> float:
    """Return the CPU seconds of one comparison in this process, imports and data made before and not counted."""
    warnings.filterwarnings("ignore")
    reference, current = table(min(rows, REFERENCE_ROWS) if name.startswith("ours") else rows, 0), table(rows, 1)
    run = CONTENDERS[name](reference)
    run(current.head(2_000))  # imports made late, caches
    began = time.process_time()
    run(current)
    return time.process_time() - began


def command(*arguments: str) -> tuple[float, float, str]:
    """Run Python with these arguments; returns its CPU seconds, its peak memory in MB, and what it printed."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
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


def installed(name: str) -> str:
    """Return the version of a package, or why there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], metavar="N")
    parser.add_argument("--stream-rows", type=int, default=20_000_000, metavar="N")
    parser.add_argument("--one", nargs=2, metavar=("CONTENDER", "N"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(cpu_seconds(given.one[0], int(given.one[1])))
        return
    names = [name for name in CONTENDERS if name != "NannyML" or find_spec("nannyml")]
    measured: dict[str, list[float]] = {name: [] for name in names}
    for rows in given.rows:
        for name in names:
            print(f"{name}, {rows:,} rows ...", file=sys.stderr)
            printed = command("-m", "benchmarks.drift", "--one", name, str(rows))[2]
            measured[name].append(float(printed.split()[-1]))
    print("streaming ...", file=sys.stderr)
    cpu, peak = streamed(given.stream_rows)
    taken = imports()
    print(section(given.rows, measured))
    print(f"A folder of Parquet of {given.stream_rows:,} rows: {cpu:.0f} CPU s, {peak:.0f} MB at the peak.\n")
    ratio = taken["monitoring.drift"] / taken["pandas, scipy.stats"]
    print(f"Import: {', '.join(f'{name} {s:.2f} CPU s' for name, s in taken.items())}, {ratio:.2f} times.")


def section(sizes: list[int], measured: dict[str, list[float]]) -> str:
    """Return the Markdown of what was measured, and how many times our CPU seconds each needs."""
    lines = [
        f"## Drift of {NUMERIC + CATEGORICAL} columns, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"`python -m benchmarks.drift`, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {installed(name)}" for name in ("numpy", "scipy", "pandas", "evidently", "nannyml")),
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
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
