"""Drift report -> retrain, or hold, and the reason in one sentence."""

from pydantic import BaseModel, ConfigDict

from monitoring.drift import ColumnDrift, DriftReport
from monitoring.settings import DriftSettings


class Decision(BaseModel):
    """Whether a retrain is due, and why or why not."""

    model_config = ConfigDict(frozen=True)

    trigger: bool
    reason: str


def decide(report: DriftReport, settings: DriftSettings, *, force: bool = False) -> Decision:
    """Decide on a report: forced, or enough rows and at least one drifted column."""
    if force:
        return Decision(trigger=True, reason="forced")
    if report.rows < settings.min_rows:
        return _hold(f"{report.window} has {report.rows} rows; drift.min_rows asks for {settings.min_rows}")
    drifted = [column for column in report.columns if column.drifted]
    if drifted:
        return Decision(trigger=True, reason="drift in " + "; ".join(f"{c.name} ({c.why})" for c in drifted))
    compared = [column for column in report.columns if column.psi is not None]
    if not compared:
        return _hold("no column could be compared: " + "; ".join(report.findings))
    return _hold(f"no column drifted; the largest is {_named(compared[0])}")


def _hold(reason: str) -> Decision:
    return Decision(trigger=False, reason=reason)


def _named(column: ColumnDrift) -> str:
    return f"{column.name} (PSI {column.psi:.3f}, at least {column.psi_lower:.3f})"
