"""Drift by simulation: how often it is reported where there is none, how surely where there is, and on odd data."""

import csv
import gzip
import os
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, ks_2samp, norm

from monitoring import statistics
from monitoring.drift import compare, with_quality
from monitoring.drift_report import ColumnDrift, DriftReport
from monitoring.features import features
from monitoring.performance import Interval, Quality
from monitoring.profile import ReferenceProfile
from monitoring.settings import DriftSettings

SETTINGS = DriftSettings()
SHIFT_OF_PSI_01 = 0.323474  # standard deviations between two normals whose PSI on deciles is 0.1


def build(frame: pd.DataFrame) -> ReferenceProfile:
    return ReferenceProfile.build(
        frame, window="then", model_version="1", max_categories=SETTINGS.max_categories, sample_rows=100, seed=0
    )


def report_on(reference: pd.DataFrame, current: pd.DataFrame) -> DriftReport:
    return compare(build(reference), current, "now", SETTINGS)


def column_of(report: DriftReport, name: str) -> ColumnDrift:
    return next(column for column in report.columns if column.name == name)


def world(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """Twelve columns: normal, heavy-tailed, discrete, tied, with holes, of 10 and of 300 categories."""
    columns = {f"normal_{i}": rng.normal(size=rows) for i in range(6)}
    rank = 1 / np.arange(1, 301)
    return pd.DataFrame(
        {
            **columns,
            "heavy": rng.standard_t(2, rows),
            "discrete": rng.poisson(2, rows).astype(float),
            "tied": np.where(rng.random(rows) < 0.8, 0.0, rng.exponential(size=rows)),
            "holes": np.where(rng.random(rows) < 0.3, np.nan, rng.normal(size=rows)),
            "ten": rng.choice([f"c{i}" for i in range(10)], rows, p=np.arange(1, 11) / 55),
            "many": rng.choice([f"m{i}" for i in range(300)], rows, p=rank / rank.sum()),
        }
    )


@pytest.mark.slow
def test_a_quiet_window_of_500_alarms_at_most_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(11)
    reports = [report_on(world(rng, 800), world(rng, 500)) for _ in range(300)]
    alarms = sum(report.drifted for report in reports)
    assert alarms <= binom.ppf(0.99, 300, SETTINGS.alpha), alarms
    # The rates of single columns, which the limits above would hide: p-values hold their level ...
    for name in ("normal_0", "heavy", "discrete", "tied", "holes", "ten", "many"):
        significant = sum((column_of(report, name).psi_p or 0) < 0.05 for report in reports)
        assert significant <= binom.ppf(0.999, 300, 0.05 * 1.3), name
    # ... and the bound alone never alarms.
    assert not any((column.psi_lower or 0) >= SETTINGS.psi_bound for report in reports for column in report.columns)


def test_many_rare_categories_raise_no_false_alarm() -> None:
    rng = np.random.default_rng(12)
    labels = np.array([f"m{i}" for i in range(100)])
    for rows in ((200, 200), (300, 3000)):
        for _ in range(40):
            then, now = (pd.DataFrame({"label": rng.choice(labels, n)}) for n in rows)
            assert not report_on(then, now).drifted


def test_a_shift_of_half_a_deviation_is_found_in_a_thousand_rows() -> None:
    rng = np.random.default_rng(13)
    found = 0
    for _ in range(40):
        current = world(rng, 1000)
        current["normal_3"] += 0.5
        report = report_on(world(rng, 800), current)
        found += "normal_3" in report.drifted_columns
    assert found >= 38


def test_the_bound_is_below_the_true_psi_as_often_as_it_says() -> None:
    rng = np.random.default_rng(14)
    bounds, points = [], []
    for _ in range(300):
        then = pd.DataFrame({"x": rng.normal(size=5000)})
        now = pd.DataFrame({"x": rng.normal(size=1000) + SHIFT_OF_PSI_01})
        column = report_on(then, now).columns[0]
        bounds.append(column.psi_lower)
        points.append(column.psi)
    assert 0.90 <= np.mean([bound <= 0.1 for bound in bounds if bound is not None]) <= 0.98
    assert np.mean([point >= 0.1 for point in points if point is not None]) > 0.5  # the point estimate alone would fire


def test_the_shift_of_the_coverage_test_has_a_psi_of_a_tenth() -> None:
    deciles = norm.ppf(np.arange(1, 10) / 10)
    shares = np.diff([0.0, *norm.cdf(deciles - SHIFT_OF_PSI_01), 1.0])
    assert np.sum((0.1 - shares) * np.log(0.1 / shares)) == pytest.approx(0.1, abs=1e-5)


@pytest.mark.parametrize("outlier", [1e6, -1e300, np.inf])
def test_an_outlier_neither_hides_a_shift_nor_raises_an_alarm(outlier: float) -> None:
    rng = np.random.default_rng(15)
    then, now = rng.normal(size=2000), rng.normal(size=1000)
    for shift, drifted in ((1.0, True), (0.0, False)):
        frames = [pd.DataFrame({"x": np.append(values, outlier)}) for values in (then, now + shift)]
        assert report_on(frames[0], frames[1]).drifted is drifted
        assert report_on(pd.DataFrame({"x": then}), frames[1]).drifted is drifted


def test_a_new_category_is_seen() -> None:
    rng = np.random.default_rng(16)
    then = pd.DataFrame({"label": rng.choice(list("abcd"), 800)})
    now = pd.DataFrame({"label": rng.choice([*"abcd", "new"], 500, p=[0.225] * 4 + [0.1])})
    report = report_on(then, now)
    assert report.drifted_columns == ["label"]
    assert "PSI" in report.columns[0].why


@pytest.mark.parametrize("value", [4.0, 6.0])
def test_leaving_a_constant_is_seen_on_either_side(value: float) -> None:
    now = np.full(500, 5.0)
    now[:200] = value
    report = report_on(pd.DataFrame({"x": np.full(800, 5.0)}), pd.DataFrame({"x": now}))
    column = report.columns[0]
    assert column.drifted
    assert column.psi_lower is not None
    assert column.psi_lower > SETTINGS.psi_bound
    assert column.ks_distance == pytest.approx(0.4)


def test_binned_ks_is_scipys_within_a_bin() -> None:
    rng = np.random.default_rng(17)
    then, now = rng.normal(size=4000), rng.normal(size=900) + 0.3
    column = report_on(pd.DataFrame({"x": then}), pd.DataFrame({"x": now})).columns[0]
    exact = ks_2samp(then, now, method="asymp")
    assert column.ks_distance is not None
    assert 0 <= exact.statistic - column.ks_distance < 1 / 256
    assert statistics.ks_p_value(exact.statistic, 4000, 900) == pytest.approx(exact.pvalue, rel=0.1)


def test_holm_is_the_step_down_of_the_book() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_a_report_is_sorted_says_why_and_comes_back_from_json() -> None:
    rng = np.random.default_rng(18)
    then, now = world(rng, 800), world(rng, 600)
    now["heavy"] += 3
    now["ten"] = None
    report = report_on(then, now)
    values = [column.psi for column in report.columns]
    assert values[-1] is None
    assert values[:-1] == sorted((value for value in values if value is not None), reverse=True)
    assert (report.columns[0].name, report.drifted_columns, report.max_psi) == ("heavy", ["heavy"], values[0])
    assert (report.rows, report.reference_rows, report.window) == (600, 800, "now")
    assert DriftReport.model_validate_json(report.model_dump_json()) == report


def quiet(rows: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(19)
    return pd.DataFrame({"x": rng.normal(size=rows), "label": rng.choice(list("abc"), rows)})


@pytest.mark.parametrize(
    ("current", "finding"),
    [
        (quiet()[["x"]], "label: missing from the window; not compared"),
        (quiet().assign(x="text"), "x: changed type, it is not numeric now; not compared"),
        (quiet().assign(label=1.0), "label: changed type, it is numeric now; not compared"),
        (quiet().assign(x=np.nan), "x: no values in the window; not compared"),
        (quiet().assign(x=None), "x: no values in the window; not compared"),
        (quiet().assign(x=np.inf), "x: only 0 values in the window, at least 20 are needed; not compared"),
        (quiet().iloc[:0], "the window is empty; at least 200 are needed"),
        (quiet(150), "the window has too few rows: 150; at least 200 are needed"),
        (quiet(7), "x: only 7 values in the window, at least 20 are needed; not compared"),
        (quiet().assign(x=0.1), "x: constant in the window"),
        (quiet().assign(new=1), "new: not in the reference; not compared"),
        (quiet().assign(x=quiet()["x"].where(quiet()["x"] < 1.5, np.inf)), "x: 20 infinite values in the window, 0 in"),
        (quiet().assign(x=quiet()["x"].where(quiet().index >= 80)), "x: missing in 0.0% of the reference and in 20.0%"),
        (pd.concat([quiet(), quiet()[["x"]]], axis=1), "columns given twice, only the first of each is compared: x"),
        (pd.DataFrame(), "the window is empty"),
        (quiet().assign(label=[["a", "list"]] * 400), "label: constant in the window"),
        (quiet().rename(columns={"x": 3}), "3: not in the reference"),
    ],
)
def test_trouble_is_a_finding_and_no_exception(current: pd.DataFrame, finding: str) -> None:
    report = report_on(quiet(), current)
    assert any(found.startswith(finding) for found in report.findings), report.findings
    assert {column.name for column in report.columns} == {"x", "label"}
    assert DriftReport.model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize(("reference", "needed"), [(1000, 503), (300, None)])
def test_too_few_rows_say_how_many_it_takes_for_a_change_that_warns(reference: int, needed: int | None) -> None:
    """A window of exactly so many rows, shifted by the distance that warns, is significant; one row less is not."""
    finding = report_on(quiet(reference), quiet(150)).findings[0]
    alpha = SETTINGS.alpha / 2 / 2  # half of the level, two columns
    if needed is None:
        assert "a larger reference than 300 rows for a KS distance of 0.1 to be significant in 2 columns" in finding
        assert statistics.ks_p_value(SETTINGS.ks_distance, 300, 10**9) > alpha
        return
    assert f"{needed} for a KS distance of 0.1 to be significant in 2 columns" in finding
    assert statistics.ks_p_value(SETTINGS.ks_distance, reference, needed) < alpha
    assert statistics.ks_p_value(SETTINGS.ks_distance, reference, needed - 1) >= alpha


def test_a_reference_of_too_few_rows_is_a_finding() -> None:
    assert any("the reference has too few rows: 150" in found for found in report_on(quiet(150), quiet()).findings)


def test_values_outside_of_the_references_range_are_a_finding() -> None:
    beyond = quiet().assign(x=quiet()["x"].where(quiet().index >= 40, 99.0))
    assert any("x: 10.0% of its values lie outside" in found for found in report_on(quiet(), beyond).findings)


def test_severity_goes_by_the_lower_bound_and_critical_by_its_own() -> None:
    rng = np.random.default_rng(4)
    reference = pd.DataFrame({"x": rng.normal(size=5000)})
    found = {
        shift: report_on(reference, pd.DataFrame({"x": rng.normal(size=2000) + shift})) for shift in (0.2, 0.45, 0.9)
    }
    assert [report.severity for report in found.values()] == ["info", "warning", "critical"]
    column = found[0.45].columns[0]
    assert SETTINGS.psi_bound < column.psi_lower < SETTINGS.critical_bound
    small = report_on(reference, pd.DataFrame({"x": rng.normal(size=250) + 0.66})).columns[0]
    assert small.psi > SETTINGS.critical_bound > small.psi_lower, "above the critical bound perhaps by chance"
    assert small.severity == "warning"


def test_quality_is_critical_only_when_it_is_surely_below_the_floor() -> None:
    report, floor = report_on(quiet(), quiet()), DriftSettings(quality_floor=0.8)
    for high, severity in ((0.79, "critical"), (0.82, "none")):
        quality = Quality(rows=500, labelled=500, accuracy=Interval(value=0.75, low=0.7, high=high))
        judged = with_quality(report, quality, floor)
        assert (judged.quality_severity, judged.severity) == (severity, severity)
        assert judged.drifted_parts == (["quality"] if severity == "critical" else [])


def test_benjamini_hochberg_finds_more_than_holm_in_many_columns_that_drift() -> None:
    rng = np.random.default_rng(5)
    names = [f"x{i}" for i in range(20)]
    reference = build(pd.DataFrame(rng.normal(size=(2000, 20)), columns=names))
    current = pd.DataFrame(rng.normal(size=(600, 20)) + 0.14 * (np.arange(20) < 12), columns=names)
    found = {}
    for name in ("holm", "bh"):
        report = compare(reference, current, "now", DriftSettings.model_validate({"correction": name}))
        found[name] = sum(column.severity != "none" for column in report.columns)
    assert found["bh"] > found["holm"] > 0


def test_a_column_that_never_had_values_is_said_so() -> None:
    empty = quiet().assign(latency_ms=np.nan)
    report = report_on(empty, empty)
    assert report.findings == ["latency_ms: no values in the window, nor in the reference; not compared"]
    assert not report.drifted
    assert "no values in the reference" in report_on(empty, quiet().assign(latency_ms=1.0)).findings[0]


def test_mostly_rare_categories_are_a_finding() -> None:
    names = pd.DataFrame({"label": [f"name {i}" for i in range(500)]})
    report = report_on(names, names)
    assert report.findings == ["label: 100% of the reference are rare categories; changes among them are not seen"]


def test_the_bound_holds_at_any_size() -> None:
    for n in (20, 1_000, 50_000_000):
        for value in (0.0, 1e-9, 0.01, 0.5, 30.0):
            assert 0 <= statistics.psi_lower_bound(value, n, n, 10) <= value


ARXIV = Path(
    os.environ.get("REDISTILL_ARXIV", Path(__file__).parents[3] / "shared" / "data" / "arxiv_titles_2008_2016.csv.gz")
)


@pytest.mark.skipif(not ARXIV.is_file(), reason=f"no arXiv titles at {ARXIV}; set REDISTILL_ARXIV")
def test_quiet_arxiv_titles_are_held_and_those_of_2016_drift() -> None:
    with gzip.open(ARXIV, "rt", newline="") as file:
        rows = [row for row in csv.DictReader(file) if zlib.crc32(row["arxiv_id"].encode()) % 100 >= 60]
    held_out = np.array([zlib.crc32(row["arxiv_id"].encode()) % 100 for row in rows])
    year = np.array([int(row["date"][:4]) for row in rows])
    made = features(pd.DataFrame({"prompt": [r["title"] for r in rows], "response": [r["primary_cat"] for r in rows]}))
    then = np.isin(year, (2012, 2013))
    profile = build(made[then & (held_out < 80)])
    reports = {
        name: [compare(profile, pool.sample(500, random_state=seed), name, SETTINGS) for seed in range(20)]
        for name, pool in (("quiet", made[then & (held_out >= 80)]), ("2016", made[year == 2016]))
    }
    assert [report.drifted_columns for report in reports["quiet"]] == [[]] * 20
    assert all("response" in report.drifted_columns for report in reports["2016"])
