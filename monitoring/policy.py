"""Reports so far -> retrain, or hold, and the reason in one sentence. Nothing here reads a file or a clock.

    decision = decide(report, DriftSettings())                                     one report, nothing before it
    decision = decide(report, drift, policy, now, history)                         what a ledger remembers counts too

Triggers (policy.triggers) ask for a retrain: drift, the champion's age, a time of a cron expression, the amount of new
data, measured quality; policy.need says how many it takes. Guards hold it all the same: too few rows or new rows,
too few windows that show it (policy.k of policy.n), a cooldown, the teacher's budget. Forcing overrides everything.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, timedelta

from monitoring.drift_report import SEVERITIES, ColumnDrift, DriftReport, Severity
from monitoring.history import Decision, Finding, History, Moment, Observation
from monitoring.performance import Interval
from monitoring.settings import DriftSettings, PolicySettings
from monitoring.window import Window


def decide(
    report: DriftReport,
    drift: DriftSettings,
    policy: PolicySettings = PolicySettings(),  # noqa: B008  (frozen)
    now: Moment = Moment(),  # noqa: B008
    history: History = History(),  # noqa: B008
    *,
    force: bool = False,
) -> Decision:
    """Decide on a report: forced, or as many triggers as policy.need asks for and no guard that holds."""
    if force:
        return Decision(trigger=True, reason="forced")
    if (small := too_few_rows(report, drift)).met:
        return _hold(small.reason)
    found = {name: _trigger(name, report, drift, policy, now, history) for name in policy.chosen}
    asking = {name: finding for name, finding in found.items() if finding.met}
    if len(asking) < policy.needed:
        return _hold(_not_enough(found, policy))
    why = "; ".join(finding.reason for finding in asking.values())
    holding = [finding.reason for finding in guards(list(asking), report, drift, policy, now, history) if finding.met]
    return _hold(f"{'; '.join(holding)} ({why})") if holding else Decision(trigger=True, reason=why)


def observe(report: DriftReport, now: Moment, decision: Decision) -> Observation:
    """Return what is to be remembered of a report and the decision on it; `now.time` must be known."""
    return Observation(
        **now.model_dump(include={"time", "window_digest", "champion", "champion_digest", "log_rows"}),
        window=report.window,
        severity=report.severity,
        drifted_columns=tuple(report.drifted_columns),
        quality=measured.value if (measured := quality_of(report)) else None,
        quality_high=measured.high if measured else None,
        rows=report.rows,
        trigger=decision.trigger,
        reason=decision.reason,
    )


def quality_of(report: DriftReport) -> Interval | None:
    """Return the measured accuracy, or None where too few labels have arrived."""
    return report.quality.accuracy if report.quality else None


def settings_digest(drift: DriftSettings, policy: PolicySettings) -> str:
    """Return the SHA-256 (hex) of all settings that a decision goes by."""
    values = {"drift": drift.model_dump(), "policy": policy.model_dump()}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# Triggers: each says whether it asks for a retrain.


def drift_seen(report: DriftReport, policy: PolicySettings) -> Finding:
    """Say whether the window has drifted, at policy.severity or above."""
    severity = report.severity
    if _at_least(severity, policy.severity):
        return Finding(met=True, reason=f"drift in {'; '.join(report.reasons(policy.severity))}")
    if not any(column.psi is not None for column in report.columns):
        return Finding(met=False, reason="no column could be compared: " + "; ".join(report.findings))
    if severity != "none":
        seen = "; ".join(report.reasons(severity))
        told = f"drift of severity {severity}, policy.severity asks for {policy.severity}: {seen}"
        return Finding(met=False, reason=told)
    return Finding(met=False, reason=f"no column drifted; the largest is {_largest(report)}")


def old_champion(policy: PolicySettings, now: Moment) -> Finding:
    """Say whether the champion is as old as policy.age_days."""
    if now.time is None or now.champion_trained is None:
        return Finding(met=False, reason="the champion's age is not known")
    days = _days(now.time - now.champion_trained)
    told = f"the champion is {days:.1f} days old, policy.age_days is {policy.age_days:g}"
    return Finding(met=days >= policy.age_days, reason=told)


def scheduled(report: DriftReport, policy: PolicySettings, now: Moment, history: History) -> Finding:
    """Say whether a time of policy.cron (UTC) has come since the champion was trained, or since the last trigger."""
    from cronsim import CronSim

    last = _last_trigger(report, now, history)
    moments = [(last.time, f"the trigger on {last.window}")] if last else []
    if now.champion_trained is not None:
        moments.append((now.champion_trained, "the champion was trained"))
    if now.time is None or not moments:
        return Finding(met=False, reason="the champion's age is not known")
    since, what = max(moments)
    due = next(CronSim(policy.cron, since.astimezone(UTC)))
    told = f"the first time of policy.cron '{policy.cron}' since {what} is {due:%Y-%m-%d %H:%M} UTC"
    return Finding(met=due <= now.time, reason=told)


def much_new_data(report: DriftReport, policy: PolicySettings, now: Moment, history: History) -> Finding:
    """Say whether policy.amount_rows rows are new."""
    rows, since = new_rows(report, now, history)
    told = f"{rows} rows are new since {since}, policy.amount_rows is {policy.amount_rows}"
    return Finding(met=rows >= policy.amount_rows, reason=told)


def low_quality(report: DriftReport, drift: DriftSettings) -> Finding:
    """Say whether measured quality is surely below drift.quality_floor, its 95 % interval; without labels it is not."""
    quality = quality_of(report)
    if quality is None:
        return Finding(met=False, reason="quality is not known: too few labels have arrived")
    told = (
        f"measured quality is {quality.value:.3f} ({quality.low:.3f} to {quality.high:.3f}), drift.quality_floor is "
        f"{drift.quality_floor:g}"
    )
    return Finding(met=_below(quality.high, drift), reason=told)


# Guards: each says whether it holds a retrain that the triggers ask for.


def guards(
    asking: list[str],
    report: DriftReport,
    drift: DriftSettings,
    policy: PolicySettings,
    now: Moment,
    history: History,
) -> Iterator[Finding]:
    """Yield what each guard says to a retrain that the triggers `asking` ask for."""
    seldom = [found for found in _debounced(asking, report, drift, policy, now, history) if found.met]
    if len(asking) - len(seldom) < policy.needed:
        yield from seldom
    yield too_few_new_rows(report, policy, now, history)
    yield cooling_down(report, policy, now, history)
    yield budget_spent(policy, now, history)


def too_few_rows(report: DriftReport, drift: DriftSettings) -> Finding:
    """Hold a window of fewer than drift.min_rows rows, whatever it shows."""
    told = f"{report.window} has {report.rows} rows; drift.min_rows asks for {drift.min_rows}"
    return Finding(met=report.rows < drift.min_rows, reason=told)


def seen_too_seldom(
    what: str,
    shows: Callable[[Observation], bool],
    report: DriftReport,
    drift: DriftSettings,
    policy: PolicySettings,
    now: Moment,
    history: History,
) -> Finding:
    """Hold what shows in fewer than policy.k of the last policy.n windows; this one, which shows it, included.

    Distinct windows against the same champion count, none that ends after this one and none of too few rows.
    """
    before = _windows_before(report, drift, now, history)[-(policy.n - 1) :] if policy.n > 1 else []
    times = 1 + sum(shows(seen) for seen in before)
    windows = "this window alone" if not before else f"{times} of the last {len(before) + 1} windows"
    told = f"{what} was seen in {windows}, {policy.k} of {policy.n} are asked for (policy.k, policy.n)"
    return Finding(met=times < policy.k, reason=told)


def too_few_new_rows(report: DriftReport, policy: PolicySettings, now: Moment, history: History) -> Finding:
    """Hold until policy.min_new_rows rows are new."""
    rows, since = new_rows(report, now, history)
    told = f"{rows} rows are new since {since}, policy.min_new_rows asks for {policy.min_new_rows}"
    return Finding(met=rows < policy.min_new_rows, reason=told)


def cooling_down(report: DriftReport, policy: PolicySettings, now: Moment, history: History) -> Finding:
    """Hold for policy.cooldown_days after the last promotion or trigger."""
    last = _last_trigger(report, now, history)
    moments = [(last.time, f"the trigger on {last.window}")] if last else []
    if now.champion_promoted is not None:
        moments.append((now.champion_promoted, f"the promotion of champion {now.champion}"))
    if now.time is None or not moments:
        return Finding(met=False, reason="nothing was triggered or promoted before")
    since, what = max(moments)
    days = _days(now.time - since)
    told = f"{what} was {days:.1f} days ago, policy.cooldown_days is {policy.cooldown_days:g}"
    return Finding(met=days < policy.cooldown_days, reason=told)


def budget_spent(policy: PolicySettings, now: Moment, history: History) -> Finding:
    """Hold when the month's teacher tokens are spent."""
    month = f" in {now.time.astimezone(UTC):%Y-%m}" if now.time else ""
    spent = f"{history.bought_tokens} teacher tokens were bought or set aside{month}"
    told = f"{spent}, policy.budget_tokens is {policy.budget_tokens}"
    return Finding(met=0 < policy.budget_tokens <= history.bought_tokens, reason=told)


def new_rows(report: DriftReport, now: Moment, history: History) -> tuple[int, str]:
    """Return how many rows came since what the champion learned from, or since the last trigger's window if later."""
    last = _last_trigger(report, now, history)
    if last is not None and last.log_rows > now.champion_log_rows:
        return max(0, now.log_rows - last.log_rows), f"the trigger on {last.window}"
    return max(0, now.log_rows - now.champion_log_rows), "what the champion learned from"


def _trigger(
    name: str, report: DriftReport, drift: DriftSettings, policy: PolicySettings, now: Moment, history: History
) -> Finding:
    triggers: dict[str, Callable[[], Finding]] = {
        "drift": lambda: drift_seen(report, policy),
        "age": lambda: old_champion(policy, now),
        "cron": lambda: scheduled(report, policy, now, history),
        "amount": lambda: much_new_data(report, policy, now, history),
        "performance": lambda: low_quality(report, drift),
    }
    return triggers[name]()


def _debounced(
    asking: list[str],
    report: DriftReport,
    drift: DriftSettings,
    policy: PolicySettings,
    now: Moment,
    history: History,
) -> Iterator[Finding]:
    """Only what a window shows is debounced: age and amount do not come and go by chance."""
    tests: dict[str, tuple[str, Callable[[Observation], bool]]] = {
        "drift": ("drift", lambda seen: _at_least(seen.severity, policy.severity)),
        "performance": ("low quality", lambda seen: _below(seen.quality_high, drift)),
    }
    for name in asking:
        if name in tests:
            yield seen_too_seldom(*tests[name], report, drift, policy, now, history)


def _windows_before(report: DriftReport, drift: DriftSettings, now: Moment, history: History) -> list[Observation]:
    """Return the distinct earlier windows of this champion by their end, each as it was last seen."""
    end = Window.parse(report.window).end
    by_rows: dict[str, Observation] = {}
    for seen in history.earlier:
        if seen.champion_digest == now.champion_digest and seen.rows >= drift.min_rows:
            by_rows[seen.window_digest] = seen
    # Late labels give the rows of the same days another digest: that is no second window.
    by_span = {seen.window: seen for seen in by_rows.values() if seen.window_digest != now.window_digest}
    by_span.pop(report.window, None)
    before = [seen for seen in by_span.values() if Window.parse(seen.window).end <= end]
    return sorted(before, key=lambda seen: (Window.parse(seen.window).end, seen.time))


def _last_trigger(report: DriftReport, now: Moment, history: History) -> Observation | None:
    """Return the last trigger, but for one of this very window and champion: it does not stand in its own way."""
    asked = report.window, now.champion_digest
    others = [seen for seen in history.earlier if seen.trigger and (seen.window, seen.champion_digest) != asked]
    return max(others, key=lambda seen: seen.time, default=None)


def _not_enough(found: dict[str, Finding], policy: PolicySettings) -> str:
    told = "; ".join(finding.reason for finding in found.values())
    if policy.needed == 1:
        return told
    met = sum(finding.met for finding in found.values())
    return f"{met} of {len(found)} triggers ask for a retrain, policy.need is {policy.need}: {told}"


def _largest(report: DriftReport) -> str:
    compared = [column for column in report.columns if column.psi is not None]
    return _named(compared[0]) if compared else "; ".join(report.findings)


def _named(column: ColumnDrift) -> str:
    return f"{column.name} (PSI {column.psi:.3f}, at least {column.psi_lower:.3f})"


def _below(quality_high: float | None, drift: DriftSettings) -> bool:
    """Say whether quality is surely below the floor; it is not where it is not known."""
    return quality_high is not None and quality_high < drift.quality_floor


def _at_least(severity: Severity, asked: Severity) -> bool:
    return SEVERITIES.index(severity) >= SEVERITIES.index(asked)


def _days(stretch: timedelta) -> float:
    return stretch / timedelta(days=1)


def _hold(reason: str) -> Decision:
    return Decision(trigger=False, reason=reason)
