"""Fairness over segments, a gate that settings turn on."""

import sys

import numpy as np
import pytest

from monitoring.errors import InputError
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
