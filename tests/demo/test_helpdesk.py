"""The generated help desk: one quiet world before the launch, another one after it."""

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from demo import helpdesk, wording
from demo.helpdesk import END, LAUNCH, START, labelled, stream

NEW_QUEUES = {issue.queue for issue in wording.NEW_ISSUES} - {issue.queue for issue in wording.OLD_ISSUES}


def psi(reference: pd.Series, current: pd.Series) -> float:
    """Population stability index of two samples of answers, with half a row added to each cell."""
    cells = sorted(set(reference) | set(current))
    shares = [
        sample.value_counts().reindex(cells, fill_value=0).to_numpy(float) + 0.5 for sample in (reference, current)
    ]
    p, q = (share / share.sum() for share in shares)
    return float(((p - q) * np.log(p / q)).sum())


def test_windows_agree_where_they_overlap() -> None:
    whole = stream(date(2025, 5, 10), date(2025, 5, 15), 40, seed=3)
    part = stream(date(2025, 5, 12), date(2025, 5, 14), 40, seed=3)
    inside = whole[(whole.timestamp >= "2025-05-12") & (whole.timestamp < "2025-05-14")].reset_index(drop=True)
    pd.testing.assert_frame_equal(part, inside)


def test_another_seed_is_another_stream() -> None:
    one, other = (stream(START, START + timedelta(days=3), 40, seed) for seed in (1, 2))
    assert not set(one.prompt) <= set(other.prompt)


def test_rows_are_those_of_a_request_log_that_nobody_answered() -> None:
    frame = stream(START, START + timedelta(days=10), 60)
    assert list(frame.columns) == list(helpdesk.COLUMNS)
    assert frame.request_id.is_unique
    assert frame.timestamp.is_monotonic_increasing
    assert str(frame.timestamp.dtype) == "datetime64[us, UTC]"
    assert frame.timestamp.min() >= pd.Timestamp(START, tz="UTC")
    assert frame.timestamp.max() < pd.Timestamp(START, tz="UTC") + pd.Timedelta(days=10)
    assert frame[["response", "model_version", "mean_logprob", "latency_ms"]].isna().all(axis=None)
    assert frame.prompt.str.strip().str.len().min() > 0
    assert set(frame.reference.dropna()) <= set(helpdesk.ANSWERS)
    assert 0.7 < frame.reference.notna().mean() < 0.9


def test_weekdays_are_busier_than_weekends() -> None:
    frame = stream(START, START + timedelta(days=28), 100)
    weekend = frame.timestamp.dt.dayofweek >= 5
    assert weekend.sum() / 8 < 0.75 * (~weekend).sum() / 20
    assert 90 < len(frame) / 28 < 110


def test_the_launch_brings_words_and_queues_that_nobody_saw_before() -> None:
    before, after = stream(START, LAUNCH, 100), stream(LAUNCH, END, 100)
    assert not before.prompt.str.lower().str.contains("lumina|glowstrip|tesso").any()
    assert not before.reference.dropna().str.split(" / ").str[0].isin(NEW_QUEUES).any()
    new = after.reference.dropna().str.split(" / ").str[0].isin(NEW_QUEUES).mean()
    assert 0.25 < new < 0.45
    assert psi(before.reference.dropna(), after.reference.dropna()) > 0.5


def test_windows_before_the_launch_look_like_the_reference() -> None:
    # Without drift PSI is about chi2(cells - 1) x (1/n + 1/m): here .06 on average, with a standard deviation of .02.
    found = []
    for seed in range(8):
        known = labelled(START, LAUNCH, 40, seed)
        quiet = known.timestamp >= helpdesk.QUIET_WINDOW.split("..")[0]
        found.append(psi(known[~quiet].reference, known[quiet].reference))
    assert np.mean(found) < 0.09
    assert max(found) < 0.14


def test_old_tickets_go_on_unchanged_after_the_launch() -> None:
    before, after = (labelled(*days, 100) for days in ((START, LAUNCH), (LAUNCH, END)))
    old = after[~after.prompt.str.lower().str.contains("|".join(NEW_WORDS))]
    assert psi(before.reference, old.reference) < 0.1


NEW_WORDS = [*(word.lower() for word in wording.NEW_PRODUCTS), "lumina", "fitter", "fitting", "starter bundle"]


@pytest.mark.slow
def test_prepare_fills_a_workspace_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tomllib

    from distill.settings import StudentSettings, TrainingSettings
    from distill.teacher_settings import TeacherSettings
    from monitoring.settings import ReferenceSettings, TrafficSettings
    from monitoring.traffic import Window, read_window

    monkeypatch.setattr(helpdesk, "START", LAUNCH - timedelta(days=13))
    monkeypatch.setattr(helpdesk, "END", LAUNCH + timedelta(days=1))
    monkeypatch.setitem(helpdesk.TEACHER, "steps", 4)
    asked: list[int] = []
    config = helpdesk.prepare(tmp_path / "w", lambda done, total: asked.append(done))
    assert asked
    asked.clear()
    digest = config.read_bytes()
    assert helpdesk.prepare(tmp_path / "w", lambda done, total: asked.append(done)) == config
    assert not asked
    assert config.read_bytes() == digest

    found = tomllib.loads(config.read_text())
    student, teacher = StudentSettings(**found["student"]), TeacherSettings(**found["teacher"])
    TrafficSettings(**found["traffic"]), TrainingSettings(**found["training"])
    assert (Path(student.base) / "model.safetensors").is_file()
    assert (Path(teacher.model) / "model.safetensors").is_file()
    Window.parse(ReferenceSettings(**found["reference"]).window)
    log = read_window(str(tmp_path / "w" / "traffic"), Window.parse("2025-01-01..2026-01-01"))
    assert len(log) == len(stream(helpdesk.START, helpdesk.END))
