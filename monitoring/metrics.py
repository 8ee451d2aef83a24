"""Drift report -> a Prometheus textfile for node_exporter's collector: scalars and names of columns."""

from collections.abc import Iterator
from pathlib import Path

from monitoring.drift_report import SEVERITIES, DriftReport
from monitoring.files import write_atomically
from monitoring.window import Window


def write_textfile(report: DriftReport, student: str, path: Path) -> None:
    """Write what a report says as gauges, in place of what the report before said.

    Raises InputError when the report's window is not START..END, Failure when the file cannot be written.
    """
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()
    for name, what, value in _scalars(report):
        if value is not None:
            Gauge(f"redistill_{name}", what, ["student"], registry=registry).labels(student).set(value)
    for name, what, values in _of_columns(report):
        gauge = Gauge(f"redistill_{name}", what, ["student", "column"], registry=registry)
        for column, value in values.items():
            if value is not None:
                gauge.labels(student, column).set(value)
    write_atomically(path, generate_latest(registry))


def _scalars(report: DriftReport) -> Iterator[tuple[str, str, float | None]]:
    """Yield name, meaning and value of what is said of the window as a whole."""
    quality = report.quality
    accuracy = quality.accuracy if quality else None
    estimated = quality.estimated_accuracy if quality else None
    steps = "0 none, 1 info, 2 warning, 3 critical"
    yield "drift_severity", steps, SEVERITIES.index(report.severity)
    yield "rows_severity", f"of what whole rows show: {steps}", SEVERITIES.index(report.rows_severity)
    yield "window_rows", "held-out rows of the window", report.rows
    yield "window_end_timestamp_seconds", "the window's end", Window.parse(report.window).end.timestamp()
    yield "mmd_distance", "maximum mean discrepancy of whole rows", report.mmd.distance if report.mmd else None
    yield (
        "domain_auc",
        "AUC of telling the window's rows from the reference's",
        report.domain.auc if report.domain else None,
    )
    yield "accuracy", "exact match on the labelled rows", accuracy.value if accuracy else None
    yield "accuracy_estimated", "accuracy estimated from the model's confidence", estimated.value if estimated else None


def _of_columns(report: DriftReport) -> Iterator[tuple[str, str, dict[str, float | None]]]:
    """Yield name, meaning and values of what is said of each column."""
    columns = report.columns
    yield "drift_psi", "population stability index", {column.name: column.psi for column in columns}
    yield "drift_psi_lower", "its lower 95 % bound", {column.name: column.psi_lower for column in columns}
    yield "drift_ks_distance", "Kolmogorov-Smirnov distance", {column.name: column.ks_distance for column in columns}
    yield "missing_share", "share of missing values", {column.name: column.missing_current for column in columns}
