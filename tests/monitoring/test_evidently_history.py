"""The workspace: Evidently reads back, and its server shows, what the reports said about each window."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from monitoring.drift import compare
from monitoring.drift_report import DriftReport
from monitoring.errors import Failure, InputError
from monitoring.evidently_history import METRIC, SEVERITY, add_to_history, project_id, run_id
from monitoring.profile import ReferenceProfile
from monitoring.settings import DriftSettings

WINDOWS = ("2016-01-01..2016-02-01", "2016-02-01..2016-03-01")
SECRET = "the answer that a customer got"
SCRIPT = "meta_</script><script>alert(1)</script>"


def frame(rows: int, shift: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(rows)
    return pd.DataFrame(
        {
            "prompt_chars": rng.normal(100, 20, rows) + shift,
            "latency_ms": np.nan,
            "response": rng.choice(["billing", SECRET if shift else "delivery"], rows),
            SCRIPT: rng.choice(["a", "b"], rows),
        }
    )


PROFILE = ReferenceProfile.build(
    frame(800), window="2015-01-01..2016-01-01", model_version="3", max_categories=50, sample_rows=100, seed=0
)


def report_on(window: str, rows: int = 600, shift: float = 20.0) -> DriftReport:
    return compare(PROFILE, frame(rows, shift), window, DriftSettings())


def add(workspace: Path, report: DriftReport, champion: str = "3", student: str = "helpdesk") -> None:
    add_to_history(
        workspace, student, report, champion=champion, page=workspace.parent / f"1f-champion-{champion}" / "report.html"
    )


def stored(workspace: Path, student: str = "helpdesk") -> list[Any]:
    """All runs of a student, the oldest first, as Evidently itself reads them."""
    from evidently.ui.workspace import Workspace

    opened = Workspace(str(workspace))
    (project,) = opened.search_project(student)
    runs = [opened.get_run(project.id, run) for run in opened.list_runs(project.id)]
    return sorted(runs, key=lambda run: run.timestamp)


def psi_in(run: Any) -> dict[str, float]:
    results = {result.metric_value_location.metric.metric_id: result for result in run.metric_results.values()}
    assert results.keys() == run.metric_results.keys()
    return {
        result.metric_value_location.metric.params["column"]: result.value
        for result in results.values()
        if result.metric_value_location.metric.params["type"] == f"{METRIC}ValueDrift"
    }


def test_a_stored_run_says_what_the_report_says(tmp_path: Path) -> None:
    report = report_on(WINDOWS[0])
    add(tmp_path / "evidently", report)
    (run,) = stored(tmp_path / "evidently")
    compared = {column.name.replace("<", "\u2039"): column.psi for column in report.columns if column.psi is not None}
    assert psi_in(run) == compared
    assert set(compared) == {"prompt_chars", "response", SCRIPT.replace("<", "\u2039")}
    values = {
        result.metric_value_location.metric.params["type"].removeprefix(METRIC): result.to_simple_dict()
        for result in run.metric_results.values()
    }
    assert values["RowCount"] == 600
    assert values["DriftedColumnsCount"] == {"count": 2, "share": pytest.approx(2 / 3)}
    assert values[SEVERITY] == 3


def test_the_picture_and_the_history_have_the_same_psi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evidently import Report

    from monitoring.report import write_html

    drawn: list[Any] = []
    run = Report.run
    monkeypatch.setattr(Report, "run", lambda self, *data: drawn.append(run(self, *data)) or drawn[-1])
    report = report_on(WINDOWS[0])
    write_html(frame(800), frame(600, 20), report, tmp_path / "report.html")
    add(tmp_path / "evidently", report)
    assert psi_in(stored(tmp_path / "evidently")[0]) == psi_in(drawn[0].to_snapshot_model())


def test_columns_whose_names_are_shown_alike_are_two_in_a_run(tmp_path: Path) -> None:
    report = report_on(WINDOWS[0])
    first, second = report.columns[:2]
    alike = [first.model_copy(update={"name": "meta_<"}), second.model_copy(update={"name": "meta_\u2039"})]
    add(tmp_path / "evidently", report.model_copy(update={"columns": alike}))
    (run,) = stored(tmp_path / "evidently")
    assert psi_in(run) == {"meta_\u2039 (2)": first.psi, "meta_\u2039": second.psi}


def test_a_run_is_dated_at_the_windows_end_and_tells_champion_and_severity(tmp_path: Path) -> None:
    add(tmp_path / "evidently", report_on(WINDOWS[0]))
    (run,) = stored(tmp_path / "evidently")
    assert run.name == WINDOWS[0]
    assert run.timestamp == datetime(2016, 2, 1)
    assert run.tags == ["champion 3", "critical"]
    assert run.metadata == {
        "window": WINDOWS[0],
        "champion": "3",
        "severity": "critical",
        "rows": "600",
        "reference": "2015-01-01..2016-01-01",
        "page": "1f-champion-3/report.html",
    }


def test_a_second_look_at_a_window_takes_the_place_of_the_first(tmp_path: Path) -> None:
    add(tmp_path, report_on(WINDOWS[0]))
    add(tmp_path, report_on(WINDOWS[0], rows=700))
    assert [run.metadata["rows"] for run in stored(tmp_path)] == ["700"]


def test_another_window_and_another_champion_are_runs_of_their_own_and_another_student_a_project(
    tmp_path: Path,
) -> None:
    add(tmp_path, report_on(WINDOWS[0]))
    add(tmp_path, report_on(WINDOWS[1]))
    add(tmp_path, report_on(WINDOWS[1]), champion="4")
    add(tmp_path, report_on(WINDOWS[1]), student="router")
    seen = [(run.metadata["window"], run.metadata["champion"]) for run in stored(tmp_path)]
    assert sorted(seen) == [(WINDOWS[0], "3"), (WINDOWS[1], "3"), (WINDOWS[1], "4")]
    assert len(stored(tmp_path, "router")) == 1


# One process: adds a report again and again, beginning when it is told to; Evidently is imported by then.
LOOKS = """
import sys
from pathlib import Path
from monitoring.drift_report import DriftReport
from monitoring.evidently_history import add_to_history

folder = Path(sys.argv[1])
report = DriftReport.model_validate_json((folder / "report.json").read_text())

def add(workspace):
    add_to_history(workspace, "helpdesk", report, champion="3", page=folder / "report.html")

add(folder / f"warm{sys.argv[2]}")
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    add(folder / "evidently")
"""


def test_processes_that_look_at_once_leave_one_whole_run(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(report_on(WINDOWS[0]).model_dump_json())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOOKS, str(tmp_path), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    assert [process.stdout.readline() for process in processes if process.stdout] == ["ready\n"] * 3
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("now\n")
        process.stdin.flush()
    said = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, said
    assert len(stored(tmp_path / "evidently")) == 1
    # Nothing half-made is left.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evidently", "report.json", "warm0", "warm1", "warm2"]


def test_a_window_with_no_rows_is_a_run_without_psi(tmp_path: Path) -> None:
    add(tmp_path, report_on(WINDOWS[0]))
    add(tmp_path, compare(PROFILE, frame(600).iloc[:0], WINDOWS[1], DriftSettings()))
    full, empty = stored(tmp_path)
    assert psi_in(full)
    assert psi_in(empty) == {}
    assert empty.metadata["rows"] == "0"


def test_a_dashboard_that_somebody_changed_stays_as_it_is(tmp_path: Path) -> None:
    from evidently.ui.workspace import Workspace

    add(tmp_path, report_on(WINDOWS[0]))
    project = Workspace(str(tmp_path)).get_project(project_id("helpdesk"))
    assert project is not None
    project.dashboard.delete_panel("Severity", "Drift")
    add(tmp_path, report_on(WINDOWS[1]))
    left = [panel.title for panel in project.dashboard.model().panels]
    assert left == ["PSI of each column", "Drifted columns", "Rows of the window"]


def test_no_value_of_the_data_is_in_the_workspace(tmp_path: Path) -> None:
    report = report_on(WINDOWS[0])
    assert SECRET in report.model_dump_json()
    add(tmp_path, report)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files if path.parent.name != "snapshots") == ["dashboard.json", "metadata.json"]
    assert not any(SECRET in path.read_text() or "billing" in path.read_text() for path in files)


def test_a_columns_name_cannot_add_a_script(tmp_path: Path) -> None:
    from evidently.core.report import Snapshot

    add(tmp_path, report_on(WINDOWS[0]))
    page = Snapshot.load_model(stored(tmp_path)[0]).get_html_str(as_iframe=False)
    assert "alert(1)" in page
    assert "<script>alert(1)" not in page


def test_a_workspace_that_cannot_be_written_is_a_clear_failure(tmp_path: Path) -> None:
    (tmp_path / "evidently").write_text("a file")
    with pytest.raises(Failure, match=r"cannot write .*evidently/.*: .*, and try again"):
        add(tmp_path / "evidently", report_on(WINDOWS[0]))


def test_a_report_on_no_window_of_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"window 'today\.csv' cannot be read"):
        add(tmp_path, report_on("today.csv"))
    assert list(tmp_path.iterdir()) == []


def test_evidently_is_not_imported_until_a_report_is_added() -> None:
    code = "import sys, monitoring.evidently_history; print({'evidently', 'torch', 'prefect'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_no_telemetry_is_allowed_once_a_report_was_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    add(tmp_path, report_on(WINDOWS[0]))
    assert os.environ.pop("DO_NOT_TRACK") == "1"


@contextlib.contextmanager
def served(workspace: Path, log: Path, port: int) -> Iterator[httpx.Client]:
    """Run `evidently ui` on this loopback port, without telemetry."""
    command = [str(Path(sys.executable).with_name("evidently")), "ui", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
        process = subprocess.Popen(
            [*command, "--workspace", str(workspace)],
            env={**os.environ, "DO_NOT_TRACK": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until(lambda: process.poll() is not None or answers(client), log, 600)
            assert process.poll() is None, log.read_text()
            yield client
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until(condition: Any, log: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)


def answers(client: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return client.get("/api/version").status_code == 200
    return False


@pytest.mark.integration
@pytest.mark.slow
def test_evidently_ui_shows_both_windows_in_each_panel_the_second_as_it_comes_in(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    workspace, log = tmp_path / "monitor" / "evidently", tmp_path / "ui.log"
    reports = [report_on(WINDOWS[0]), report_on(WINDOWS[1], rows=900, shift=0.0)]
    add(workspace, reports[0])
    with served(workspace, log, free_port()) as client:
        (project,) = client.get("/api/projects").json()
        assert (project["id"], project["name"]) == (str(project_id("helpdesk")), "helpdesk")
        runs = f"/api/projects/{project['id']}/reports"
        add(workspace, reports[1])
        wait_until(lambda: len(client.get(runs).json()) == 2, log, 300)
        ids = {run["id"]: run["timestamp"] for run in client.get(runs).json()}
        ends = ["2016-02-01T00:00:00", "2016-03-01T00:00:00"]
        assert ids == {str(run_id("helpdesk", window, "3")): end for window, end in zip(WINDOWS, ends, strict=True)}
        dashboard = client.get(f"/api/v2/dashboards/{project['id']}").json()
        shown = {panel["title"]: series_of(client, project["id"], panel) for panel in dashboard["panels"]}
        page = client.get(f"/api/projects/{project['id']}/{next(iter(ids))}/data").json()
    assert shown["Severity"] == {"": [3, 0]}
    assert shown["Rows of the window"] == {"": [600, 900]}
    assert shown["Drifted columns"] == {"": [2, 0]}
    by_name = [{column.name.replace("<", "\u2039"): column.psi for column in report.columns} for report in reports]
    assert len(shown["PSI of each column"]) == 3
    for column, values in shown["PSI of each column"].items():
        assert values == [said[column] for said in by_name]
    assert [widget["type"] for widget in page["widgets"]] == ["counter", "table"]


def series_of(client: httpx.Client, project: str, panel: dict[str, Any]) -> dict[str, list[float]]:
    """What a panel of the dashboard draws, by column, the windows in their order."""
    names = ("tags", "metadata", "metric", "metric_labels")
    wanted = {"series_filter": [{name: value[name] for name in names} for value in panel["values"]]}
    found = client.post(f"/api/v2/snapshots/{project}/data_series_batch", json=wanted).json()
    return {series["params"].get("column", ""): series["values"] for series in found["series"]}
