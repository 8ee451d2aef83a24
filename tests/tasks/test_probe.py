"""What a probe asks about: the drifted slice, however small, and as many others."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks.plan import WINDOW_FILE
from tasks.probe import sample
from tasks.run import Request, Run
from tasks.watch import ROWS_FILE

ROWS = 300


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose window has 300 held-out rows and as many others."""
    request = Request(
        retrain_id="r", student="s", window="2025-01-01..2025-01-02", profile_window="2025-01-01..2025-01-02",
        window_digest="w", window_rows=2 * ROWS, force=False, teacher="t", settings={}, champion=None,
    )  # fmt: skip
    names = [f"r{number}" for number in range(2 * ROWS)]
    pd.DataFrame({"request_id": names, "prompt": [f"prompt of {name}" for name in names]}).to_parquet(
        tmp_path / WINDOW_FILE
    )
    return Run(tmp_path, request)


def watched(run: Run, drifted: int) -> None:
    folder = run.stage("watch")
    folder.mkdir()
    answers = {"request_id": [f"r{number}" for number in range(ROWS)], "response": "x", "mean_logprob": -0.1}
    pd.DataFrame(answers | {"drifted": np.arange(ROWS) < drifted}).to_parquet(folder / ROWS_FILE)


@pytest.mark.parametrize(
    ("drifted", "of_slice", "others", "share"),
    [(100, 64, 64, 1 / 3), (30, 30, 64, 0.1), (1, 1, 64, 1 / ROWS), (290, 64, 10, 29 / 30), (ROWS, 64, 0, 1.0)],
)
def test_the_slice_is_asked_about_and_as_many_others(
    run: Run, drifted: int, of_slice: int, others: int, share: float
) -> None:
    watched(run, drifted)
    rows, found = sample(run, 64)
    assert (rows["drifted"].sum(), (~rows["drifted"]).sum()) == (of_slice, others)
    assert found == pytest.approx(share)
    assert rows["request_id"].is_unique
    assert (rows["prompt"] == "prompt of " + rows["request_id"]).all()
    assert {name for name, new in zip(rows["request_id"], rows["drifted"], strict=True) if new} <= {
        f"r{number}" for number in range(drifted)
    }


def test_without_a_slice_the_whole_window_is_one(run: Run) -> None:
    watched(run, 0)
    rows, share = sample(run, 64)
    assert (len(rows), share) == (64, 1.0)
    assert rows["drifted"].all()


def test_fewer_rows_than_are_asked_about_are_asked_about_all(run: Run) -> None:
    watched(run, 10)
    rows, share = sample(run, 1000)
    assert len(rows) == ROWS
    assert share == pytest.approx(10 / ROWS)
