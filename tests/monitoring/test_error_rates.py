"""The error rates that the drift statistics promise, by simulation with fixed seeds.

No drift: reference and window are drawn from the same distribution, independently, each time anew: normal,
heavy-tailed (Student's t with 2 degrees of freedom), discrete (Poisson), tied (80 % zeros) and 30 % missing, at n rows
of each side and against a reference of 5,000. Counted is how often psi_p and ks_p fall below 5 %. A rate counts as
outside 0.8-1.3 times nominal only when its 99 % binomial interval is: the simulation's own noise fails no test.
Those simulations count columns and call the statistics as `compare` does, which they are tested to agree with, but
without its report: thousands of repetitions would take minutes. Whole windows of many columns, and policies over days
of them, go through `compare`, `compare_rows` and `decide`, in the simulation that `benchmarks.false_alarms` reports.
With drift: how often the PSI's lower bound is below the true PSI, and how soon each kind of drift is found
(`benchmarks.power`).
"""

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from scipy.stats import beta, ks_2samp, norm

from benchmarks import false_alarms, power
from benchmarks.power import world
from monitoring import statistics
from monitoring.columns import CategoricalColumn, Counted, NumericColumn, merged
from monitoring.drift import compare, compare_rows
from monitoring.drift_report import DriftReport
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


def check_at_most(nominal: float, alarms: pd.Series, said: str) -> None:
    """A rate may be above nominal by no more than its 99 % interval allows for."""
    low, _ = interval(int(alarms.sum()), len(alarms))
    assert low <= nominal, f"{said}: {alarms.mean():.4f}, nominal {nominal:g}"


def check_windows(reference: int, rows: int, repetitions: int, level: float) -> None:
    """Any of 13 columns, whole rows and both together are at info, and at warning, no more often than nominal."""
    settings = DriftSettings(info_alpha=level)
    shown = false_alarms.windows(reference, rows, repetitions, seed=10, settings=settings)
    for name in shown:
        nominal = settings.alpha if name == "report at warning" else level
        check_at_most(nominal, shown[name], f"{name}, {reference} x {rows}")


def test_a_window_of_13_columns_alarms_no_more_often_than_one_test_would() -> None:
    """At a level of .05 for info, where few windows tell more."""
    check_windows(300, 300, 80, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reference", "rows", "repetitions", "level"),
    [
        (100, 100, 400, 0.05),
        (300, 300, 300, 0.05),
        (1000, 1000, 250, 0.05),
        (5000, 300, 250, 0.01),
        (10_000, 10_000, 80, 0.05),
    ],
)
def test_windows_of_13_columns_alarm_no_more_often_than_one_test_would_at_every_size(
    reference: int, rows: int, repetitions: int, level: float
) -> None:
    check_windows(reference, rows, repetitions, level)


@pytest.mark.slow
@pytest.mark.parametrize("reference", [300, 5000])
def test_small_windows_of_many_columns_are_at_warning_no_more_often_than_alpha(reference: int) -> None:
    """Where PSI's own tail is too light and two families of tests were each held at the level: .024 of windows."""
    rng, settings, alarms = np.random.default_rng(11), DriftSettings(), []
    for _ in range(20):
        known = profile(pd.DataFrame(rng.normal(size=(reference, 25))))
        windows = (pd.DataFrame(rng.normal(size=(100, 25))) for _ in range(50))
        alarms += [compare(known, window, "now", settings).drifted for window in windows]
    assert np.mean(alarms) <= 0.016, "1,000 windows: far from .024"


@pytest.mark.parametrize(("reference", "rows"), [(1000, 10_000), (5000, 300), (300, 300)])
def test_many_uneven_categories_alarm_at_their_level(reference: int, rows: int) -> None:
    """Fifty categories of Zipf's law: the smaller side must not choose by its own noise what is rare."""
    rng = np.random.default_rng(12)
    names, weights = np.array([f"c{i}" for i in range(50)], object), 1 / np.arange(1, 51)
    weights = weights / weights.sum()
    hits, repetitions = 0, 1000
    for seed in range(repetitions):
        column = CategoricalColumn.build(pd.Series(rng.choice(names, reference, p=weights)), 50, seed)
        cells = dict(zip(names, rng.multinomial(rows, weights), strict=True))
        kept = np.array([cells.pop(name) for name in column.counts] + [sum(cells.values())])
        hits += statistics.chi_square_p(*merged(column, column.counted, Counted(kept, 0), 10)) < 0.05
    low, _ = interval(hits, repetitions)
    assert low <= 0.05 * 1.3, hits / repetitions


def check_policies(reference: int, rows: int, years: int, days: int) -> None:
    """Shares of windows that trigger, over short years with a reference each: at most nominal, by 99 % of years."""
    settings = DriftSettings(info_alpha=NOMINAL)
    shares = pd.DataFrame(
        [false_alarms.year(reference, rows, seed, settings, days=days).mean() for seed in range(years)]
    )
    for name in shares:
        nominal = NOMINAL if "info" in str(name) else settings.alpha
        # The windows of a year share a reference, so years are what is independent.
        reach = norm.ppf(0.99) * shares[name].std() / np.sqrt(years)
        assert shares[name].mean() - reach <= nominal, f"{name}, {reference} x {rows}: {shares[name].mean():.4f}"
    assert shares["info"].mean() > shares["info, 2 of 3"].mean(), shares.mean()
    assert (shares["info"] > 0).any(), "no window of any year was at info: nothing was tested"


def test_policies_debounced_or_not_trigger_no_more_often_than_their_level_without_drift() -> None:
    check_policies(1000, 300, years=20, days=12)


@pytest.mark.slow
@pytest.mark.parametrize(("reference", "rows"), [(300, 300), (5000, 1000), (5000, 10_000)])
def test_policies_trigger_no_more_often_than_their_level_without_drift_at_every_size(reference: int, rows: int) -> None:
    check_policies(reference, rows, years=30, days=20)


def test_an_effect_that_is_large_by_chance_in_a_small_window_is_no_warning() -> None:
    """100 rows and 40 columns: in some windows a lower bound of PSI reaches the threshold, for want of a correction."""
    rng, reports = np.random.default_rng(12), []
    for _ in range(40):
        then, now = (pd.DataFrame(rng.normal(size=(100, 40))) for _ in range(2))
        reports.append(compare(profile(then), now, "now", SETTINGS))
    large = [any((column.psi_lower or 0) >= SETTINGS.psi_bound for column in report.columns) for report in reports]
    assert any(by_chance and not report.drifted for by_chance, report in zip(large, reports, strict=True))
    check_at_most(SETTINGS.alpha, pd.Series([report.drifted for report in reports]), "40 columns, 100 x 100")


def test_columns_and_rows_are_two_tests_that_are_corrected_together() -> None:
    rng = np.random.default_rng(13)
    known = profile(world(rng, 1000), sample_rows=300)
    tally = count(known, world(rng, 1000), sample_rows=300, seed=0)
    quiet = compare(known, tally, "now", SETTINGS)

    def after(p: float) -> DriftReport:
        first = quiet.columns[0].model_copy(update={"p_adjusted": p, "severity": "info"})
        others = [column.model_copy(update={"p_adjusted": 1.0}) for column in quiet.columns[1:]]
        return compare_rows(known, tally.sample, quiet.model_copy(update={"columns": [first, *others]}), SETTINGS)

    assert after(0.004).severity == "info"
    taken_back = after(0.006)
    assert taken_back.severity == "none"
    assert taken_back.columns[0].why == "adjusted p 0.006, not significant with whole rows tested too"


def firsts(name: str, rows: int = 1000, windows: int = 6, runs: int = 4) -> list[power.First]:
    return [power.until_alarm(name, rows, windows, seed) for seed in range(runs)]


@pytest.mark.slow
def test_the_clear_drifts_are_found_at_once_and_the_quiet_windows_are_not() -> None:
    for name in ("shift 0.25 sd", "shift 0.5 sd", "scale x1.5", "10 % mixture", "new category", "correlation flip"):
        assert [info for info, _ in firsts(name)] == [1] * 4, name
    for name in ("shift 0.5 sd", "scale x1.5", "new category", "correlation flip"):
        assert [warning for _, warning in firsts(name)] == [1] * 4, name
    assert all(info is not None for info, _ in firsts("shift 0.15 sd"))
    for name in ("none", "shift 0.1 sd"):  # significant sooner or later, but too small a change to warn of
        assert [warning for _, warning in firsts(name)] == [None] * 4, name
    assert sum(info is not None for info, _ in firsts("none")) <= 1


def test_windows_until_alarm_are_told_with_the_runs_that_had_none() -> None:
    assert power.until([1, 2, 2], 20) == "1.7"
    assert power.until([3, None, 5], 20) == "14.0", "28 windows for two alarms"
    assert power.until([None, None], 20) == "none in 40"


def test_a_correlation_flip_is_a_warning_of_the_rows_and_quiet_rows_are_none() -> None:
    rng = np.random.default_rng(9)
    known = profile(world(rng, 3000), sample_rows=3000)
    for correlation, expected in ((-0.8, "warning"), (0.8, "none")):
        tally = count(known, world(rng, 1000, correlation), sample_rows=1000, seed=0)
        report = compare_rows(known, tally.sample, compare(known, tally, "now", SETTINGS), SETTINGS)
        assert (report.severity, report.drifted_columns) == (expected, [])
