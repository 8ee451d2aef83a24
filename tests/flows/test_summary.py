"""What a person is told of a retrain."""

from typing import Any

from flows import summary, words


def test_rows_that_the_training_did_not_reach_are_told() -> None:
    rows = {"mixture": 32, "training": 20, "validation": 0, "not_reached": 12}
    came: dict[str, Any] = {"steps": 3, "exported_step": 3, "stopped_early": False, "validation_loss": None}
    why = "the training ended within its first pass over the rows: training.epochs is below 1"
    said = words.training({**came, "rows": rows, "not_reached_because": why})
    assert said == f"a new student after 3 steps; 12 rows were in no step: {why}"
    early = {**came, "validation_loss": 0.5, "stopped_early": True, "rows": rows, "not_reached_because": why}
    assert words.training(early).endswith(f"0.5000, stopped early; 12 rows were in no step: {why}")
    assert words.training({**came, "rows": {**rows, "not_reached": 0}}) == "a new student after 3 steps"
    assert words.training({**came, "rows": {"mixture": 32, "training": 32, "validation": 0}}).endswith("3 steps")
    assert words.training({}) == "a new student"


def check(slice: str, metric: str, outcome: str, **given: Any) -> dict[str, Any]:
    return {
        "slice": slice, "metric": metric, "rows": 400, "champion": 0.9, "challenger": 0.85, "difference": -0.05,
        "lower": -0.08, "upper": -0.02, "outcome": outcome, "harmed": False, "rows_needed": None, **given,
    }  # fmt: skip


def test_the_verdict_shows_each_slice_and_whatever_did_not_pass() -> None:
    verdict: dict[str, Any] = {
        "checks": [
            check("fresh", "exact_match", "pass"),
            check("fresh", "token_f1", "reported"),
            check("old", "exact_match", "inconclusive", rows_needed=1200),
            check("old", "refusal_rate", "fail"),
            check("old", "token_f1", "reported", harmed=True),
            check("lm_eval tickets acc", "lm_eval", "reported"),
        ],
        "fairness": [
            {
                "column": "meta_topic",
                "metric": "exact_match",
                "champion_gap": 0.02,
                "challenger_gap": 0.2,
                "gap_upper": 0.25,
                "champion_worst": 0.8,
                "challenger_worst": 0.7,
                "worst_change": -0.1,
                "worst_lower": -0.15,
                "outcome": "fail",
            }
        ],
        "budgets": [
            {"name": "memory", "unit": "MB", "champion": 2.0, "challenger": 4.0, "ratio": 2.0, "outcome": "fail"}
        ],
    }
    rows = {row[:2]: row[2:] for row in summary.verdict_rows(verdict)}
    assert rows.keys() == {
        ("fresh", "exact_match"), ("old", "exact_match"), ("old", "refusal_rate"), ("old", "token_f1"),
        ("lm_eval tickets acc", "lm_eval"), ("", "memory [MB]"),
        ("fairness over meta_topic", "exact_match, gap"), ("fairness over meta_topic", "exact_match, worst"),
    }  # fmt: skip
    told = ("400", "0.900", "0.850", "-0.0500", "-0.0800 to -0.0200", "inconclusive: about 1200 rows would decide")
    assert rows["old", "exact_match"] == told
    assert rows["old", "token_f1"][-1] == "reported, worse than before"
    assert rows["", "memory [MB]"] == ("", "2", "4", "2.00 times", "", "fail")
    gap, worst = (rows["fairness over meta_topic", f"exact_match, {part}"] for part in ("gap", "worst"))
    assert gap == ("", "0.020", "0.200", "", "at most +0.2500", "fail")
    assert worst == ("", "0.800", "0.700", "-0.1000", "at least -0.1500", "fail")
