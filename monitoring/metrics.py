"""Drift report -> a Prometheus textfile for node_exporter's collector: scalars and names of columns."""

from pathlib import Path

from monitoring.drift import SEVERITIES, DriftReport
from monitoring.files import write_atomically


def write_textfile(report: DriftReport, student: str, path: Path) -> None:
    """Write what a report says as gauges, in place of what the report before said.

    Raises Failure when the file cannot be written.
    """
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()

    def gauge(name: str, what: str, *labels: str) -> Gauge:
        return Gauge(f"redistill_{name}", what, ["student", *labels], registry=registry)

    severity = gauge("drift_severity", "0 none, 1 info, 2 warning, 3 critical")
    severity.labels(student).set(SEVERITIES.index(report.severity))
    gauge("window_rows", "held-out rows of the window").labels(student).set(report.rows)
    psi = gauge("drift_psi", "population stability index", "column")
    bound = gauge("drift_psi_lower", "its lower 95 % bound", "column")
    distance = gauge("drift_ks_distance", "Kolmogorov-Smirnov distance", "column")
    missing = gauge("missing_share", "share of missing values", "column")
    for column in report.columns:
        for kind, value in (
            (psi, column.psi),
            (bound, column.psi_lower),
            (distance, column.ks_distance),
            (missing, column.missing_current),
        ):
            if value is not None:
                kind.labels(student, column.name).set(value)
    if report.quality is not None and report.quality.accuracy is not None:
        gauge("accuracy", "exact match on the labelled rows").labels(student).set(report.quality.accuracy.value)
    if report.quality is not None and report.quality.estimated_accuracy is not None:
        estimate = gauge("accuracy_estimated", "accuracy estimated from the model's confidence")
        estimate.labels(student).set(report.quality.estimated_accuracy.value)
    write_atomically(path, generate_latest(registry))
