"""The policy: when a report leads to a retrain, and what the reason says."""

from monitoring.drift import ColumnDrift, DriftReport
from monitoring.policy import decide
from monitoring.settings import DriftSettings

SETTINGS = DriftSettings()
QUIET = ColumnDrift(name="x", kind="numeric", psi=0.021, psi_lower=0.0, missing_reference=0.0, why="below both bounds")
DRIFTED = ColumnDrift(
    name="response",
    kind="categorical",
    psi=0.31,
    psi_lower=0.24,
    missing_reference=0.0,
    drifted=True,
    why="PSI 0.310, at least 0.240 >= 0.1",
)


def report(*columns: ColumnDrift, rows: int = 500) -> DriftReport:
    return DriftReport(
        window="2016-01-01..2017-01-01",
        rows=rows,
        reference_window="2012-01-01..2014-01-01",
        reference_rows=800,
        model_version="3",
        columns=list(columns),
        findings=["the window is empty"] if not rows else [],
        drifted=any(column.drifted for column in columns),
        drifted_columns=[column.name for column in columns if column.drifted],
        max_psi=columns[0].psi if columns else None,
    )


def test_drift_triggers_and_the_reason_has_the_numbers() -> None:
    decision = decide(report(DRIFTED, QUIET), SETTINGS)
    assert decision.trigger
    assert decision.reason == "drift in response (PSI 0.310, at least 0.240 >= 0.1)"


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
    for forced in (report(QUIET), report(rows=0), report(DRIFTED)):
        decision = decide(forced, SETTINGS, force=True)
        assert (decision.trigger, decision.reason) == (True, "forced")
