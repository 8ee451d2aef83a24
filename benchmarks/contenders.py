"""One comparison of two tables by one contender, in a process of its own; `benchmarks.drift` starts these.

    python benchmarks/contenders.py CONTENDER ROWS

Prints its CPU seconds. Needs numpy, pandas and what the contender itself is made of, nothing else of ours: so an
interpreter of another environment can run this file.
"""

import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

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
    os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"  # it would report each call to its makers, in a thread of its own
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


if __name__ == "__main__":
    print(cpu_seconds(sys.argv[1], int(sys.argv[2])))
