"""Fairness over segments, a gate that settings turn on."""

import sys

import numpy as np
import pytest

from monitoring.errors import InputError
from monitoring.fairness import Fairness, fairness
from monitoring.judging_settings import JudgingSettings
from monitoring.regression import Paired, Slice, Verdict, judge

ON = JudgingSettings(fairness=True)


def segment(name: str, champion: float, challenger: float, rows: int = 2000) -> tuple[str, Slice]:
    """A segment in which the models are right so often; they differ on as few rows as that takes."""
    at = (np.arange(rows) + 0.5) / rows
    scores = Paired((at < champion).astype(float), (at < challenger).astype(float))
    return f"meta_lang = {name}", Slice("segment", {"exact_match": scores}, "meta_lang")


def verdict(*segments: tuple[str, Slice], settings: JudgingSettings = ON) -> Verdict:
    return judge(dict(segments), settings)


def test_even_segments_pass_and_worst_and_gap_are_told() -> None:
    found = verdict(segment("de", 0.70, 0.71), segment("en", 0.75, 0.75), segment("fr", 0.72, 0.72))
    (fair,) = found.fairness
    assert (found.outcome, fair.outcome, fair.segments, fair.worst) == ("pass", "pass", 3, "meta_lang = de")
    assert (fair.challenger_gap, fair.champion_gap) == pytest.approx((0.04, 0.05))
    assert (fair.champion_worst, fair.challenger_worst, fair.worst_change) == pytest.approx((0.70, 0.71, 0.01))
    assert fair.challenger_gap < fair.gap_upper < 0.1


def test_a_gap_that_grew_beyond_what_is_accepted_fails_though_no_segment_lost_anything() -> None:
    segments = [segment("de", 0.70, 0.70), segment("en", 0.75, 0.95)]
    found = verdict(*segments)
    assert (found.outcome, [one.outcome for one in found.checks]) == ("fail", ["pass", "pass"])
    assert found.reason.startswith(
        "fairness over meta_lang, exact_match: the gap between best and worst segment is 0.25"
    )
    assert verdict(*segments, settings=JudgingSettings()).outcome == "pass", "off unless it is turned on"


def test_a_worst_segment_that_sinks_fails() -> None:
    found = verdict(
        segment("de", 0.70, 0.55),
        segment("en", 0.65, 0.65),
        settings=JudgingSettings(fairness=True, gates=("exact_match=0.01",)),
    )
    (fair,) = found.fairness
    assert fair.worst_change == pytest.approx(-0.10)
    assert fair.outcome == "fail"


def test_a_gap_that_chance_may_have_made_stays_open() -> None:
    found = verdict(segment("de", 0.70, 0.70, 300), segment("en", 0.79, 0.79, 300))
    assert (found.outcome, found.fairness[0].outcome) == ("inconclusive", "inconclusive")


def test_without_two_segments_there_is_nothing_to_be_fair_over_and_it_says_so() -> None:
    found = verdict(segment("de", 0.7, 0.7), segment("en", 0.7, 0.7, 200))
    assert (found.outcome, [one.outcome for one in found.fairness]) == ("inconclusive", ["inconclusive"])
    assert "no meta_ column has two segments" in found.reason
    assert type(found).model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("known", [0, 1, 299])
def test_segments_with_too_few_rows_of_the_metric_itself_are_left_out_and_named(known: int) -> None:
    def agreeing(name: str, rows: int) -> tuple[str, Slice]:
        label, part = segment(name, 0.7, 0.7)
        agreement = part.scores["exact_match"].of(np.arange(2000) < rows)
        return label, Slice("segment", {**part.scores, "teacher_agreement": agreement}, "meta_lang")

    settings = JudgingSettings(fairness=True, gates=("exact_match", "teacher_agreement"))
    parts = [agreeing("de", 2000), agreeing("en", 2000), agreeing("fr", known)]
    first, second = verdict(*parts, settings=settings).fairness
    assert (first.segments, second.segments) == (3, 2)
    assert f"left out, fewer than judging.segment_rows = 300: meta_lang = fr ({known} rows)" in second.why
    alone = verdict(parts[0], parts[2], settings=settings).fairness[1]
    assert alone.outcome == "inconclusive"
    assert "1 segments have rows enough, two are needed" in alone.why


def test_without_fairlearn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fairlearn.metrics", None)
    with pytest.raises(InputError, match=r"judging.fairness needs Fairlearn: pip install 'redistill\[fairness\]'"):
        verdict(segment("de", 0.7, 0.7), segment("en", 0.7, 0.7))


def test_lower_is_better_turns_worst_and_best_around() -> None:
    def refusing(name: str, champion: float, challenger: float) -> tuple[str, Slice]:
        label, part = segment(name, champion, challenger)
        return label, Slice("segment", {"refusal_rate": part.scores["exact_match"]}, "meta_lang")

    settings = JudgingSettings(fairness=True, gates=("refusal_rate",))
    (fair,) = verdict(refusing("de", 0.02, 0.02), refusing("en", 0.03, 0.30), settings=settings).fairness
    assert (fair.worst, fair.outcome) == ("meta_lang = en", "fail")
    assert fair.worst_change == pytest.approx(-0.27)


# -- how often it is wrong --------------------------------------------------------------------------------------------

RUNS = 150
AT_MOST = 0.05 + 3 * (0.05 * 0.95 / RUNS) ** 0.5


def drawn(rng: np.random.Generator, champion: list[float], challenger: list[float], rows: int) -> dict[str, Slice]:
    """Segments in which the models are truly right so often, most rows alike by both."""
    parts = {}
    for at, (before, after) in enumerate(zip(champion, challenger, strict=True)):
        luck = rng.random(rows)
        other = np.where(rng.random(rows) < 0.1, rng.random(rows), luck)
        scores = Paired((luck < before).astype(float), (other < after).astype(float))
        parts[f"meta_lang = {at}"] = Slice("segment", {"exact_match": scores}, "meta_lang")
    return parts


def judged(
    champion: list[float], challenger: list[float], rows: int = 300, runs: int = RUNS, gap: float = 0.1
) -> list[Fairness]:
    """What is said of so many simulated challengers that may lose 0.05 in their worst segment."""
    rng, settings = np.random.default_rng(11), JudgingSettings(fairness=True, fairness_gap=gap)
    return [one for _ in range(runs) for one in fairness(drawn(rng, champion, challenger, rows), settings)]


def share(found: list[Fairness], outcome: str) -> float:
    return float(np.mean([one.outcome == outcome for one in found]))


@pytest.mark.parametrize("shares", [[0.55, 0.65], [0.55] * 5 + [0.65] * 5], ids=["two", "ten"])
def test_a_gap_of_just_what_is_accepted_passes_and_fails_at_most_at_the_level(shares: list[float]) -> None:
    found = judged(shares, shares)
    assert np.mean([one.gap_upper < 0.1 for one in found]) <= AT_MOST
    assert share(found, "pass") <= AT_MOST
    assert share(found, "fail") <= AT_MOST


@pytest.mark.parametrize(
    ("champion", "challenger"),
    [
        ([0.6] * 10, [0.55] + [0.6] * 9),
        ([0.55] + [0.7] * 4, [0.5] * 5),
    ],
    ids=["one of ten", "other segments became the worst"],
)
def test_a_worst_segment_that_lost_just_too_much_passes_and_fails_at_most_at_the_level(
    champion: list[float], challenger: list[float]
) -> None:
    found = judged(champion, challenger, gap=0.5)
    assert np.mean([one.worst_lower > -0.05 for one in found]) <= AT_MOST
    assert share(found, "pass") <= AT_MOST
    assert share(found, "fail") <= AT_MOST


def test_an_even_challenger_passes_2000_rows_a_segment_and_an_uneven_one_fails() -> None:
    assert share(judged([0.7] * 10, [0.7] * 10, 2000, 10), "pass") >= 0.8
    assert share(judged([0.7] * 10, [0.7] * 9 + [0.9], 2000, 10), "fail") >= 0.8
    assert share(judged([0.7] * 10, [0.58] + [0.7] * 9, 2000, 10, gap=0.5), "fail") >= 0.8


def test_scores_that_are_all_the_same_say_as_little_as_their_rows_allow() -> None:
    (fair,) = judged([1.0, 1.0], [1.0, 1.0], runs=1)
    assert fair.gap_upper == pytest.approx(1 - 0.05 ** (1 / 300)), "0.01 of rows are missed by 300 with chance 0.05"
    assert fair.worst_lower is not None
    assert fair.worst_lower < -0.009
