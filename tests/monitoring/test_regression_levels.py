"""The tests behind a verdict hold the level that they state, and their bounds say what they decide."""

import numpy as np
import pytest
from numpy.random import Generator
from scipy import optimize, special, stats

from benchmarks.verdict_power import WORLDS, least_gained, missed, passes
from monitoring.calibration import calibration_error, calibration_gains
from monitoring.comparison import Comparison
from monitoring.judging_settings import LIKELIHOOD_BOUND, JudgingSettings
from monitoring.means import GROUPS, Gains, compare_means
from monitoring.proportions import compare_proportions, p_not_above, score
from monitoring.regression import Paired, Slice, judge

ALPHA = 0.05


# -- proportions, exactly ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "bar"), [(100, -0.05), (200, -0.02), (300, 0.0)])
def test_no_chance_of_a_row_to_change_lets_a_challenger_on_the_bar_pass_above_alpha(rows: int, bar: float) -> None:
    chances = np.concatenate([np.linspace(1e-4, 0.05, 60), np.linspace(0.05, 0.3, 20)]) - bar
    size = max(passes(rows, loss + bar, loss, bar) for loss in chances)
    assert size <= ALPHA
    assert size > 0.035, "and it is as large as the steps of counts allow"


@pytest.mark.parametrize(("rows", "bar"), [(35, 0.0), (245, 0.0), (89, -0.02), (80, -0.05)])
def test_not_even_where_nearly_all_rows_change_and_the_largest_chance_is_a_narrow_peak(rows: int, bar: float) -> None:
    chances = np.linspace(1e-4, (1 + bar) / 2 - 1e-4, 1500) - bar
    assert max(passes(rows, loss + bar, loss, bar) for loss in chances) <= ALPHA


def test_the_score_alone_passes_more_than_alpha_where_few_rows_change() -> None:
    assert passes(300, 0.0, 0.02, -0.02, exact=False) > 0.06
    assert passes(300, 0.0, 0.02, -0.02) <= ALPHA


@pytest.mark.parametrize("changed", [0.01, 0.02, 0.03, 0.04, 0.05])
def test_an_equal_challenger_passes_1000_rows_at_80_percent_or_more(changed: float) -> None:
    assert passes(1000, changed / 2, changed / 2, -0.02) >= 0.80


def test_the_p_value_is_the_largest_chance_of_an_as_extreme_table() -> None:
    rows, delta = 25, -0.1
    gained, lost = (each.ravel() for each in np.meshgrid(np.arange(rows + 1), np.arange(rows + 1), indexing="ij"))
    gained, lost = gained[gained + lost <= rows], lost[gained + lost <= rows]
    counts = np.stack([gained, lost, rows - gained - lost], axis=1)
    statistics = score(gained, lost, rows, delta)
    for seen_gained, seen_lost in ((2, 1), (0, 0), (1, 2), (5, 0), (0, 7)):
        seen = statistics[(gained == seen_gained) & (lost == seen_lost)]
        table = counts[statistics >= seen - 1e-9]
        chances = [
            stats.multinomial.pmf(table, rows, [q + delta, q, max(1 - 2 * q - delta, 0.0)]).sum()
            for q in np.linspace(0.1, 0.55, 300)
        ]
        assert p_not_above(seen_gained, seen_lost, rows, delta) == pytest.approx(max(chances), rel=0.01)


def test_passing_needs_no_fewer_gains_the_more_is_lost() -> None:
    needed = least_gained(500, -0.02, 60)
    assert (np.diff(needed) >= 0).all()
    assert needed[0] == 0


@pytest.mark.parametrize("bar", [-0.02, -0.05, 0.0])
def test_the_lower_bound_is_above_the_bar_exactly_where_the_test_passes(bar: float) -> None:
    rng = np.random.default_rng(1)
    for _ in range(60):
        rows = int(rng.integers(50, 3000))
        gained, lost = (int(rng.binomial(rows, share)) for share in rng.uniform(0, 0.05, 2))
        found = compare_proportions(gained, lost, rows, bar, ALPHA)
        assert found.p_value <= ALPHA if found.lower > bar else found.p_value > ALPHA or found.lower == bar
        assert (found.upper < 0) == (found.p_worse <= ALPHA)
        assert -1 <= found.lower <= found.gain <= found.upper <= 1


def test_bounds_are_where_the_test_turns() -> None:
    for gained, lost, rows in ((12, 5, 200), (0, 7, 150), (40, 41, 300), (3, 0, 100)):
        found = compare_proportions(gained, lost, rows, 0.0, ALPHA)
        assert (
            p_not_above(gained, lost, rows, found.lower) <= ALPHA < p_not_above(gained, lost, rows, found.lower + 1e-3)
        )
        assert p_not_above(lost, gained, rows, -found.upper) <= ALPHA


def test_from_1000_changed_rows_on_the_score_is_exact_enough() -> None:
    exact, tango = p_not_above(480, 515, 10_000, -0.008), p_not_above(481, 520, 10_000, -0.0083)
    assert exact == pytest.approx(tango, abs=0.01), "no step where one takes over from the other"
    at = float(stats.norm.sf(score(np.array([480]), np.array([515]), 10_000, -0.008)[0]))
    assert exact == pytest.approx(at, abs=0.002)


def test_the_statistic_of_no_difference_is_mcnemars_and_of_others_has_the_likeliest_share() -> None:
    assert score(np.array([12]), np.array([5]), 200, 0.0)[0] == pytest.approx((12 - 5) / 17**0.5)
    for gained, lost, rows, delta in ((12, 5, 200, -0.02), (0, 7, 150, 0.03), (40, 41, 300, -0.1)):

        def unlikely(q: float, counts: tuple[int, int, int, float] = (gained, lost, rows, delta)) -> float:
            more, fewer, whole, by = counts
            return -float(
                np.sum(special.xlogy(np.array([more, fewer, whole - more - fewer]), [q + by, q, 1 - 2 * q - by]))
            )

        bounds = (max(0.0, -delta), (1 - delta) / 2)
        q = optimize.minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        expected = (gained - lost - rows * delta) / np.sqrt(rows * (2 * q + delta - delta**2))
        assert score(np.array([gained]), np.array([lost]), rows, delta)[0] == pytest.approx(expected, abs=1e-3)


def test_models_that_agree_on_all_rows_pass_from_149_rows_on() -> None:
    passed = [compare_proportions(0, 0, rows, -0.02, ALPHA).p_value <= ALPHA for rows in (148, 149)]
    assert passed == [False, True], "0.98^149 < 0.05: fewer may have missed a loss of 2 %"


# -- means, by simulation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", list(WORLDS))
@pytest.mark.parametrize("rows", [100, 300, 1500])
def test_each_bound_of_a_mean_misses_the_truth_at_most_at_its_level(world: str, rows: int) -> None:
    runs = 500
    lower, upper = missed(world, rows, runs, resamples=1000)["ours"]
    slack = 3 * (ALPHA * (1 - ALPHA) / runs) ** 0.5
    assert lower <= ALPHA + slack
    assert upper <= ALPHA + slack


@pytest.mark.slow
@pytest.mark.parametrize("world", list(WORLDS))
@pytest.mark.parametrize("rows", [100, 200, 500, 1000, 2000])
def test_each_bound_of_a_mean_misses_the_truth_at_most_at_its_level_in_many_runs(world: str, rows: int) -> None:
    lower, upper = missed(world, rows, 3000)["ours"]
    slack = 3 * (ALPHA * (1 - ALPHA) / 3000) ** 0.5
    assert lower <= ALPHA + slack
    assert upper <= ALPHA + slack


def test_students_t_would_miss_rare_losses_far_more_often() -> None:
    found = missed("rare losses", 100, 500, resamples=500)
    assert found["Student's t"][0] > 0.1
    assert found["ours"][0] <= 0.05


@pytest.mark.parametrize(("chance", "nats", "rows"), [(0.01, 5, 100), (0.005, 10, 300), (0.005, 10, 600)])
def test_a_loss_of_the_margin_that_few_rows_carry_passes_at_most_at_alpha(chance: float, nats: int, rows: int) -> None:
    rng, runs = np.random.default_rng(rows), 300
    settings = JudgingSettings(gates=("negative_log_likelihood=0.05",), resamples=1000)
    passed = 0
    for _ in range(runs):
        paired = Paired(np.full(rows, 0.3), 0.3 + nats * (rng.random(rows) < chance))
        passed += judge({"old": Slice("old", {"negative_log_likelihood": paired})}, settings).outcome == "pass"
    assert passed / runs <= ALPHA + 3 * (ALPHA * (1 - ALPHA) / runs) ** 0.5


def test_an_equal_challenger_passes_1000_rows_of_likelihoods() -> None:
    rng = np.random.default_rng(5)
    gains = {str(run): Gains(rng.laplace(0, 0.2, 1000), LIKELIHOOD_BOUND) for run in range(200)}
    assert np.mean([one.lower > -0.05 for one in together(gains, -0.05)]) > 0.8


def test_rows_that_lose_all_they_can_are_missed_by_no_fewer_rows_than_the_rule_of_three_asks_for() -> None:
    fewest = int(np.ceil(np.log(ALPHA) / np.log1p(-0.05 / LIKELIHOOD_BOUND)))
    for rows in (300, fewest - 1, fewest):
        found = compare_means({"x": Gains(np.full(rows, 0.0), LIKELIHOOD_BOUND)}, {"x": -0.05}, ALPHA, 500, 0)["x"]
        assert (found.lower > -0.05) == (found.p_value <= ALPHA) == (rows == fewest)


def means(values: np.ndarray, bar: float = 0.0, reach: float = 1.0) -> tuple[float, float, float]:
    found = compare_means({"x": Gains(values, reach)}, {"x": bar}, ALPHA, 2000, 0)["x"]
    assert (found.lower > bar) == (found.p_value <= ALPHA)
    return found.lower, found.upper, found.p_value


def together(gains: dict[str, Gains], bar: float) -> list[Comparison]:
    """Comparisons of many simulated slices, which share their resamples."""
    return list(compare_means(gains, dict.fromkeys(gains, bar), ALPHA, 1000, 0).values())


def test_an_equal_challenger_passes_1000_rows_of_overlaps() -> None:
    rng = np.random.default_rng(5)
    gains = {str(run): np.where(rng.random(1000) < 0.1, rng.uniform(-1, 1, 1000), 0.0) for run in range(300)}
    assert (
        np.mean([one.lower > -0.02 for one in together({run: Gains(x, 1.0) for run, x in gains.items()}, -0.02)]) > 0.8
    )


def test_bounds_of_many_even_rows_are_students() -> None:
    values = np.random.default_rng(8).normal(0.01, 0.2, 5000)
    test = stats.ttest_1samp(values, 0.0)
    interval = test.confidence_interval(0.90)
    assert means(values)[:2] == pytest.approx((interval.low, interval.high), abs=4e-4)


def test_groups_of_rows_give_the_bounds_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    values = -np.random.default_rng(9).lognormal(0, 1, 4 * GROUPS)
    grouped = means(values, reach=float(-values.min()))
    monkeypatch.setattr("monitoring.means.GROUPS", 10**6)
    whole = means(values, reach=float(-values.min()))
    assert grouped[:2] == pytest.approx(whole[:2], abs=0.15 * values.std() / len(values) ** 0.5)


def test_equal_scores_differ_by_exactly_nothing_and_bounds_never_leave_the_scale() -> None:
    assert means(np.zeros(200), reach=0.0) == (0.0, 0.0, 1.0)
    lower, upper, p = means(np.zeros(100), -0.02)
    assert lower == pytest.approx(-0.0295, abs=1e-4), "0.0295 of rows are missed by 100 with chance 0.05"
    assert (0.01 < upper < 0.03, p > ALPHA) == (True, True)
    assert means(np.zeros(1000), -0.02)[0] > -0.02
    lower, upper, _ = means(np.array([-1.0, 1.0]))
    assert -1 <= lower <= upper <= 1


def test_the_same_seed_gives_the_same_bounds_whatever_other_metrics_there_are_for_the_same_rows() -> None:
    values = np.random.default_rng(3).normal(size=500)
    alone = compare_means({"x": Gains(values, 1.0)}, {"x": 0.0}, ALPHA, 500, 4)["x"]
    both = compare_means({"y": Gains(-values, 1.0), "x": Gains(values, 1.0)}, {"x": 0.0, "y": 0.0}, ALPHA, 500, 4)["x"]
    assert (alone.lower, alone.upper, alone.p_value) == pytest.approx((both.lower, both.upper, both.p_value))


def test_p_values_of_what_no_resample_shows_are_small_enough_for_many_slices() -> None:
    values = np.random.default_rng(3).normal(-0.5, 1, 1000)
    found = compare_means({"x": Gains(values, 1.0)}, {"x": 0.0}, ALPHA, 500, 4)["x"]
    assert found.p_worse < 1e-8


# -- calibration ------------------------------------------------------------------------------------------------------


def answers(rng: Generator, rows: int, before: float, after: float) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and correctness of two models that say too much by so much, and answer alike on most rows."""
    chance, luck = rng.beta(5, 2, rows), rng.random(rows)
    other = np.where(rng.random(rows) < 0.1, rng.random(rows), luck)
    sides = ((before, luck), (after, other))
    first, second = (np.stack([np.clip(chance + by, 0, 1), got < chance], axis=1) for by, got in sides)
    return first, second


def test_the_calibration_error_is_the_weighted_gap_of_ten_bins() -> None:
    first, _ = answers(np.random.default_rng(0), 1000, 0.1, 0.0)
    parts = np.array_split(first[np.argsort(first[:, 0], kind="stable")], 10)
    expected = np.mean([abs(part[:, 0].mean() - part[:, 1].mean()) for part in parts])
    assert calibration_error(first) == pytest.approx(expected, abs=1e-3)
    assert calibration_error(np.array([[1.0, 1.0]] * 50)) == 0
    assert calibration_error(np.array([[1.0, 0.0]] * 50)) == 1


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.02), (0.05, 0.07), (-0.03, 0.05), (0.0, 0.0)])
@pytest.mark.parametrize("rows", [300, 3000])
def test_bounds_of_the_calibration_error_miss_the_truth_at_most_at_their_level(
    before: float, after: float, rows: int
) -> None:
    rng, runs = np.random.default_rng(5), 200
    large = answers(rng, 1_000_000, before, after)
    truth = calibration_error(large[0]) - calibration_error(large[1])
    found = together({str(run): calibration_gains(*answers(rng, rows, before, after)) for run in range(runs)}, truth)
    limit = ALPHA + 3 * (ALPHA * (1 - ALPHA) / runs) ** 0.5
    assert np.mean([one.lower > truth for one in found]) <= limit
    assert np.mean([one.upper < truth for one in found]) <= limit


def test_without_the_allowance_for_its_bias_a_worse_calibrated_challenger_would_look_as_good() -> None:
    rng = np.random.default_rng(6)
    gains = [calibration_gains(*answers(rng, 1000, 0.0, 0.02)) for _ in range(200)]
    assert np.mean([one.values.mean() for one in gains]) > -0.006, "in truth it is 0.019 worse"
    assert np.mean([one.values.mean() - one.over for one in gains]) < -0.019


def test_bounds_of_the_calibration_error_stay_on_its_scale() -> None:
    wrong, right = np.tile([1.0, 0.0], (100, 1)), np.tile([1.0, 1.0], (100, 1))
    (worse,) = together({"x": calibration_gains(right, wrong)}, -0.02)
    (better,) = together({"x": calibration_gains(wrong, right)}, -0.02)
    assert (worse.lower, better.upper) == (-1.0, 1.0)


def test_equal_calibration_of_20000_rows_is_shown() -> None:
    rng = np.random.default_rng(7)
    found = together({str(run): calibration_gains(*answers(rng, 20_000, 0.0, 0.0)) for run in range(20)}, -0.02)
    assert np.mean([one.lower > -0.02 for one in found]) >= 0.8
