"""The window that is looked at when none is asked for."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from monitoring import traffic
from monitoring.settings import ReferenceSettings
from tasks.plan import choose_window
from tasks.run import Champion

CHAMPION = Champion(version="1", checkpoint="c", digest="d", retrain_id="r", trained=[], profiled=[])


def log_with(folder: Path, *times: datetime) -> str:
    frame = pd.DataFrame({"request_id": [str(n) for n in range(len(times))], "timestamp": times, "prompt": "x"})
    traffic.append(str(folder), frame)
    return str(folder)


def test_it_is_the_logs_last_whole_days(tmp_path: Path) -> None:
    log = log_with(tmp_path, datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 3, 9, 17, tzinfo=UTC))
    window, profiled, notice = choose_window(None, CHAMPION, log, 7, ReferenceSettings())
    assert str(window) == "2025-03-02..2025-03-09" == profiled
    assert notice == ""


def test_rows_dated_in_the_future_do_not_move_it_there_and_are_told(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    log = log_with(tmp_path, now - timedelta(days=30), now, datetime(2099, 1, 1, tzinfo=UTC))
    window, _, notice = choose_window(None, CHAMPION, log, 7, ReferenceSettings())
    assert now - timedelta(days=1) < window.end <= now + timedelta(seconds=60)
    assert "2099-01-01" in notice


@pytest.mark.parametrize("asked", ["2099-01-01..2099-02-01"])
def test_a_window_that_is_asked_for_is_taken_as_it_is(asked: str, tmp_path: Path) -> None:
    log = log_with(tmp_path, datetime(2025, 1, 1, tzinfo=UTC))
    assert str(choose_window(asked, CHAMPION, log, 7, ReferenceSettings())[0]) == asked
