"""The Prometheus textfile: what a scrape of it reads is what the report says."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitoring.drift import compare, with_quality
from monitoring.errors import Failure
from monitoring.metrics import write_textfile
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
    pd.DataFrame({"x": RNG.normal(size=500) + 1, 'odd "name"\n': RNG.normal(size=500), "empty": np.nan}),
    "now",
    DriftSettings(),
)


def samples(path: Path) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels.get("column", "")): sample.value
        for family in text_string_to_metric_families(path.read_text())
        for sample in family.samples
    }


def test_a_scrape_reads_what_the_report_says(tmp_path: Path) -> None:
    accuracy = Interval(value=0.7, low=0.6, high=0.8)
    report = with_quality(REPORT, Quality(rows=500, labelled=90, accuracy=accuracy), DriftSettings(quality_floor=0.9))
    write_textfile(report, "helpdesk", tmp_path / "metrics" / "helpdesk.prom")
    found = samples(tmp_path / "metrics" / "helpdesk.prom")
    assert found["redistill_drift_severity", ""] == 3
    assert found["redistill_accuracy", ""] == 0.7
    for column in report.columns:
        assert found.get(("redistill_drift_psi", column.name)) == column.psi
    assert ("redistill_drift_psi", "empty") not in found


def test_the_next_report_takes_the_place_of_the_last(tmp_path: Path) -> None:
    path = tmp_path / "helpdesk.prom"
    write_textfile(REPORT, "helpdesk", path)
    write_textfile(REPORT.model_copy(update={"columns": REPORT.columns[:1]}), "helpdesk", path)
    assert len([name for name, _ in samples(path) if name == "redistill_drift_psi"]) == 1


def test_a_file_that_cannot_be_written_is_a_clear_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match=r"cannot write .*file/helpdesk\.prom"):
        write_textfile(REPORT, "helpdesk", tmp_path / "file" / "helpdesk.prom")
