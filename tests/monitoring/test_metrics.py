"""The Prometheus textfile: what a scrape of it reads is what the report says."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitoring.drift import compare, with_quality
from monitoring.errors import Failure, InputError
from monitoring.metrics import write_textfile
from monitoring.multivariate import DomainAuc, Mmd
from monitoring.performance import Interval, Quality
from monitoring.profile import ReferenceProfile
from monitoring.settings import DriftSettings

RNG = np.random.default_rng(0)
REPORT = compare(
    ReferenceProfile.build(
        pd.DataFrame({"x": RNG.normal(size=800), 'odd "name"\n': RNG.normal(size=800), "empty": np.nan}),
        window="then",
        model_version="1",
        max_categories=50,
        sample_rows=100,
        seed=0,
    ),
    pd.DataFrame(
        {
            "x": np.append(RNG.normal(size=450) + 1, [np.nan] * 50),
            'odd "name"\n': RNG.normal(size=500),
            "empty": np.nan,
        }
    ),
    "2016-01-01..2016-02-01",
    DriftSettings(),
)


def samples(path: Path) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels.get("column", "")): sample.value
        for family in text_string_to_metric_families(path.read_text())
        for sample in family.samples
    }


COLUMNS = {
    "redistill_drift_psi": "psi",
    "redistill_drift_psi_lower": "psi_lower",
    "redistill_drift_ks_distance": "ks_distance",
    "redistill_missing_share": "missing_current",
}


def test_a_scrape_reads_all_that_the_report_says_and_nothing_else(tmp_path: Path) -> None:
    """Every number is another one, so that none can stand in the place of another."""
    measured = Interval(value=0.7, low=0.6, high=0.8), Interval(value=0.75, low=0.65, high=0.85)
    quality = Quality(rows=500, labelled=90, accuracy=measured[0], estimated_accuracy=measured[1])
    sides = {"reference_rows": 800, "current_rows": 500}
    rows = {
        "mmd": Mmd(distance=0.31, p=0.005, **sides),
        "domain": DomainAuc(auc=0.66, low=0.62, high=0.71, p=0.001, **sides),
        "rows_severity": "info",
    }
    report = with_quality(REPORT.model_copy(update=rows), quality, DriftSettings(quality_floor=0.9))
    write_textfile(report, "helpdesk", tmp_path / "metrics" / "helpdesk.prom")
    of_columns = {
        (metric, column.name): getattr(column, field)
        for metric, field in COLUMNS.items()
        for column in report.columns
        if getattr(column, field) is not None
    }
    of_x = [of_columns[metric, "x"] for metric in COLUMNS]
    assert len({round(value, 6) for value in of_x}) == len(COLUMNS)
    assert min(of_x) > 0
    assert samples(tmp_path / "metrics" / "helpdesk.prom") == of_columns | {
        ("redistill_drift_severity", ""): 3,
        ("redistill_rows_severity", ""): 1,
        ("redistill_window_rows", ""): 500,
        ("redistill_window_end_timestamp_seconds", ""): datetime(2016, 2, 1, tzinfo=UTC).timestamp(),
        ("redistill_mmd_distance", ""): 0.31,
        ("redistill_domain_auc", ""): 0.66,
        ("redistill_accuracy", ""): 0.7,
        ("redistill_accuracy_estimated", ""): 0.75,
    }


def test_what_was_not_measured_has_no_gauge(tmp_path: Path) -> None:
    write_textfile(REPORT, "helpdesk", tmp_path / "helpdesk.prom")
    found = samples(tmp_path / "helpdesk.prom")
    assert {name for name, column in found if not column} == {
        *("redistill_drift_severity", "redistill_rows_severity", "redistill_window_rows"),
        "redistill_window_end_timestamp_seconds",
    }
    assert ("redistill_drift_psi", "empty") not in found


def test_a_report_on_no_window_of_time_has_no_end_to_tell(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'today\.csv' cannot be read"):
        write_textfile(REPORT.model_copy(update={"window": "today.csv"}), "helpdesk", tmp_path / "helpdesk.prom")


def test_the_next_report_takes_the_place_of_the_last(tmp_path: Path) -> None:
    path = tmp_path / "helpdesk.prom"
    write_textfile(REPORT, "helpdesk", path)
    write_textfile(REPORT.model_copy(update={"columns": REPORT.columns[:1]}), "helpdesk", path)
    assert len([name for name, _ in samples(path) if name == "redistill_drift_psi"]) == 1


def test_a_file_that_cannot_be_written_is_a_clear_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match=r"cannot write .*file/helpdesk\.prom"):
        write_textfile(REPORT, "helpdesk", tmp_path / "file" / "helpdesk.prom")
