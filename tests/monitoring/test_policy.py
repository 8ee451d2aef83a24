"""The policy: when reports lead to a retrain, what holds one, and what the reason says."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from monitoring import policy
from monitoring.drift_report import ColumnDrift, DriftReport
from monitoring.history import Decision, History, Moment, Observation
from monitoring.multivariate import Mmd
from monitoring.performance import Interval, Quality
from monitoring.policy import decide
from monitoring.settings import DriftSettings, PolicySettings

SETTINGS = DriftSettings()
START = datetime(2026, 3, 1, tzinfo=UTC)
QUIET = ColumnDrift(name="x", kind="numeric", psi=0.021, psi_lower=0.0, missing_reference=0.0, why="below both bounds")
DRIFTED = ColumnDrift(
    name="response",
    kind="categorical",
    psi=0.31,
    psi_lower=0.24,
    missing_reference=0.0,
    severity="warning",
    why="PSI 0.310, at least 0.240 >= 0.1",
)
WHY = "drift in response (PSI 0.310, at least 0.240 >= 0.1)"


def report(*columns: ColumnDrift, rows: int = 500, window: str = "2016-01-01..2017-01-01", **more: Any) -> DriftReport:
    values = {
        "window": window,
        "rows": rows,
        "reference_window": "2012-01-01..2014-01-01",
        "reference_rows": 800,
        "model_version": "3",
        "columns": list(columns),
        "findings": ["the window is empty"] if not rows else [],
        "max_psi": columns[0].psi if columns else None,
    }
    return DriftReport(**values | more)


def measured(accuracy: float) -> Quality:
    """Return a quality of so much accuracy."""
    interval = Interval(value=accuracy, low=accuracy - 0.01, high=accuracy + 0.01)
    return Quality(rows=500, labelled=500, accuracy=interval)


def day(number: int) -> str:
    """Return the window of one day."""
    return f"{(START + timedelta(days=number)).date()}..{(START + timedelta(days=number + 1)).date()}"


def at(number: float, **known: Any) -> Moment:
    """Return the moment a day's window is looked at: at its end."""
    values = {"time": START + timedelta(days=number + 1), "champion": "1", "champion_digest": "c1"}
    return Moment(**{**values, "window_digest": f"w{number}", "log_rows": int(100 * (number + 1))} | known)


def replay(shown: str, settings: PolicySettings, **known: Any) -> list[Decision]:
    """Return the decisions on a window a day, D drifted or anything else quiet, each remembered."""
    earlier: list[Observation] = []
    decisions = []
    for number, letter in enumerate(shown):
        seen = report(DRIFTED if letter == "D" else QUIET, window=day(number))
        decisions.append(decide(seen, SETTINGS, settings, at(number, **known), History(earlier=tuple(earlier))))
        earlier.append(policy.observe(seen, at(number, **known), decisions[-1]))
    return decisions


def triggered(shown: str, settings: PolicySettings, **known: Any) -> str:
    """Return T and H, a letter a day."""
    return "".join("T" if decision.trigger else "H" for decision in replay(shown, settings, **known))


def test_drift_triggers_and_the_reason_has_the_numbers() -> None:
    decision = decide(report(DRIFTED, QUIET), SETTINGS)
    assert decision.trigger
    assert decision.reason == WHY


def test_a_quiet_window_is_held_and_the_reason_names_the_largest_column() -> None:
    decision = decide(report(QUIET), SETTINGS)
    assert not decision.trigger
    assert decision.reason == "no column drifted; the largest is x (PSI 0.021, at least 0.000)"


def test_too_few_rows_are_held_whatever_they_show() -> None:
    decision = decide(report(DRIFTED, rows=199), SETTINGS)
    assert not decision.trigger
    assert decision.reason == "2016-01-01..2017-01-01 has 199 rows; drift.min_rows asks for 200"
    assert decide(report(DRIFTED, rows=200), SETTINGS).trigger


def test_a_window_that_cannot_be_compared_is_held_with_its_findings() -> None:
    bare = QUIET.model_copy(update={"psi": None, "psi_lower": None})
    decision = decide(report(bare), SETTINGS)
    assert not decision.trigger
    assert decision.reason.startswith("no column could be compared")
    assert not decide(report(rows=0), SETTINGS).trigger


def test_force_triggers_on_anything() -> None:
    strict = PolicySettings(k=3, n=3, cooldown_days=100, min_new_rows=10**6, budget_tokens=1)
    for forced in (report(QUIET), report(rows=0), report(DRIFTED)):
        decision = decide(forced, SETTINGS, strict, at(0), History(bought_tokens=5), force=True)
        assert (decision.trigger, decision.reason) == (True, "forced")


def test_by_default_each_drifted_window_triggers_and_no_other_whatever_came_before() -> None:
    assert triggered("DQDDQQD", PolicySettings()) == "THTTHHT"


def test_a_debounce_asks_for_k_of_the_last_n_windows_and_says_how_many_there_were() -> None:
    two_of_three = PolicySettings(k=2, n=3)
    assert triggered("DQDQQDQQQDD", two_of_three) == "HHTHHHHHHHT"
    reason = replay("QQD", two_of_three)[-1].reason
    assert reason == f"drift was seen in 1 of the last 3 windows, 2 of 3 are asked for (policy.k, policy.n) ({WHY})"


def remembered(number: int, **values: Any) -> Observation:
    """Return a drifted window that was held."""
    seen = policy.observe(report(DRIFTED, window=day(number)), at(number), Decision(trigger=False, reason="not yet"))
    return seen.model_copy(update=values)


@pytest.mark.parametrize(
    ("earlier", "why"),
    [
        ([remembered(1, window_digest="w1, labels came")], "the same days with more labels"),
        ([remembered(0, window_digest="w1")], "the same rows under another window"),
        ([remembered(0, champion_digest="c0")], "another champion"),
        ([remembered(0, rows=50)], "too few rows to say anything"),
        ([remembered(2)], "a later window, asked about before"),
        ([], "nothing"),
    ],
)
def test_only_other_earlier_windows_against_the_same_champion_count(earlier: list[Observation], why: str) -> None:
    settings, seen = PolicySettings(k=2, n=5), report(DRIFTED, window=day(1))
    assert not decide(seen, SETTINGS, settings, at(1), History(earlier=tuple(earlier))).trigger, why
    assert decide(
        seen, SETTINGS, settings, at(1), History(earlier=(*earlier, remembered(0, window_digest="a")))
    ).trigger


def test_a_cooldown_runs_from_the_last_trigger_and_from_the_promotion() -> None:
    settings = PolicySettings(cooldown_days=3)
    assert triggered("DDDDDQD", settings) == "THHTHHT"
    assert replay("DD", settings)[1].reason == (
        f"the trigger on 2026-03-01..2026-03-02 was 1.0 days ago, policy.cooldown_days is 3 ({WHY})"
    )
    assert triggered("DDDD", settings, champion_promoted=START) == "HHTH"


def test_a_trigger_does_not_hold_the_same_window_when_labels_have_changed_its_contents() -> None:
    asked = remembered(1, trigger=True, window_digest="w1, labels came")
    settings, seen = PolicySettings(cooldown_days=30, min_new_rows=50), report(DRIFTED, window=day(1))
    assert decide(seen, SETTINGS, settings, at(1), History(earlier=(asked,))).trigger
    of_another = History(earlier=(asked.model_copy(update={"champion_digest": "c0"}),))
    assert not decide(seen, SETTINGS, settings, at(1), of_another).trigger


def test_new_rows_are_counted_from_what_the_champion_learned_and_from_the_last_trigger() -> None:
    settings = PolicySettings(min_new_rows=250)
    assert triggered("DDDDDDD", settings) == "HHTHHTH"
    assert triggered("DDDDDDD", settings, champion_log_rows=200) == "HHHHTHH"
    assert "100 rows are new since what the champion learned from, policy.min_new_rows asks for 250" in (
        replay("D", settings)[0].reason
    )


def test_age_amount_and_performance_trigger_without_drift_when_chosen() -> None:
    old = at(0, champion_trained=START - timedelta(days=29))
    quiet, settings = report(QUIET), PolicySettings(triggers="age")
    decision = decide(quiet, SETTINGS, settings, old)
    assert (decision.trigger, decision.reason) == (True, "the champion is 30.0 days old, policy.age_days is 30")
    assert not decide(quiet, SETTINGS, settings, at(0, champion_trained=START)).trigger
    assert not decide(quiet, SETTINGS, PolicySettings(), old).trigger

    amount = PolicySettings(triggers="amount", amount_rows=100)
    assert decide(quiet, SETTINGS, amount, at(0)).reason.startswith("100 rows are new since what the champion learned")
    assert not decide(quiet, SETTINGS, amount, at(0, champion_log_rows=1)).trigger

    performance, floor = PolicySettings(triggers="performance"), DriftSettings(quality_floor=0.8)
    assert not decide(quiet, floor, performance, at(0)).trigger
    assert not decide(report(QUIET, quality=measured(0.8)), floor, performance, at(0)).trigger
    decision = decide(report(QUIET, quality=measured(0.75)), floor, performance, at(0))
    assert (decision.trigger, decision.reason) == (
        True,
        "measured quality is 0.750 (0.740 to 0.760), drift.quality_floor is 0.8",
    )
    assert not decide(report(QUIET, quality=measured(0.795)), floor, performance, at(0)).trigger, "it may be above"


def test_the_reason_names_what_alarmed_when_no_column_did() -> None:
    low = report(QUIET, quality=measured(0.5), quality_severity="critical")
    assert decide(low, SETTINGS).reason.startswith(
        "drift in quality (quality on 500 labelled of 500 rows: accuracy 0.5"
    )
    rows = report(QUIET, mmd=Mmd(distance=0.3, p=0.001, reference_rows=500, current_rows=500), rows_severity="warning")
    assert decide(rows, SETTINGS).reason.startswith("drift in whole rows (MMD 0.300, p 0.001")
    faint = decide(
        report(QUIET, mmd=Mmd(distance=0.1, p=0.004, reference_rows=500, current_rows=500), rows_severity="info"),
        SETTINGS,
    )
    assert not faint.trigger
    assert "drift of severity info, policy.severity asks for warning: whole rows (MMD 0.100" in faint.reason


def test_a_schedule_triggers_once_for_each_of_its_times() -> None:
    mondays = PolicySettings(triggers="cron", cron="0 3 * * 1")  # START is a Sunday
    assert triggered("QQQQQQQQQ", mondays, champion_trained=START - timedelta(hours=1)) == "HTHHHHHHT"
    decision = decide(report(QUIET), SETTINGS, mondays, at(1.2, champion_trained=START))
    assert decision.reason == (
        "the first time of policy.cron '0 3 * * 1' since the champion was trained is 2026-03-02 03:00 UTC"
    )
    assert not decide(report(QUIET), SETTINGS, mondays, at(0)).trigger  # of a champion whose age is not known


def test_a_debounce_holds_no_trigger_that_does_not_come_from_the_window() -> None:
    settings = PolicySettings(triggers="drift, age", k=2, n=2)
    assert decide(report(DRIFTED), SETTINGS, settings, at(0, champion_trained=START - timedelta(days=90))).trigger
    both = PolicySettings(triggers="drift, age", need="all", k=2, n=2)
    assert not decide(report(DRIFTED), SETTINGS, both, at(0, champion_trained=START - timedelta(days=90))).trigger


@pytest.mark.parametrize(("need", "expected"), [("any", "HTTT"), ("2", "HHTT"), ("all", "HHHT"), (3, "HHHT")])
def test_any_all_or_at_least_n_triggers_are_asked_for(need: str | int, expected: str) -> None:
    settings = PolicySettings(triggers="drift, age, amount", need=need, amount_rows=100)  # type: ignore[arg-type]
    asking = [
        decide(
            report(DRIFTED if met > 0 else QUIET),
            SETTINGS,
            settings,
            at(
                0, champion_trained=START - timedelta(days=99 if met > 1 else 1), champion_log_rows=0 if met > 2 else 50
            ),
        )
        for met in range(4)
    ]
    assert "".join("T" if decision.trigger else "H" for decision in asking) == expected
    if need == "all":
        assert asking[2].reason.startswith("2 of 3 triggers ask for a retrain, policy.need is all: drift in response")


def test_a_spent_budget_holds_and_zero_is_no_limit() -> None:
    settings, spent = PolicySettings(budget_tokens=1000), History(bought_tokens=1000)
    decision = decide(report(DRIFTED), SETTINGS, settings, at(0), spent)
    assert (
        decision.reason
        == f"1000 teacher tokens were bought or set aside in 2026-03, policy.budget_tokens is 1000 ({WHY})"
    )
    assert not decision.trigger
    assert decide(report(DRIFTED), SETTINGS, settings, at(0), History(bought_tokens=999)).trigger
    assert decide(report(DRIFTED), SETTINGS, PolicySettings(), at(0), spent).trigger


def test_drift_counts_from_the_severity_that_is_asked_for() -> None:
    critical = PolicySettings(severity="critical")
    warned = decide(report(DRIFTED), SETTINGS, critical)
    assert not warned.trigger
    assert warned.reason.startswith("drift of severity warning, policy.severity asks for critical: response")
    assert decide(report(DRIFTED.model_copy(update={"severity": "critical"})), SETTINGS, critical).trigger
    info = report(QUIET.model_copy(update={"severity": "info"}))
    assert not decide(info, SETTINGS).trigger
    assert decide(info, SETTINGS, PolicySettings(severity="info")).trigger


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"triggers": "drift, moon"}, "'moon' is no trigger; choose from drift, age, cron, amount, performance"),
        ({"triggers": ""}, "'' is no trigger"),
        ({"triggers": 3}, "name at least one of drift"),
        ({"need": "some"}, "any, all, or a number"),
        ({"need": "0"}, "any, all, or a number"),
        ({"need": "2"}, "need 2 is more than there are triggers"),
        ({"k": 2}, "k 2 is above n 1"),
        ({"triggers": "cron"}, r"policy\.cron is empty"),
        ({"cron": "0 3 * *"}, "is no cron expression"),
        ({"cron": "0 3 30 2 *"}, "is no cron expression with a time to come"),
    ],
)
def test_settings_that_can_never_be_met_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PolicySettings(**values)


def test_triggers_may_be_a_list_and_their_order_does_not_matter() -> None:
    assert PolicySettings(triggers=["age", "drift"]).triggers == PolicySettings(triggers="drift,age").triggers  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "block",
    ["nonsense", "slack-webhook/", "/team", "slack-webhook/my/team", "slack webhook/team", "Slack/Team", "a/b\n"],
)
def test_a_notification_block_is_a_type_and_a_name(block: str) -> None:
    with pytest.raises(ValidationError, match="write TYPE/NAME"):
        PolicySettings(notify=block)
    assert PolicySettings(notify="slack-webhook/team-2").notify == "slack-webhook/team-2"
    assert PolicySettings(notify="").notify == ""
