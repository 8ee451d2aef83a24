"""The error rates that the drift statistics promise, by simulation with fixed seeds.

No drift: reference and window are drawn from the same distribution, independently, each time anew: normal,
heavy-tailed (Student's t with 2 degrees of freedom), discrete (Poisson), tied (80 % zeros) and 30 % missing, at n rows
of each side and against a reference of 5,000. Counted is how often psi_p and ks_p fall below 5 %. A rate counts as
outside 0.8-1.3 times nominal only when its 99 % binomial interval is: the simulation's own noise fails no test.
With drift: how often the PSI's lower bound is below the true PSI, and how often each kind of drift is found.
The simulations count columns and call the statistics as `compare` does, which they are tested to agree with, but
without its report: thousands of repetitions would take minutes.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from scipy.stats import beta, ks_2samp, norm

from monitoring import statistics
from monitoring.columns import NumericColumn
from monitoring.drift import compare, compare_rows
from monitoring.multivariate import mmd
from monitoring.profile import ReferenceProfile
from monitoring.settings import DriftSettings
from monitoring.tally import count

Values = npt.NDArray[np.float64]
SETTINGS = DriftSettings()
NOMINAL = 0.05
CONTINUOUS = ("normal", "heavy", "holes")
SHIFT_OF_PSI_01 = 0.323474  # standard deviations between two normals whose PSI on deciles is 0.1


def draw(rng: np.random.Generator, name: str, rows: int) -> Values:
    if name == "normal":
        return rng.normal(size=rows)
    if name == "heavy":
        return rng.standard_t(2, rows)
    if name == "discrete":
        return rng.poisson(2, rows).astype(float)
    if name == "tied":
        return np.where(rng.random(rows) < 0.8, 0.0, rng.exponential(size=rows))
    return np.where(rng.random(rows) < 0.3, np.nan, rng.normal(size=rows))


def p_values(then: Values, now: Values) -> tuple[float, float]:
    """psi_p and ks_p of a column."""
    column = NumericColumn.build(pd.Series(then))
    before, after = column.counted.cells, column.count(pd.Series(now)).cells
    p, q = statistics.merge_bins(before, after, SETTINGS.bins)
    psi_p = statistics.psi_p_value(statistics.psi(p, q), int(p.sum()), int(q.sum()), len(p))
    return psi_p, statistics.ks_test(before, after)[1]


def rates(name: str, reference: int, rows: int, repetitions: int, seed: int) -> tuple[int, int]:
    """How many of the repetitions psi_p and ks_p alarm without drift."""
    rng = np.random.default_rng(seed)
    found = [p_values(draw(rng, name, reference), draw(rng, name, rows)) for _ in range(repetitions)]
    psi, ks = (np.array(found) < NOMINAL).sum(axis=0)
    return int(psi), int(ks)


def interval(hits: int, trials: int) -> tuple[float, float]:
    """Clopper and Pearson's 99 % interval of a rate."""
    low = float(beta.ppf(0.005, hits, trials - hits + 1)) if hits else 0.0
    return low, float(beta.ppf(0.995, hits + 1, trials - hits)) if hits < trials else 1.0


def check_rates(name: str, reference: int, rows: int, repetitions: int, seed: int) -> None:
    for statistic, alarms in zip(("psi_p", "ks_p"), rates(name, reference, rows, repetitions, seed), strict=True):
        low, high = interval(alarms, repetitions)
        said = f"{statistic} of {name}, {reference} x {rows}: {alarms / repetitions:.4f}"
        assert low <= 1.3 * NOMINAL, said
        if name in CONTINUOUS:
            assert high >= 0.8 * NOMINAL, said


@pytest.mark.parametrize("name", [*CONTINUOUS, "discrete", "tied"])
def test_p_values_alarm_at_their_level_without_drift(name: str) -> None:
    check_rates(name, 100, 100, 400, seed=1)
    check_rates(name, 1000, 1000, 250, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CONTINUOUS, "discrete", "tied"])
def test_p_values_alarm_at_their_level_at_every_size(name: str) -> None:
    for reference, rows, repetitions in (
        (100, 100, 1200),
        (300, 300, 1000),
        (1000, 1000, 800),
        (10_000, 10_000, 400),
        (5000, 100, 700),
        (5000, 300, 500),
    ):
        check_rates(name, reference, rows, repetitions, seed=3)


def test_the_simulation_counts_what_compare_reports() -> None:
    rng = np.random.default_rng(4)
    names = (*CONTINUOUS, "discrete", "tied")
    then, now = (pd.DataFrame({name: draw(rng, name, rows) for name in names}) for rows in (800, 500))
    report = compare(profile(then), now, "now", SETTINGS)
    for column in report.columns:
        assert column.psi_p == pytest.approx(p_values(then[column.name].to_numpy(), now[column.name].to_numpy())[0])
    assert {column.name for column in report.columns} == set(names)


@pytest.mark.parametrize(("reference", "rows"), [(5000, 300), (5000, 1000), (2000, 2000)])
def test_the_bound_of_psi_covers_the_true_one_as_often_as_it_says(reference: int, rows: int) -> None:
    """At a true PSI of 0.1 the 95 % bound is below it in .93-.97 of windows."""
    rng, repetitions, below = np.random.default_rng(5), 800, 0
    for _ in range(repetitions):
        # Quantile bins hold equal parts of the reference; what they hold of the truth varies as its spacings do.
        cuts = np.sort(rng.normal(size=reference))[np.arange(1, 10) * reference // 10 - 1]
        shares = np.diff([0.0, *norm.cdf(cuts - SHIFT_OF_PSI_01), 1.0])
        before, after = np.full(10, reference // 10), rng.multinomial(rows, shares)
        bound = statistics.psi_lower_bound(statistics.psi(before, after), reference, rows, 10)
        below += bound <= 0.1
    low, high = interval(below, repetitions)
    assert low <= 0.97, below / repetitions
    assert high >= 0.93, below / repetitions


def test_ks_is_scipys_where_each_value_has_its_bin_and_within_a_thousandth_where_not() -> None:
    """Distances: equal when the values are so few that each is a bin, and on 256 bins within 1e-3 in 9 of 10.

    What a distance can miss is the noise inside of one bin, about 1 / sqrt(256 n) = 6e-4 at 10,000 rows,
    and more in smaller windows.
    """
    rng = np.random.default_rng(6)
    for then, now in (
        (rng.poisson(4, 5000).astype(float), rng.poisson(4.2, 700).astype(float)),
        (rng.normal(size=100), rng.normal(size=5000) + 0.2),
    ):
        column = NumericColumn.build(pd.Series(then))
        distance, _ = statistics.ks_test(column.counted.cells, column.count(pd.Series(now)).cells)
        assert distance == pytest.approx(ks_2samp(then, now, method="asymp").statistic, abs=1e-12)
    misses = []
    for _ in range(40):
        then, now = rng.normal(size=10_000), rng.normal(size=10_000) + 0.1
        column = NumericColumn.build(pd.Series(then))
        distance, _ = statistics.ks_test(column.counted.cells, column.count(pd.Series(now)).cells)
        misses.append(ks_2samp(then, now, method="asymp").statistic - distance)
    assert min(misses) >= -1e-12
    assert np.quantile(misses, 0.9) < 1e-3, misses
    assert max(misses) < 2e-3


@pytest.mark.parametrize("rows", [300, 2000])
@pytest.mark.parametrize("outlier", [1e6, -1e6])
def test_one_outlier_neither_hides_a_shift_nor_raises_an_alarm(rows: int, outlier: float) -> None:
    rng = np.random.default_rng(7)
    then, now = rng.normal(size=rows), rng.normal(size=rows)
    for before in (then, np.append(then, outlier)):
        for shift in (0.0, 1.0):
            report = compare(
                profile(pd.DataFrame({"x": before})), pd.DataFrame({"x": np.append(now + shift, outlier)}), "", SETTINGS
            )
            assert report.drifted is (shift > 0)


def profile(frame: pd.DataFrame, sample_rows: int = 100) -> ReferenceProfile:
    return ReferenceProfile.build(
        frame, window="", model_version="1", max_categories=50, sample_rows=sample_rows, seed=0
    )


LABELS = np.array(list("abcde"))


def world(rng: np.random.Generator, rows: int, correlation: float = 0.8) -> pd.DataFrame:
    """Five normal columns, the first two correlated, and one of five categories."""
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
    "shift 0.1": _shift(0.1),
    "shift 0.15": _shift(0.15),
    "shift 0.25": _shift(0.25),
    "shift 0.5": _shift(0.5),
    "scale x1.5": lambda rng, rows: world(rng, rows).assign(x3=lambda frame: frame["x3"] * 1.5),
    "10 % mixture": _mixture,
    "new category": _new_category,
    "correlation flip": lambda rng, rows: world(rng, rows, -0.8),
}


def power_table(rows: int, windows: int, seed: int, reference: int = 5000) -> pd.DataFrame:
    """Share of windows in which each drift is seen: rows are drifts, columns `info warning mmd`.

    `info` and `warning` are the severities of compare, or higher ones; `mmd` is its p below .01. One over a share is
    the expected number of windows until the first alarm.
    """
    rng = np.random.default_rng(seed)
    then = world(rng, reference)
    known = profile(then)
    table = {}
    for name, make in DRIFTS.items():
        seen = np.zeros(3)
        for window in range(windows):
            now = make(rng, rows)
            report = compare(known, now, name, SETTINGS)
            p = mmd(then, now, window, features=128).p
            seen += (report.severity != "none", report.drifted, p is not None and p < 0.01)
        table[name] = seen / windows
    return pd.DataFrame.from_dict(table, orient="index", columns=["info", "warning", "mmd"])


@pytest.mark.slow
def test_the_clear_drifts_are_found_and_the_quiet_windows_are_not() -> None:
    table = power_table(rows=1000, windows=12, seed=8)
    text = table.to_string()
    assert table.loc["none", "info"] <= 0.1, text
    assert table.loc["none", "warning"] == 0, text
    assert table.loc["none", "mmd"] <= 0.1, text
    for name in ("shift 0.25", "shift 0.5", "scale x1.5", "10 % mixture", "new category"):
        assert table.loc[name, "info"] >= 0.95, text
    for name in ("shift 0.5", "new category"):
        assert table.loc[name, "warning"] >= 0.95, text
    assert table.loc["shift 0.15", "info"] >= 0.4, text
    assert table.loc["correlation flip", "warning"] == 0, text  # no column moved
    assert table.loc["correlation flip", "mmd"] == 1, text


def test_a_correlation_flip_is_a_warning_of_the_rows_and_quiet_rows_are_none() -> None:
    rng = np.random.default_rng(9)
    known = profile(world(rng, 3000), sample_rows=3000)
    for correlation, expected in ((-0.8, "warning"), (0.8, "none")):
        tally = count(known, world(rng, 1000, correlation), sample_rows=1000, seed=0)
        report = compare_rows(known, tally.sample, compare(known, tally, "now", SETTINGS), SETTINGS)
        assert (report.severity, report.drifted_columns) == (expected, [])
