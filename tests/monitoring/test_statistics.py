"""The statistics against scipy's, against their definitions, and where an outlier or a tie would mislead them."""

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2_contingency, false_discovery_control, ks_2samp, wasserstein_distance

from monitoring import statistics
from monitoring.columns import NumericColumn

Values = npt.NDArray[np.float64]


def counted(then: Values, now: Values) -> tuple[statistics.Counts, statistics.Counts, Values]:
    column = NumericColumn.build(pd.Series(then))
    return column.counted.cells, column.count(pd.Series(now)).cells, np.array(column.edges)


def moved(then: Values, now: Values) -> float | None:
    reference, current, edges = counted(then, now)
    both = np.concatenate([then, now])
    return statistics.wasserstein(reference, current, edges, both.min(), both.max())


@pytest.mark.parametrize(
    ("reference", "current"), [([50, 30, 20], [40, 40, 30]), ([1000, 500, 10], [90, 70, 5]), ([5, 0, 9], [7, 0, 2])]
)
def test_chi_square_and_jensen_shannon_are_scipys(reference: list[int], current: list[int]) -> None:
    then, now = np.array(reference), np.array(current)
    filled = then + now > 0
    exact = chi2_contingency(np.stack([then, now])[:, filled], correction=False)
    assert statistics.chi_square_p(then, now) == pytest.approx(exact.pvalue, rel=1e-9)
    assert statistics.jensen_shannon(then, now) == pytest.approx(jensenshannon(then, now, base=2), rel=1e-9)


def test_the_ends_of_the_scales() -> None:
    one, other = np.array([9, 0]), np.array([0, 5])
    assert statistics.jensen_shannon(one, one) == 0
    assert statistics.jensen_shannon(one, other) == pytest.approx(1)
    assert statistics.chi_square_p(one, one) == 1
    assert statistics.chi_square_p(one, np.array([0, 0])) == 1
    assert statistics.ks_test(one, 3 * one) == (0, 1)
    distance, p_value = statistics.ks_test(one, other)
    assert distance == 1
    assert p_value < 0.01


def test_benjamini_hochberg_is_scipys() -> None:
    p_values = np.random.default_rng(1).random(30) ** 3
    assert statistics.benjamini_hochberg(list(p_values)) == pytest.approx(false_discovery_control(p_values))
    assert statistics.benjamini_hochberg([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert statistics.benjamini_hochberg([]) == []


@pytest.mark.parametrize("shift", [0.1, 0.5, 2.0])
def test_the_wasserstein_distance_is_scipys_in_standard_deviations(shift: float) -> None:
    rng = np.random.default_rng(2)
    then, now = 7 * rng.normal(size=20_000), 7 * (rng.normal(size=20_000) + shift)
    assert moved(then, now) == pytest.approx(
        wasserstein_distance(then, now) / 7, rel=0.06
    )  # what lies outside is spread


@pytest.mark.parametrize("rows", [100, 3000])
def test_one_outlier_neither_hides_nor_fakes_a_wasserstein_distance(rows: int) -> None:
    rng = np.random.default_rng(3)
    then, now = rng.normal(size=rows), rng.normal(size=rows)
    quiet = moved(then, now)
    assert quiet is not None
    for reference, current in (
        (np.append(then, 1e6), now),
        (then, np.append(now, 1e6)),
        (then, np.append(now, -1e300)),
    ):
        assert moved(reference, current) == pytest.approx(quiet, abs=0.07 if rows == 100 else 0.01)
        assert moved(reference, current + 1) == pytest.approx(1, abs=0.25)


def test_the_wasserstein_distance_of_the_largest_floats_and_of_one_bin_is_a_number_or_none() -> None:
    counts, moved, edges = np.array([300, 300]), np.array([0, 600]), np.array([-1.7e308])
    distance = statistics.wasserstein(counts, moved, edges, -1.7e308, 1e308)
    assert distance is not None
    assert 0 < distance < 2
    assert statistics.wasserstein(np.array([600]), np.array([600]), np.empty(0), 0.0, 1.0) is None


def test_the_wasserstein_distance_of_ties_and_constants() -> None:
    rng = np.random.default_rng(4)
    tied = np.where(rng.random(5000) < 0.8, 0.0, rng.exponential(size=5000))
    assert moved(tied, tied) == pytest.approx(0)
    far = moved(np.append(tied, 1e6), np.append(tied + 0.5, 1e6))
    assert far is not None
    assert 0.3 < far < 3
    assert moved(np.full(300, 5.0), np.full(300, 6.0)) is None
    assert moved(np.full(300, 0.0), np.full(300, 0.0)) is None


def test_ks_of_few_values_is_scipys() -> None:
    rng = np.random.default_rng(5)
    then, now = rng.poisson(9, 3000).astype(float), rng.poisson(9.4, 800).astype(float)
    reference, current, _ = counted(then, now)
    exact = ks_2samp(then, now, method="asymp")
    distance, p_value = statistics.ks_test(reference, current)
    assert distance == pytest.approx(exact.statistic, abs=1e-12)
    assert statistics.ks_p_value(distance, 3000, 800) == pytest.approx(exact.pvalue, rel=0.1)
    assert p_value < statistics.ks_p_value(distance, 3000, 800)  # the peak between the steps


def test_what_a_small_window_lacks_by_chance_is_no_reason_to_merge() -> None:
    reference, current = np.full(10, 7), np.array([1, 13, 2, 12, 1, 13, 2, 12, 7, 7])
    assert len(statistics.merge_bins(reference, current, 10)[0]) == 10
    gone = statistics.merge_bins(np.array([300, 0]), np.array([0, 300]), 10)
    assert [list(side) for side in gone] == [[300, 0], [0, 300]]
