"""What a retrain buys is paid for once, counted once, and counted although the retrain is killed."""

import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.settings import StudentSettings, TrainingSettings
from distill.signals import SignalStore
from distill.teacher_settings import TeacherSettings
from distill.teachers.local import LocalTeacher
from monitoring.judging_settings import JudgingSettings
from monitoring.ledger import Ledger
from monitoring.settings import ProbeSettings, TrafficSettings
from tasks import probe, purchases, teach
from tasks.run import Request, Run, run_stage, write_json
from tasks.teaching import Teaching

PROMPTS = ["The printer does not print", "log in", "How do I set up the mail program?", "x", "invoice", "log in", "y"]

# One process: a stage that asks, stores two answers at a time, and dies by SIGKILL when it is given the fifth.
DIES = """
import os, signal, sys
from pathlib import Path
from distill import buying
from distill.teachers.local import LocalTeacher

sys.path.insert(0, sys.argv[1])
from test_purchases import asks, run_in

buying.fetch.__kwdefaults__["flush_rows"] = 2
answer = LocalTeacher.ask

def ask(self, prompts, progress=None):
    for number, row in enumerate(answer(self, prompts, progress)):
        if number == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        yield row

LocalTeacher.ask = ask
asks(run_in(Path(sys.argv[2])), "signals", Path(sys.argv[3]))
"""


def run_in(folder: Path, retrain_id: str = "r1", *, force: bool = False) -> Run:
    request = Request(
        retrain_id=retrain_id,
        student="s",
        window="2026-01-01..2026-02-01",
        profile_window="2026-01-01..2026-02-01",
        window_digest=retrain_id,
        window_rows=500,
        force=force,
        teacher="t",
        settings={},
        champion=None,
    )
    (folder / retrain_id).mkdir(parents=True, exist_ok=True)
    return Run(folder / retrain_id, request)


def asks(run: Run, stage: str, model: Path) -> dict[str, Any]:
    """Do a stage that asks the teacher, and write into the ledger what it bought."""
    settings = Teaching(
        StudentSettings(max_new_tokens=4),
        TeacherSettings(model=str(model), top_k=4, batch_size=2, device="cpu"),
        TrainingSettings(),
        TrafficSettings(),
        str(run.folder.parent / "signals"),
        run.folder.parent / "decisions.db",
    )

    def work(folder: Path) -> dict[str, Any]:
        _, obtained = teach.answers(PROMPTS, model, settings, run.asked(stage), "rows")
        return {"bought_tokens": obtained.bought_tokens, "reused_tokens": obtained.reused_tokens}

    result = run_stage(run, stage, work, inputs={})
    purchases.record(run, stage, settings.ledger)
    return result


def stored_tokens(folder: Path) -> int:
    store = SignalStore(folder / "signals")
    return int(store.tokens(np.frombuffer(store._sorted.tobytes(), np.uint8).reshape(-1, 32)).sum())


def test_what_was_bought_before_a_sigkill_is_in_the_ledger_when_the_stage_has_ended(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", DIES, here, str(tmp_path), str(tiny_checkpoint)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(SignalStore(tmp_path / "signals")) == 4
    assert stored_tokens(tmp_path) > 0
    result = asks(run_in(tmp_path), "signals", tiny_checkpoint)
    assert len(SignalStore(tmp_path / "signals")) == 6
    assert (
        result["bought_tokens"]
        == stored_tokens(tmp_path)
        == Ledger(tmp_path / "decisions.db").bought(datetime.now(UTC))
    )


def test_a_stage_that_broke_off_counts_what_it_bought_and_no_other_stage_does(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer: Callable[..., Any] = LocalTeacher.ask

    def broken(self: LocalTeacher, prompts: Any, progress: Any = None) -> Any:
        for number, row in enumerate(answer(self, prompts, progress)):
            if number == 2:
                raise ConnectionError("the teacher is gone")
            yield row

    run = run_in(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(LocalTeacher, "ask", broken)
        for stored in (2, 4):
            with pytest.raises(ConnectionError):
                asks(run, "probe", tiny_checkpoint)
            assert len(SignalStore(tmp_path / "signals")) == stored
    found = asks(run, "probe", tiny_checkpoint)
    repeated = asks(run_in(tmp_path), "judge", tiny_checkpoint)
    assert found["bought_tokens"] == stored_tokens(tmp_path) > 0
    assert (repeated["bought_tokens"], repeated["reused_tokens"]) == (0, sum(found.values()))
    assert Ledger(tmp_path / "decisions.db").bought(datetime.now(UTC)) == found["bought_tokens"]


def probing(budget: int) -> probe.Probing:
    return probe.Probing(ProbeSettings(), JudgingSettings(), budget)


def test_a_retrain_that_the_budget_just_suffices_for_goes_on_and_one_token_more_is_held(tmp_path: Path) -> None:
    ledger = tmp_path / "decisions.db"
    Ledger(ledger).record_purchase("earlier", "signals", datetime.now(UTC), 400)
    assert probe._over_budget(run_in(tmp_path), 600, probing(1000), ledger) == ""
    told = probe._over_budget(run_in(tmp_path, "r2"), 1, probing(1000), ledger)
    assert told.startswith("the retrain would buy about 1 teacher tokens, 1,000 were bought or set aside by others in ")
    assert told.endswith("policy.budget_tokens is 1,000")
    assert Ledger(ledger).bought(datetime.now(UTC)) == 1000


def test_a_forced_retrain_is_held_by_no_budget_and_its_tokens_are_set_aside_all_the_same(tmp_path: Path) -> None:
    ledger = tmp_path / "decisions.db"
    assert probe._over_budget(run_in(tmp_path, force=True), 5000, probing(1000), ledger) == ""
    assert probe._over_budget(run_in(tmp_path, "r2"), 1, probing(1000), ledger)
    assert probe._over_budget(run_in(tmp_path, "r3"), 1, probing(0), ledger) == "", "no limit"


def test_of_retrains_that_are_weighed_at_once_the_budget_lets_one_through(tmp_path: Path) -> None:
    ledger, runs = tmp_path / "decisions.db", [run_in(tmp_path, f"r{number}") for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        held = list(pool.map(lambda run: probe._over_budget(run, 600, probing(1000), ledger), runs))
    assert sorted(map(bool, held)) == [False] + [True] * 7


def test_when_a_retrain_is_settled_the_true_count_takes_the_place_of_what_was_set_aside(tmp_path: Path) -> None:
    run, ledger = run_in(tmp_path), tmp_path / "decisions.db"
    now = datetime.now(UTC)
    assert probe._over_budget(run, 600, probing(1000), ledger) == ""
    run.stage("signals").mkdir()
    write_json(run.stage("signals") / "manifest.json", {"end": now.isoformat(), "result": {"bought_tokens": 250}})
    purchases.record(run, "signals", ledger)
    assert Ledger(ledger).bought(now) == 600
    probe.settle.fn(run, ledger)
    assert Ledger(ledger).bought(now) == 250
