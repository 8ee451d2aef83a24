"""A verdict: which challengers pass, which are refused and by what name, and what is refused as input."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from monitoring.errors import InputError
from monitoring.judging_settings import JudgingSettings
from monitoring.regression import Check, Cost, Kind, Paired, Slice, Verdict, judge

SETTINGS = JudgingSettings()


def scores(gained: int, lost: int, rows: int) -> Paired:
    """0/1 scores of champion and challenger; of the rows on which they agree every other one is right."""
    champion = np.arange(rows) % 2
    challenger = champion.copy()
    challenger[np.flatnonzero(champion == 0)[:gained]] = 1
    challenger[np.flatnonzero(champion == 1)[:lost]] = 0
    return Paired(champion, challenger)


def part(kind: Kind, gained: int, lost: int, rows: int = 1000, **more: Paired) -> Slice:
    return Slice(kind, {"exact_match": scores(gained, lost, rows), **more})


def check(gained: int, lost: int, rows: int, kind: Kind) -> Check:
    verdict = judge({kind: part(kind, gained, lost, rows)}, SETTINGS)
    assert verdict.outcome == verdict.checks[0].outcome
    return verdict.checks[0]


def drawn(
    rng: np.random.Generator, kinds: Sequence[Kind], rows: int, changed: float, differences: Sequence[float]
) -> dict[str, Slice]:
    """Slices of which so many rows change, the challenger better by these differences in truth."""
    found = {}
    for at, (kind, difference) in enumerate(zip(kinds, differences, strict=True)):
        chances = [(changed + difference) / 2, (changed - difference) / 2, 1 - changed]
        gained, lost, _ = rng.multinomial(rows, chances)
        found[f"{kind} {at}"] = part(kind, int(gained), int(lost), rows)
    return found


# -- what it must show ------------------------------------------------------------------------------------------------


KINDS: list[Kind] = ["fresh", "old", "old", "golden", "teacher_errors"]


@pytest.mark.parametrize("at", [1, 3, 4])
def test_a_challenger_worse_by_the_margin_on_any_one_slice_passes_at_most_at_alpha(at: int) -> None:
    rng, runs = np.random.default_rng(at), 400
    differences = [0.04, 0.03, 0.03, 0.03, 0.03]  # elsewhere it is better, so that nothing but this slice stops it
    differences[at] = -SETTINGS.margin
    outcomes = [judge(drawn(rng, KINDS, 1000, 0.05, differences), SETTINGS).outcome for _ in range(runs)]
    passed = outcomes.count("pass") / runs
    assert passed <= SETTINGS.alpha + 3 * (0.05 * 0.95 / runs) ** 0.5
    assert passed > 0.005, "as strict as it says, not stricter"


def test_a_challenger_no_better_on_the_fresh_slice_passes_at_most_at_alpha() -> None:
    rng, runs = np.random.default_rng(9), 400
    differences = [0.0, 0.03, 0.03, 0.03, 0.03]
    outcomes = [judge(drawn(rng, KINDS, 1000, 0.05, differences), SETTINGS).outcome for _ in range(runs)]
    assert outcomes.count("pass") / runs <= SETTINGS.alpha + 3 * (0.05 * 0.95 / runs) ** 0.5


@pytest.mark.parametrize("changed", [0.01, 0.03, 0.05])
def test_an_equal_challenger_passes_a_slice_of_1000_rows_at_80_percent_or_more(changed: float) -> None:
    rng = np.random.default_rng(2)
    outcomes = [judge(drawn(rng, ["old"], 1000, changed, [0.0]), SETTINGS).outcome for _ in range(300)]
    assert outcomes.count("pass") / 300 >= 0.80


def test_a_challenger_that_forgot_one_old_slice_only_is_refused_by_name() -> None:
    slices = {f"old {year}": part("old", 20, 20) for year in range(2008, 2016)}
    slices |= {"fresh 2016": part("fresh", 80, 20), "old 2012": part("old", 20, 90)}
    verdict = judge(slices, SETTINGS)
    assert verdict.outcome == "fail"
    assert verdict.reason.startswith("old 2012, exact_match: challenger - champion = -0.0700 on 1000 rows")
    assert verdict.reason.count(" rows, between") == 1, "the other slices are no part of the reason"
    assert verdict.harmed == ["old 2012"]


def test_a_challenger_better_on_average_and_worse_for_one_segment_is_refused_by_its_name() -> None:
    slices = {
        "fresh 2016": part("fresh", 150, 60, 2000),
        "meta_lang = en": part("segment", 140, 10, 1500),
        "meta_lang = de": part("segment", 20, 50, 500),
    }
    verdict = judge(slices, SETTINGS)
    assert verdict.outcome == "inconclusive", "0.06 lost, and at most 0.05 accepted: on 500 rows not sure yet"
    slices["meta_lang = de"] = part("segment", 5, 60, 500)
    verdict = judge(slices, SETTINGS)
    assert (verdict.outcome, verdict.harmed) == ("fail", ["meta_lang = de"])
    assert verdict.reason.startswith("meta_lang = de, exact_match: ")


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
        (25, 25, "golden", "pass"),
        (0, 100, "golden", "fail"),
        (60, 75, "segment", "pass"),
        (0, 100, "segment", "fail"),
    ],
)
def test_a_slice_passes_fails_or_stays_open_by_its_bounds(gained: int, lost: int, kind: Kind, outcome: str) -> None:
    found = check(gained, lost, 1000, kind)
    assert found.outcome == outcome
    assert found.rows == 1000
    assert found.margin == {"fresh": 0.0, "segment": 0.05}.get(kind, 0.02)
    assert found.champion == 0.5
    assert found.challenger == pytest.approx(0.5 + (gained - lost) / 1000)
    assert found.difference == pytest.approx((gained - lost) / 1000)
    assert found.lower is not None
    assert found.upper is not None
    assert found.p_value is not None
    assert found.lower < found.difference < found.upper
    assert (found.p_value <= SETTINGS.alpha) == (found.lower > -found.margin) == (outcome == "pass")


def test_a_slice_with_too_few_rows_stays_open_however_clear_it_is_and_says_how_many_are_missing() -> None:
    found = check(0, 30, 60, "old")
    assert (found.outcome, found.rows_needed) == ("inconclusive", 100)
    assert "60 rows, 40 more are needed (judging.min_rows = 100)" in found.why
    for rows in (0, 1):
        lone = judge({"old": Slice("old", {"exact_match": Paired(np.ones(rows), np.ones(rows))})}, SETTINGS).checks[0]
        assert (lone.outcome, lone.lower, lone.upper) == ("inconclusive", None, None)


@pytest.mark.parametrize("kind", ["segment", "teacher_errors"])
def test_segments_and_teacher_errors_with_too_few_rows_are_left_out_and_counted(kind: Kind) -> None:
    slices = {"old": part("old", 25, 25), "few": part(kind, 0, 99, 299), "enough": part(kind, 30, 0, 300)}
    verdict = judge(slices, SETTINGS)
    assert verdict.outcome == "pass"
    assert [one.slice for one in verdict.checks] == ["old", "enough"]
    assert verdict.left_out == ["few: 299 rows, fewer than judging.segment_rows = 300"]


def test_agreement_on_too_few_rows_for_the_margin_asks_for_more() -> None:
    found = check(0, 0, 110, "old")  # even without a single loss, 2 % more losses are possible
    assert found.outcome == "inconclusive"
    assert found.rows_needed is not None
    assert 149 <= found.rows_needed <= 250
    assert f"about {found.rows_needed} rows like these would decide (80% sure), {found.rows_needed - 110} more" in (
        found.why
    )


def test_the_rows_asked_for_do_decide_at_about_the_power_named() -> None:
    inconclusive = check(6, 6, 200, "old")
    assert inconclusive.outcome == "inconclusive"
    assert inconclusive.rows_needed is not None
    rng, rows = np.random.default_rng(7), inconclusive.rows_needed
    outcomes = [judge(drawn(rng, ["old"], rows, 0.06, [0.0]), SETTINGS).outcome for _ in range(200)]
    assert 0.7 <= outcomes.count("pass") / 200 <= 0.9


def test_a_difference_on_the_bound_is_said_to_be_undecidable() -> None:
    found = check(50, 50, 1000, "fresh")
    assert "would not decide" in found.why
    assert found.rows_needed is None


def test_any_failure_fails_and_its_slice_and_numbers_are_the_reason() -> None:
    slices = {"fresh 2016": part("fresh", 100, 50), "old 2012": part("old", 60, 75), "old 2010": part("old", 20, 70)}
    verdict = judge(slices, SETTINGS)
    assert [one.outcome for one in verdict.checks] == ["pass", "inconclusive", "fail"]
    assert verdict.outcome == "fail"
    assert verdict.reason.startswith("old 2010, exact_match: challenger - champion = -0.0500 on 1000 rows")
    del slices["old 2010"]
    verdict = judge(slices, SETTINGS)
    assert verdict.outcome == "inconclusive"
    assert verdict.reason.startswith("old 2012, ")
    slices["old 2012"] = part("old", 20, 20)
    verdict = judge(slices, SETTINGS)
    assert verdict.outcome == "pass"
    assert verdict.reason.startswith("fresh 2016, exact_match: challenger - champion = +0.0500")
    assert verdict.reason.endswith("nothing is lost beyond its margin on old 2012")


def test_a_verdict_survives_json_and_says_zero_without_a_sign() -> None:
    slices = {"old": part("old", 0, 1, 3), "fresh": part("fresh", 9, 2, 150), "even": part("old", 0, 0, 200)}
    slices["even"] = Slice("old", {**slices["even"].scores, "refusal_rate": Paired(np.zeros(200), np.zeros(200))})
    verdict = judge(slices, SETTINGS, [Cost("size", 1, 1, 1, "MiB")])
    assert type(verdict).model_validate_json(verdict.model_dump_json()) == verdict
    assert "-0.0," not in verdict.model_dump_json().replace("}", ",")


# -- metrics and gates ------------------------------------------------------------------------------------------------


def test_a_metric_that_is_no_gate_is_reported_with_bounds_and_where_it_is_surely_worse_the_verdict_says_so() -> None:
    worse = Paired(np.zeros(1000), (np.arange(1000) < 100).astype(float))
    verdict = judge({"old 2012": part("old", 25, 25, refusal_rate=worse), "old 2013": part("old", 25, 25)}, SETTINGS)
    assert verdict.outcome == "pass"
    refusals = verdict.checks[1]
    assert (refusals.metric, refusals.outcome, refusals.margin, refusals.p_value) == (
        "refusal_rate",
        "reported",
        None,
        None,
    )
    assert refusals.lower is not None
    assert 0.08 < refusals.lower < 0.1
    assert (verdict.harmed, refusals.harmed) == (["old 2012"], True)
    assert "surely worse, though not forbidden: old 2012 (refusal_rate)" in verdict.reason


@pytest.mark.parametrize(("metric", "better"), [("negative_log_likelihood", "lower"), ("token_f1", "higher")])
def test_a_gate_on_a_mean_refuses_what_is_worse_in_its_own_direction(metric: str, better: str) -> None:
    rng = np.random.default_rng(0)
    champion = 0.2 + 0.6 * rng.beta(5, 2, 1000)
    for shift, outcome in ((-0.1, "fail"), (0.0, "pass")):
        sign = 1 if better == "higher" else -1
        paired = Paired(champion, champion + sign * np.clip(rng.normal(shift, 0.02, 1000), -0.19, 0.19))
        settings = JudgingSettings(gates=(f"{metric}=0.05",))
        (found,) = judge({"old": Slice("old", {metric: paired})}, settings).checks
        assert (found.outcome, found.better) == (outcome, better)
        assert found.difference == pytest.approx(sign * shift, abs=0.01)


def test_each_gate_has_to_hold_on_every_slice_and_a_slice_without_it_is_refused() -> None:
    settings = JudgingSettings(gates=("exact_match", "refusal_rate=0.01"))
    with pytest.raises(InputError, match="slice 'old' has no scores of refusal_rate, which judging asks for"):
        judge({"old": part("old", 0, 0)}, settings)
    with pytest.raises(InputError, match="slice 'new' has no scores of exact_match"):
        judge(
            {"new": Slice("fresh", {"token_f1": scores(1, 1, 200)})}, JudgingSettings(gates=("token_f1",))
        )  # has to be better in it
    refusing = Paired(np.zeros(1000), (np.arange(1000) < 40).astype(float))
    verdict = judge({"old": part("old", 25, 25, refusal_rate=refusing)}, settings)
    assert [one.outcome for one in verdict.checks] == ["pass", "fail"]
    assert verdict.outcome == "fail"


def test_margins_are_the_metrics_own_unless_a_gate_names_one() -> None:
    settings = JudgingSettings(gates="exact_match, negative_log_likelihood, token_f1 = 0.1", margin=0.03)  # type: ignore[arg-type]
    assert settings.margins == {"exact_match": 0.03, "negative_log_likelihood": 0.05, "token_f1": 0.1}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"gates": "exact_mach"}, "gates: 'exact_mach' is no metric; the nearest is exact_match"),
        ({"gates": "exact_match=-1"}, "must be a number from 0 on"),
        ({"gates": "exact_match=nan"}, "must be a number from 0 on"),
        ({"gates": "token_f1,token_f1=0.1"}, "token_f1 is named twice"),
        ({"gates": "exact_match=2"}, "exact_match=2 would let everything pass, a row cannot lose more than 1"),
        ({"gates": "exact_match=0.4"}, "exact_match=0.4 times segment_factor = 2.5 is 1, and"),
        ({"margin": 0.9}, "margin = 0.9 of the gate exact_match times segment_factor = 2.5 is 2.25"),
        ({"margin": 0.02, "segment_factor": 50}, "margin = 0.02 of the gate exact_match times segment_factor = 50"),
        ({"gates": "negative_log_likelihood=12"}, "=12 would let everything pass, a row cannot lose more than 12"),
        ({"superior": "calibration_error"}, "calibration_error cannot be it"),
        ({"superior": "f1"}, "superior: 'f1' is no metric"),
        ({"own_metrics": "token_f1"}, "is a metric of its own already"),
        ({"own_metrics": "nowhere"}, "'nowhere' is no entry point of redistill.metrics"),
    ],
)
def test_settings_that_cannot_be_judged_by_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        JudgingSettings(**given)


def test_without_a_superior_metric_a_fresh_slice_has_only_to_be_kept() -> None:
    assert judge({"new": part("fresh", 25, 25)}, JudgingSettings(superior="")).outcome == "pass"


def test_a_verdict_that_was_asked_nothing_is_no_pass() -> None:
    verdict = judge({"old": part("old", 0, 0)}, JudgingSettings(gates=()))
    assert (verdict.outcome, verdict.checks[0].outcome) == ("inconclusive", "reported")
    assert "no gate was asked about" in verdict.reason


def test_tasks_of_lm_eval_are_slices_with_a_metric_of_their_own() -> None:
    slices = {"old": part("old", 25, 25), "arc": Slice("lm_eval", {"lm_eval": scores(0, 100, 1000)})}
    assert judge(slices, SETTINGS).outcome == "pass", "reported, unless it is a gate"
    gates = JudgingSettings(gates=("exact_match", "lm_eval"))
    verdict = judge(slices, gates)
    assert verdict.outcome == "fail"
    assert verdict.reason.startswith("arc, lm_eval: ")
    wide = Slice("lm_eval", {"lm_eval": Paired(np.arange(200.0), np.arange(200.0))})
    assert judge({**slices, "bleu": wide}, SETTINGS).outcome == "pass"
    with pytest.raises(InputError, match="'bleu': nobody says how much a row can lose in lm_eval"):
        judge({**slices, "bleu": wide}, gates)


def test_a_row_counts_by_no_more_than_a_row_can_lose() -> None:
    nats = np.full(1000, 0.3)
    lost = np.where(np.arange(1000) < 10, 1e90, nats)
    (found,) = judge(
        {"old": Slice("old", {"negative_log_likelihood": Paired(nats, lost)})},
        JudgingSettings(gates=("negative_log_likelihood",)),
    ).checks
    assert found.difference == pytest.approx(0.12), "10 rows of 1,000 at 12 nats"
    assert found.outcome in ("fail", "inconclusive")


def test_a_gate_on_a_metric_without_bound_is_refused() -> None:
    settings = JudgingSettings.model_construct(**{**dict(SETTINGS), "gates": ("speed=0.5",), "superior": ""})
    paired = Paired(np.arange(1000.0), np.arange(1000.0), "lower")
    with pytest.raises(InputError, match="nobody says how much a row can lose in speed"):
        judge({"x": Slice("old", {"speed": paired})}, settings)
    with pytest.raises(InputError, match=r"speed may lose 0.5 .* a row cannot lose more than 0.4"):
        judge({"x": Slice("old", {"speed": replace(paired, bound=0.4)})}, settings)
    assert judge({"x": Slice("old", {"speed": replace(paired, bound=10)})}, settings).outcome == "pass"


# -- naming what is harmed --------------------------------------------------------------------------------------------


def test_among_many_slices_that_are_equal_hardly_ever_any_is_named_as_harmed() -> None:
    rng, kinds = np.random.default_rng(3), ["old"] * 20
    verdicts = [judge(drawn(rng, kinds, 500, 0.04, [0.0] * 20), SETTINGS) for _ in range(100)]  # type: ignore[arg-type]
    assert sum(bool(verdict.harmed) for verdict in verdicts) / 100 <= 0.05 + 3 * (0.05 * 0.95 / 100) ** 0.5
    seen = [one.p_worse is not None and one.p_worse <= 0.05 for verdict in verdicts for one in verdict.checks]
    assert np.mean(seen) > 0.02, "uncorrected some would be: that is what Holm is for"


def test_a_slice_that_lost_within_its_margin_passes_and_is_still_named() -> None:
    verdict = judge({"old": part("old", 0, 30, 5000)}, SETTINGS)
    assert (verdict.outcome, verdict.harmed) == ("pass", ["old"])


# -- budgets ----------------------------------------------------------------------------------------------------------


def test_a_cost_above_its_limit_fails_the_verdict_and_one_without_a_limit_is_reported() -> None:
    slices = {"old": part("old", 25, 25)}
    costs = [
        Cost("latency p50", 10.0, 25.0, 2.0, "ms"),
        Cost("size", 100, 140, 1.5, "MiB"),
        Cost("memory", 1, 9, 0, "GiB"),
    ]
    verdict = judge(slices, SETTINGS, costs)
    assert [one.outcome for one in verdict.budgets] == ["fail", "pass", "reported"]
    assert verdict.outcome == "fail"
    assert verdict.reason == "latency p50: 25 ms after 10 ms, 2.50 times: above the limit of 2 times"
    assert judge(slices, SETTINGS, costs[1:]).outcome == "pass"


def test_a_budget_is_refused_when_it_is_no_amount_or_given_twice() -> None:
    slices = {"old": part("old", 25, 25)}
    for wrong in (float("nan"), -1.0, float("inf")):
        with pytest.raises(InputError, match="budget 'size'"):
            judge(slices, SETTINGS, [Cost("size", 1, wrong, 1, "MiB")])
    with pytest.raises(InputError, match="budget size is given twice"):
        judge(slices, SETTINGS, [Cost("size", 1, 1, 1, "MiB")] * 2)


# -- input ------------------------------------------------------------------------------------------------------------


def judged(**given: Any) -> Verdict:
    paired = {"champion": [1, 0, 1], "challenger": [1, 0, 1]} | given
    return judge(
        {"x": Slice(paired.pop("kind", "old"), {paired.pop("metric", "exact_match"): Paired(**paired)})}, SETTINGS
    )


def test_scores_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(InputError, match="no slice to judge"):
        judge({}, SETTINGS)
    with pytest.raises(InputError, match=r"'x' has \(3,\) exact_match scores of the champion and \(2,\)"):
        judged(challenger=[1, 0])
    with pytest.raises(InputError, match="'x': 1 exact_match scores of the challenger are no finite"):
        judged(challenger=[1, 0, float("nan")])
    with pytest.raises(InputError, match="of kind 'new'"):
        judged(kind="new")
    with pytest.raises(InputError, match="has no scores of exact_match"):
        judged(metric="token_f1")
    with pytest.raises(InputError, match="has no scores at all"):
        judge({"x": Slice("old", {})}, SETTINGS)
    exact = scores(1, 1, 200)
    with pytest.raises(InputError, match="metric 'speed' is not known"):
        judge({"x": Slice("old", {"exact_match": exact, "speed": exact})}, SETTINGS)
    with pytest.raises(InputError, match="not the same rows in every metric"):
        judge({"x": Slice("old", {"exact_match": exact, "token_f1": scores(1, 1, 201)})}, SETTINGS)
    with pytest.raises(InputError, match="confidence and correctness"):
        judge({"x": Slice("old", {"exact_match": exact, "calibration_error": exact})}, SETTINGS)
    with pytest.raises(InputError, match=r"1 exact_match scores of the challenger are no finite numbers, or 1e\+100"):
        judged(challenger=[1, 0, 1e200])
    with pytest.raises(InputError, match="exact_match scores below 0 or above 1"):
        judged(challenger=[1, 0, 100])
    wide = np.full((200, 2), 1.5)
    with pytest.raises(InputError, match="must lie between 0 and 1"):
        judge({"x": Slice("old", {"exact_match": exact, "calibration_error": Paired(wide, wide)})}, SETTINGS)
