from functools import cache

import numpy as np
import pytest
from numpy.random import Generator
from scipy import optimize, special, stats

from monitoring.errors import InputError
from monitoring.regression import Check, Comparison, Slice, compare, compare_proportions, judge
from monitoring.settings import JudgingSettings

SETTINGS = JudgingSettings()
RUNS = 4000
ERROR = 3 * (0.05 * 0.95 / RUNS) ** 0.5  # three standard errors of a simulated level of 5 %


@cache
def compared(gained: int, lost: int, rows: int, bar: float) -> Comparison:
    return compare_proportions(gained, lost, rows, bar, SETTINGS.alpha)


def drawn(seed: int, rows: int, gain: float, loss: float, bar: float = 0.0) -> list[Comparison]:
    """Comparisons of simulated slices in which a row is gained or lost with these probabilities."""
    counts = np.random.default_rng(seed).multinomial(rows, [gain, loss, 1 - gain - loss], size=RUNS)
    return [compared(int(gained), int(lost), rows, bar) for gained, lost, _ in counts]


def scores(gained: int, lost: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """0/1 scores of champion and challenger; of the rows on which they agree every other one is right."""
    champion = np.arange(rows) % 2
    challenger = champion.copy()
    challenger[np.flatnonzero(champion == 0)[:gained]] = 1
    challenger[np.flatnonzero(champion == 1)[:lost]] = 0
    return champion, challenger


def check(gained: int, lost: int, rows: int, kind: str) -> Check:
    verdict = judge({kind: Slice(*scores(gained, lost, rows), kind)}, SETTINGS)  # type: ignore[arg-type]
    assert verdict.outcome == verdict.checks[0].outcome
    return verdict.checks[0]


# -- levels and power, by simulation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "discordant"), [(200, 0.05), (200, 0.12), (1000, 0.03), (1000, 0.05), (1000, 0.15)])
def test_a_challenger_that_is_worse_by_the_margin_passes_an_old_slice_at_most_at_alpha(
    rows: int, discordant: float
) -> None:
    found = drawn(1, rows, (discordant - 0.02) / 2, (discordant + 0.02) / 2)
    assert np.mean([one.lower > -0.02 for one in found]) <= SETTINGS.alpha + ERROR


def test_an_equal_challenger_passes_an_old_slice_of_1000_rows_at_80_percent() -> None:
    found = drawn(2, 1000, 0.025, 0.025)
    assert np.mean([one.lower > -0.02 for one in found]) >= 0.80


@pytest.mark.parametrize(("rows", "discordant"), [(100, 0.05), (200, 0.2), (1000, 0.01), (1000, 0.1)])
def test_an_equal_challenger_is_called_better_or_worse_at_most_at_alpha_each(rows: int, discordant: float) -> None:
    found = drawn(3, rows, discordant / 2, discordant / 2)
    assert np.mean([one.lower > 0 for one in found]) <= SETTINGS.alpha + ERROR
    assert np.mean([one.upper < 0 for one in found]) <= SETTINGS.alpha + ERROR


def test_a_gain_of_5_points_is_seen_on_500_rows() -> None:
    found = drawn(4, 500, 0.10, 0.05)
    assert np.mean([one.lower > 0 for one in found]) >= 0.80


@pytest.mark.parametrize(("rows", "gain", "loss"), [(100, 0.02, 0.08), (300, 0.08, 0.03), (1000, 0.01, 0.02)])
def test_each_bound_covers_the_true_difference_at_its_level(rows: int, gain: float, loss: float) -> None:
    slack = 0.02 if rows == 100 else 0.01  # counts are discrete: 2 gains of 100 rows miss at 6.5 %, not 5 %
    found = drawn(5, rows, gain, loss)
    assert np.mean([one.lower <= gain - loss for one in found]) >= 1 - SETTINGS.alpha - slack
    assert np.mean([one.upper >= gain - loss for one in found]) >= 1 - SETTINGS.alpha - slack


def test_each_bound_of_float_scores_covers_the_true_difference_at_its_level() -> None:
    random = np.random.default_rng(6)
    found = [compare(*float_scores(random, 150, -0.02), 0.0, SETTINGS.alpha) for _ in range(RUNS // 4)]
    for missed in ([one.lower > -0.02 for one in found], [one.upper < -0.02 for one in found]):
        assert abs(np.mean(missed) - SETTINGS.alpha) <= 2 * ERROR


def float_scores(random: Generator, rows: int, difference: float) -> tuple[np.ndarray, np.ndarray]:
    champion = random.beta(5, 2, rows)
    return champion, champion + random.laplace(difference, 0.1, rows)


def test_the_rows_asked_for_do_decide_at_about_the_power_named() -> None:
    inconclusive = check(6, 6, 200, "old")
    assert inconclusive.outcome == "inconclusive"
    needed = int(inconclusive.why.split("about ")[1].split(" rows")[0])
    share = np.mean([one.lower > -0.02 for one in drawn(7, needed, 0.03, 0.03)])
    assert 0.7 <= share <= 0.9


# -- the interval itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gained", "lost", "rows"), [(12, 5, 200), (0, 7, 150), (40, 41, 300), (3, 0, 100)])
def test_bounds_are_where_the_score_with_the_likeliest_share_reaches_z(gained: int, lost: int, rows: int) -> None:
    found = compared(gained, lost, rows, 0.0)
    z = stats.norm.ppf(0.95)
    for delta, sign in ((found.lower, 1), (found.upper, -1)):

        def unlikely(q: float, delta: float = delta) -> float:
            cells = np.array([q + delta, q, 1 - 2 * q - delta])  # gained, lost, the rest
            return -float(np.sum(special.xlogy(np.array([gained, lost, rows - gained - lost]), cells)))

        lowest, highest = max(0.0, -delta), (1 - delta) / 2
        q = optimize.minimize_scalar(unlikely, bounds=(lowest, highest), method="bounded", options={"xatol": 1e-12}).x
        score = (gained - lost - rows * delta) / np.sqrt(rows * (2 * q + delta - delta**2))
        assert score == pytest.approx(sign * z, abs=1e-3)


def test_the_statistic_of_no_difference_is_mcnemars() -> None:
    assert compared(12, 5, 200, 0.0).statistic == pytest.approx((12 - 5) / 17**0.5)


@pytest.mark.parametrize("rows", [2, 100, 5000])
def test_models_that_agree_on_all_rows_differ_by_nothing_within_a_narrow_interval(rows: int) -> None:
    found = compared(0, 0, rows, -0.02)
    z2 = stats.norm.ppf(0.95) ** 2
    assert found.difference == 0
    assert found.upper == pytest.approx(z2 / (rows + z2))
    assert found.lower == pytest.approx(-found.upper)


def test_bounds_stay_between_minus_one_and_one() -> None:
    worst, best = compared(0, 100, 100, 0.0), compared(100, 0, 100, 0.0)
    assert worst.lower == best.upper * -1 == -1.0
    assert -1 < worst.upper < -0.9


def test_float_scores_get_the_paired_t_interval() -> None:
    champion, challenger = float_scores(np.random.default_rng(8), 120, 0.01)
    found = compare(champion, challenger, 0.0, 0.05)
    test = stats.ttest_rel(challenger, champion)
    lower, upper = test.confidence_interval(0.90)
    assert (found.lower, found.upper, found.statistic) == pytest.approx((lower, upper, test.statistic))


def test_equal_float_scores_differ_by_exactly_nothing() -> None:
    same = np.linspace(-1, 1, 200)
    assert compare(same, same, 0.0, 0.05) == Comparison(0.0, 0.0, 0.0, 0.0)
    verdict = judge({"old": Slice(same, same, "old"), "fresh": Slice(same, same, "fresh")}, SETTINGS)
    assert [one.outcome for one in verdict.checks] == ["pass", "inconclusive"]


# -- decisions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gained", "lost", "kind", "outcome"),
    [
        (100, 50, "fresh", "pass"),
        (50, 50, "fresh", "inconclusive"),
        (30, 70, "fresh", "fail"),
        (25, 25, "old", "pass"),
        (60, 75, "old", "inconclusive"),
        (20, 70, "old", "fail"),
    ],
)
def test_a_slice_passes_fails_or_stays_open_by_its_bounds(gained: int, lost: int, kind: str, outcome: str) -> None:
    found = check(gained, lost, 1000, kind)
    assert found.outcome == outcome
    assert found.rows == 1000
    assert found.margin == (0.02 if kind == "old" else 0.0)
    assert found.champion == 0.5
    assert found.challenger == pytest.approx(0.5 + (gained - lost) / 1000)
    assert found.difference == pytest.approx((gained - lost) / 1000)


def test_a_slice_with_too_few_rows_stays_open_however_clear_it_is_and_says_how_many_are_missing() -> None:
    found = check(0, 30, 60, "old")
    assert found.outcome == "inconclusive"
    assert "60 held-out rows, 40 more are needed (judging.min_rows = 100)" in found.why
    for rows in (0, 1):
        lone = judge({"old": Slice(np.ones(rows), np.ones(rows), "old")}, SETTINGS).checks[0]
        assert (lone.outcome, lone.lower, lone.upper) == ("inconclusive", None, None)


def test_agreement_on_too_few_rows_for_the_margin_asks_for_more() -> None:
    found = check(0, 0, 110, "old")  # even without a single loss, 2 % more losses are possible
    assert found.outcome == "inconclusive"
    assert "about 303 rows like these would decide" in found.why


def test_a_difference_on_the_bound_is_said_to_be_undecidable() -> None:
    assert "would not decide" in check(50, 50, 1000, "fresh").why


def test_any_failure_fails_and_its_slice_and_numbers_are_the_reason() -> None:
    slices = {
        "fresh 2016": Slice(*scores(100, 50, 1000), "fresh"),
        "old 2012": Slice(*scores(60, 75, 1000), "old"),
        "old 2010": Slice(*scores(20, 70, 1000), "old"),
    }
    verdict = judge(slices, SETTINGS)
    assert [one.outcome for one in verdict.checks] == ["pass", "inconclusive", "fail"]
    assert verdict.outcome == "fail"
    assert verdict.reason.startswith("old 2010: challenger - champion = -0.0500 on 1000 rows")
    del slices["old 2010"]
    verdict = judge(slices, SETTINGS)
    assert verdict.outcome == "inconclusive"
    assert verdict.reason.startswith("old 2012: ")
    del slices["old 2012"]
    verdict = judge(slices, SETTINGS)
    assert verdict.outcome == "pass"
    assert verdict.reason.startswith("fresh 2016: challenger - champion = +0.0500")


def test_a_verdict_survives_json() -> None:
    verdict = judge({"old": Slice([1.0], [0.0], "old"), "fresh": Slice(*scores(9, 2, 150), "fresh")}, SETTINGS)
    assert type(verdict).model_validate_json(verdict.model_dump_json()) == verdict


def test_scores_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(InputError, match="no slice to judge"):
        judge({}, SETTINGS)
    with pytest.raises(InputError, match=r"'old' has \(3,\) scores of the champion and \(2,\)"):
        judge({"old": Slice([1, 0, 1], [1, 0], "old")}, SETTINGS)
    with pytest.raises(InputError, match="'old': 1 exact_match scores of the challenger are no finite"):
        judge({"old": Slice([1, 0, 1], [1, 0, float("nan")], "old")}, SETTINGS)
    with pytest.raises(InputError, match="of kind 'new'"):
        judge({"x": Slice([1, 0, 1], [1, 0, 1], "new")}, SETTINGS)  # type: ignore[arg-type]
