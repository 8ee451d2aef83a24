"""What is judged by beside the traffic is looked at before a retrain starts."""

import sys
from importlib.util import find_spec

import pandas as pd
import pytest

from monitoring.errors import InputError
from monitoring.judging_settings import JudgingSettings
from tasks import judged_by
from tasks.plan import _identity
from tasks.run import Request

FAIR = JudgingSettings(fairness=True, segment_rows=10)
needs_fairlearn = pytest.mark.skipif(find_spec("fairlearn") is None, reason="Fairlearn is not installed")


@needs_fairlearn
def test_fairness_needs_two_segments_of_one_column_with_enough_rows() -> None:
    rows = pd.DataFrame({"meta_region": ["north"] * 30 + ["south"] * 9})
    with pytest.raises(InputError, match="no meta_ column of the 39 held-out rows has two segments"):
        judged_by.check_fairness(rows, FAIR)
    judged_by.check_fairness(pd.concat([rows, rows.tail(1)]), FAIR)
    judged_by.check_fairness(rows, JudgingSettings())


@needs_fairlearn
def test_fairness_is_looked_for_in_the_rows_that_judging_draws_and_needs_a_gate_of_rows() -> None:
    rows = pd.DataFrame({"meta_region": ["north"] * 970 + ["south"] * 30})
    few = FAIR.model_copy(update={"segment_rows": 30})
    judged_by.check_fairness(rows, few)
    with pytest.raises(InputError, match="no meta_ column of the 100 held-out rows has two segments of judging"):
        judged_by.check_fairness(rows, few.model_copy(update={"max_rows": 100}))
    with pytest.raises(InputError, match=r"no gate is a mean of a segment's rows \(judging.gates = calibration_error"):
        judged_by.check_fairness(rows, few.model_copy(update={"gates": ("calibration_error",)}))


def test_without_fairlearn_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [])
    for name in [name for name in sys.modules if name.partition(".")[0] == "fairlearn"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match=r"judging\.fairness needs Fairlearn"):
        judged_by.check_fairness(pd.DataFrame({"meta_region": ["north"]}), FAIR)


def test_what_is_judged_by_is_part_of_a_request_and_requests_from_before_stay_the_same() -> None:
    request = Request(
        retrain_id="", student="s", window="w", profile_window="w", window_digest="d", window_rows=1, force=False,
        teacher="t", settings={}, champion=None,
    )  # fmt: skip
    golden = request.model_copy(update={"judged_by": {"golden": "one"}})
    other = request.model_copy(update={"judged_by": {"golden": "two"}})
    assert len({_identity(each) for each in (request, golden, other)}) == 3
    assert _identity(request) == "ef868bbfb375", "as the version before had it"
