"""Drift reports -> runs of an Evidently workspace, where `evidently ui` shows them over time.

    DO_NOT_TRACK=1 evidently ui --host 127.0.0.1 --workspace WORKSPACE/monitor/evidently

A student is a project, a window that a champion was compared on is a run, dated at the window's end. A run holds the
report's numbers and no row, category or picture of the data: the page beside the workspace has the pictures, and
Evidently's server keeps all runs in memory.

The files are in Evidently's own format, but its Workspace does not write them: it reads all runs before it adds one,
gives each a new random id, and can leave half a file behind, on which the server does not start. Here ids follow from
what they name, so a second look at a window takes the place of the first, and two processes that write at once agree.
"""

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monitoring.drift_report import SEVERITIES, DriftReport
from monitoring.files import write_atomically
from monitoring.report import TEST_NAME, figures, shown_names
from monitoring.window import Window

METRIC = "evidently:metric_v2:"  # before the name of a metric, ours or Evidently's
SEVERITY = "DriftSeverity"
_NAMES = uuid.uuid5(uuid.NAMESPACE_OID, "redistill.monitoring.evidently_history")


def add_to_history(workspace: Path, student: str, report: DriftReport, *, champion: str, page: Path) -> None:
    """Add a report on a champion's window to a student's history, or put it in the place of the last on that window.

    `page` is where the report's pictures lie. Raises InputError when the report's window is not START..END, Failure
    when the workspace cannot be written.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from evidently.ui.storage.local.base import DASHBOARD_FILE_NAME, PROJECT_FILE_NAME, SNAPSHOTS_DIR_NAME

    run = _run(report, champion, os.path.relpath(page, workspace.parent))
    project = workspace / str(project_id(student))
    for name, make in ((DASHBOARD_FILE_NAME, _dashboard), (PROJECT_FILE_NAME, _project)):
        if not os.path.isfile(project / name):  # a dashboard that somebody has changed stays as it is
            _put(project / name, make(student), workspace)
    _put(project / SNAPSHOTS_DIR_NAME / f"{run_id(student, report.window, champion)}.json", run, workspace)


def project_id(student: str) -> uuid.UUID:
    """Return the id of a student's project."""
    return uuid.uuid5(_NAMES, json.dumps([student]))


def run_id(student: str, window: str, champion: str) -> uuid.UUID:
    """Return the id of the run on a window that a champion was compared on."""
    return uuid.uuid5(_NAMES, json.dumps([student, window, champion]))


def _put(path: Path, model: Any, workspace: Path) -> None:
    """Write one of Evidently's models as it does; a running server takes up files that come in from outside."""
    from evidently.legacy.utils import NumpyEncoder

    write_atomically(path, json.dumps(model.dict(), cls=NumpyEncoder).encode(), beside=workspace.resolve())


def _project(student: str) -> Any:
    from evidently.sdk.models import ProjectModel

    return ProjectModel(id=project_id(student), name=student, description="Drift of each window that was monitored")


def _dashboard(student: str) -> Any:
    """Return the panels that a person looks at first; ids of their own, as Evidently gives them at random."""
    from evidently.sdk.models import DashboardModel, DashboardTabModel, PanelMetric
    from evidently.sdk.panels import bar_plot_panel, line_plot_panel

    def shown(metric: str, legend: str, **labels: str) -> list[PanelMetric]:
        return [PanelMetric(metric=METRIC + metric, legend=legend, metric_labels=labels)]

    panels = [
        line_plot_panel("PSI of each column", shown("ValueDrift", "{{column}}")),
        bar_plot_panel("Severity", shown(SEVERITY, "severity"), "0 none, 1 info, 2 warning, 3 critical", "half"),
        bar_plot_panel(
            "Drifted columns", shown("DriftedColumnsCount", "columns", value_type="count"), "warning or above", "half"
        ),
        bar_plot_panel("Rows of the window", shown("RowCount", "rows"), "held-out rows that were compared", "half"),
    ]
    for panel in panels:
        panel.id = uuid.uuid5(project_id(student), panel.title)
    tab = DashboardTabModel(id=uuid.uuid5(project_id(student), "tab"), title="Drift", panels=[p.id for p in panels])
    return DashboardModel(tabs=[tab], panels=panels)


def _run(report: DriftReport, champion: str, page: str) -> Any:
    from evidently.core.serialization import ReportModel, SnapshotModel

    results = {result.metric_value_location.metric.metric_id: result for result in _results(report)}
    return SnapshotModel(
        report=ReportModel(items=[]),
        name=report.window,
        timestamp=Window.parse(report.window).end.replace(tzinfo=None),  # UTC: Evidently's server knows no zones
        metadata={
            "window": report.window,
            "champion": champion,
            "severity": report.severity,
            "rows": str(report.rows),
            "reference": report.reference_window,
            "page": page,
        },
        tags=[f"champion {champion}", report.severity],
        metric_results=results,
        top_level_metrics=list(results),
        widgets=_widgets(report),
        tests_widgets=[],
    )


def _results(report: DriftReport) -> Iterator[Any]:
    """Yield the report's numbers as results of Evidently's metrics, and its severity as one of our own."""
    from evidently.core.metric_types import MetricConfig, MetricValueLocation, SingleValue
    from evidently.metrics import DriftedColumnsCount, RowCount, ValueDrift

    names = shown_names(column.name for column in report.columns)
    compared = {names[column.name]: column.psi for column in report.columns if column.psi is not None}
    drifted = len(report.drifted_columns)
    for metric, values in (
        (RowCount(), (report.rows,)),
        (DriftedColumnsCount(method=TEST_NAME), (drifted, drifted / max(len(compared), 1))),
        *((ValueDrift(column=name, method=TEST_NAME), (psi,)) for name, psi in compared.items()),
    ):
        calculation = metric.to_calculation()
        result = calculation.result(*values)
        result.set_metric_location(calculation.to_metric_config())
        yield result
    severity = MetricConfig(metric_id=SEVERITY, params={"type": METRIC + SEVERITY})
    yield SingleValue(
        display_name="Severity of the drift",
        value=SEVERITIES.index(report.severity),
        metric_value_location=MetricValueLocation(severity, {}),
    )


def _widgets(report: DriftReport) -> list[Any]:
    """Return what the run's own page shows: the verdict, and a table of the columns."""
    from evidently.legacy.renderers.html_widgets import CounterData, counter, table_data

    verdict = counter(
        counters=[
            CounterData("severity", report.severity),
            CounterData("rows", f"{report.rows:,}"),
            CounterData("drifted columns", str(len(report.drifted_columns))),
        ]
    )
    names = shown_names(column.name for column in report.columns)
    rows = [
        [
            names[column.name],
            column.severity,
            *figures(column, "psi", "psi_lower", "ks_distance", "p_adjusted", "missing_current"),
        ]
        for column in report.columns
    ]
    titles = ["column", "severity", "PSI", "PSI, lower bound", "KS distance", "p, corrected", "missing"]
    return [verdict, table_data(title="Columns", column_names=titles, data=rows)]
