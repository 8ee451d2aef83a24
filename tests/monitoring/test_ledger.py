"""The ledger: each question is decided once, whoever asks, however many at once, and is remembered with its reason."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from monitoring import ledger_command, ledger_file
from monitoring.drift_report import ColumnDrift, DriftReport
from monitoring.errors import Failure, InputError
from monitoring.history import Decision, History, Moment, Observation, Probed
from monitoring.ledger import Ledger
from monitoring.policy import decide, observe, settings_digest
from monitoring.settings import DriftSettings, PolicySettings

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)

# One process: asks about a drifted window, under a cooldown, and leaves a mark when it is made to decide.
ASKS = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from monitoring.drift_report import ColumnDrift, DriftReport
from monitoring.ledger import Ledger
from monitoring.history import Moment
from monitoring.policy import decide, observe
from monitoring.settings import DriftSettings, PolicySettings

path, digest, folder, number = sys.argv[1:]
column = ColumnDrift(
    name="x", kind="numeric", psi=0.3, psi_lower=0.2, missing_reference=0.0, severity="warning", why="far"
)
report = DriftReport(
    window=f"2026-01-{int(digest[1:]) + 1:02}..2026-02-01", rows=500, reference_window="", reference_rows=500,
    model_version="1", columns=[column], findings=[], max_psi=0.3,
)
now = Moment(time=datetime.now(UTC), champion="1", champion_digest="c", window_digest=digest)

def made(history):
    (Path(folder) / f"decided{number}").touch()
    decision = decide(report, DriftSettings(), PolicySettings(cooldown_days=7), now, history)
    return observe(report, now, decision)

print("ready", flush=True)
sys.stdin.readline()
answer = Ledger(Path(path)).answer(
    made, student="s", window_digest=digest, champion_digest="c", settings_digest="p", time=now.time, source="monitor"
)
print("trigger" if answer.trigger else "hold")
"""


def seen(number: int = 0, **values: Any) -> Observation:
    known = {
        "time": NOON + timedelta(days=number),
        "window": f"2026-02-{number + 1:02}..2026-03-01",
        "window_digest": f"w{number}",
        "champion": "1",
        "champion_digest": "c",
        "severity": "warning",
        "drifted_columns": ("x", "response"),
        "quality": None,
        "rows": 500,
        "log_rows": 1000,
        "trigger": True,
        "reason": "drift in x [far]",
    }
    return Observation(**known | values)


def ask(book: Ledger, shown: Observation, asked: list[History] | None = None, **values: Any) -> Decision:
    """Ask the ledger about a window; `asked` takes the history whenever a decision is really made."""

    def made(history: History) -> Observation:
        if asked is not None:
            asked.append(history)
        return shown

    question = {
        "student": "s",
        "window_digest": shown.window_digest,
        "champion_digest": shown.champion_digest,
        "settings_digest": "p",
        "time": shown.time,
        "source": "monitor",
    }
    return book.answer(made, **question | values)


def drifted(window: str) -> DriftReport:
    column = ColumnDrift(
        name="x", kind="numeric", psi=0.3, psi_lower=0.2, missing_reference=0.0, severity="warning", why="far"
    )
    return DriftReport(
        window=window,
        rows=500,
        reference_window="",
        reference_rows=500,
        model_version="1",
        columns=[column],
        findings=[],
        max_psi=0.3,
    )


def look(book: Ledger, report: DriftReport, rules: PolicySettings, time: datetime, **known: Any) -> Decision:
    """Ask the ledger about a window under a policy, as the monitor does."""
    now = Moment(time=time, champion="1", champion_digest="c", window_digest=report.window, **known)
    return book.answer(
        lambda history: observe(report, now, decide(report, DriftSettings(), rules, now, history)),
        student="s",
        window_digest=report.window,
        champion_digest="c",
        settings_digest="p",
        time=time,
        source="monitor",
    )


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "workspace" / "decisions.db")


def test_a_stored_trigger_is_the_answer_to_the_same_question_and_adds_no_row(book: Ledger) -> None:
    asked: list[History] = []
    first = ask(book, seen(), asked)
    for source in ("monitor", "retrain"):
        other = seen(trigger=False, reason="cooling down", time=NOON + timedelta(days=1))
        assert ask(book, other, asked, source=source) == first.model_copy(update={"repeated": True})
    assert first == Decision(trigger=True, reason="drift in x [far]")
    assert len(asked) == 1
    (row,) = book.decisions()
    assert (row["time"], row["source"], row["drifted_columns"]) == (
        "2026-03-01T12:00:00.000000+00:00",
        "monitor",
        ["x", "response"],
    )


@pytest.mark.parametrize(
    "other",
    [
        {"student": "t"},
        {"window_digest": "w9"},
        {"champion_digest": "d"},
        {"settings_digest": "q"},
        {"forced": True},
    ],
)
def test_another_question_is_decided_anew(book: Ledger, other: dict[str, Any]) -> None:
    asked: list[History] = []
    ask(book, seen(trigger=False), asked)
    assert ask(book, seen(), asked, **other).trigger
    assert len(asked) == len(book.decisions()) == 2


def test_settings_of_drift_and_of_the_policy_make_another_question() -> None:
    digests = {
        settings_digest(DriftSettings(), PolicySettings()),
        settings_digest(DriftSettings(), PolicySettings()),
        settings_digest(DriftSettings(psi_bound=0.2), PolicySettings()),
        settings_digest(DriftSettings(), PolicySettings(cooldown_days=1)),
    }
    assert len(digests) == 3


def test_a_decision_sees_what_its_own_student_was_told_before_and_a_restart_forgets_nothing(book: Ledger) -> None:
    ask(book, seen(0, quality=0.75))
    ask(book, seen(1, trigger=False))
    ask(book, seen(2), student="another")
    asked: list[History] = []
    ask(Ledger(book.path), seen(3), asked)
    assert asked[0].earlier == (seen(0, quality=0.75), seen(1, trigger=False))


def test_a_decision_that_fails_leaves_no_row(book: Ledger) -> None:
    def fails(history: History) -> Observation:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        book.answer(
            fails,
            student="s",
            window_digest="w0",
            champion_digest="c",
            settings_digest="p",
            time=NOON,
            source="retrain",
        )
    assert book.decisions() == []
    assert ask(book, seen()).trigger


def test_a_hold_is_decided_anew_and_a_trigger_is_for_good(book: Ledger) -> None:
    window, rules = drifted("2026-02-01..2026-03-01"), PolicySettings(cooldown_days=7)
    promoted = {"champion_promoted": NOON - timedelta(days=1)}
    assert look(book, window, rules, NOON, **promoted).reason.startswith("the promotion of champion 1 was 1.0 days ago")
    later = look(book, window, rules, NOON + timedelta(days=60), **promoted)
    assert (later.trigger, later.repeated) == (True, False)
    again = look(book, window, rules, NOON + timedelta(days=61), champion_promoted=NOON + timedelta(days=61))
    assert (again.trigger, again.repeated, again.reason) == (True, True, later.reason)
    assert [row["trigger"] for row in book.decisions()] == [False, True], "each decision with its reason"


def test_a_hold_for_the_same_kind_of_reason_keeps_its_row_and_takes_the_newest_reason(book: Ledger) -> None:
    window, rules = drifted("2026-02-01..2026-03-01"), PolicySettings(cooldown_days=7, budget_tokens=100)
    promoted = {"champion_promoted": NOON}
    told = [look(book, window, rules, NOON + timedelta(days=number), **promoted) for number in range(3)]
    assert [decision.repeated for decision in told] == [False, True, True]
    (row,) = book.decisions()
    assert (row["time"][:10], row["asked"][:10]) == ("2026-03-01", "2026-03-03")
    assert row["reason"] == told[-1].reason
    assert "was 2.0 days ago" in row["reason"]
    book.record_purchase("a", "signals", NOON, 100)
    spent = look(book, window, rules, NOON + timedelta(days=9), **promoted)
    assert not spent.repeated, "held for another reason: that is news"
    assert [row["reason"][:9] for row in book.decisions()] == ["the promo", "100 teach"]


def test_a_window_that_was_held_often_counts_once_in_a_debounce_and_starts_no_cooldown(book: Ledger) -> None:
    first, second, rules = "2026-02-01..2026-02-02", "2026-02-02..2026-02-03", PolicySettings(k=2, n=2, cooldown_days=9)
    for hour in range(3):
        held = look(book, drifted(first), rules, NOON + timedelta(hours=hour))
        assert held.reason.startswith("drift was seen in this window alone")
    assert look(book, drifted(second), rules, NOON + timedelta(hours=4)).trigger


def test_purchases_count_once_a_stage_and_in_its_month(book: Ledger) -> None:
    may = NOON + timedelta(days=61)
    book.record_purchase("a", "signals", NOON, 100)
    book.record_purchase("a", "signals", NOON, 100)
    book.record_purchase("a", "signals", NOON, 90)
    book.record_purchase("a", "judge", NOON, 30)
    book.record_purchase("a", "profile", may, 5)
    book.record_purchase("b", "probe", datetime(2026, 3, 31, 23, 59, tzinfo=UTC), 7)
    book.record_purchase("c", "probe", datetime(2026, 4, 1, tzinfo=UTC), 1000)
    for month, tokens in ((NOON, 137), (NOON + timedelta(days=40), 1000), (may, 5), (NOON - timedelta(days=40), 0)):
        assert book.bought(month) == book.history("s", month).bought_tokens == tokens


def test_a_retrain_under_way_counts_with_no_less_than_was_set_aside_for_it(book: Ledger) -> None:
    assert book.reserve("a", NOON, 100, budget=1000) == (True, 0)
    bought = []
    for stage, tokens in (("probe", 20), ("signals", 60), ("judge", 40)):
        book.record_purchase("a", stage, NOON, tokens)
        bought.append(book.bought(NOON))
    assert bought == [100, 100, 120]
    book.reserve("b", NOON, 500, budget=1000)  # killed, and never resumed
    assert (book.bought(NOON), book.bought(NOON + timedelta(days=31))) == (620, 0)
    book.reserve("c", NOON, 300, budget=1000)
    book.record_purchase("c", "probe", NOON, 20)
    book.release("c")  # settled: the true count takes its place
    assert book.bought(NOON) == 640


def test_a_budget_is_spent_to_the_last_token_and_not_beyond(book: Ledger) -> None:
    assert book.reserve("a", NOON, 600, budget=1000) == (True, 0)
    assert book.reserve("b", NOON, 401, budget=1000) == (False, 600)
    assert book.reserve("b", NOON, 400, budget=1000) == (True, 600)
    assert book.reserve("b", NOON, 400, budget=1000) == (True, 600), "it does not stand in its own way"
    assert book.reserve("b", NOON, 401, budget=1000) == (False, 600)
    assert book.bought(NOON) == 600, "what is held sets nothing aside"
    assert book.reserve("b", NOON, 10**9, budget=0) == (True, 600)


def at_once(path: Path, folder: Path, digests: list[str]) -> list[str]:
    """Return the answers of processes that were all let go at the same time, a digest each."""
    folder.mkdir()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", ASKS, str(path), digest, str(folder), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number, digest in enumerate(digests)
    ]
    for process in started:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=600)[0].strip() for process in started]
    assert [process.returncode for process in started] == [0] * len(started)
    return answers


def test_of_processes_that_ask_the_same_at_once_one_decides(tmp_path: Path) -> None:
    path = tmp_path / "decisions.db"
    assert at_once(path, tmp_path / "marks", ["w1"] * 4) == ["trigger"] * 4
    assert len(list((tmp_path / "marks").iterdir())) == 1
    assert len(Ledger(path).decisions()) == 1


def test_of_windows_that_drift_at_once_a_cooldown_lets_one_through(tmp_path: Path) -> None:
    path = tmp_path / "decisions.db"
    answers = at_once(path, tmp_path / "marks", ["w1", "w2", "w3", "w4"])
    assert sorted(answers) == ["hold", "hold", "hold", "trigger"]
    assert len(list((tmp_path / "marks").iterdir())) == 4
    assert [row["trigger"] for row in Ledger(path).decisions()] == [True, False, False, False]


def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "decisions.db"
    path.write_bytes(b"no database at all, but long enough to be taken for one" * 50)
    with pytest.raises(InputError, match=r"decisions\.db' is damaged, or is none .*restore it .*, or move it away"):
        ask(Ledger(path), seen())


def test_a_file_that_is_cut_short_is_damaged_too(book: Ledger) -> None:
    for number in range(20):
        ask(book, seen(number))
    content = book.path.read_bytes()
    book.path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="is damaged"):
        book.decisions()


def test_a_newer_ledger_is_refused_and_left_as_it_is(book: Ledger) -> None:
    ask(book, seen())
    with sqlite3.connect(book.path) as database:
        database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(InputError, match=r"is of version 9, this redistill reads 1"):
        ask(book, seen(1))


def test_a_place_that_cannot_be_written_is_a_failure_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match=r"file/decisions\.db' cannot be used"):
        ask(Ledger(tmp_path / "file" / "decisions.db"), seen())


def test_the_command_prints_a_table_or_json(book: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    ask(book, seen())
    ask(book, seen(1, trigger=False, reason="held for a reason"))
    assert ledger_command.main([str(book.path)]) == 0
    table = " ".join(capsys.readouterr().out.split())
    for words in ("2026-02-01..2026-03-01", "trigger", "drift in x [far]", "hold", "held for a reason"):
        assert words in table
    assert ledger_command.main([str(book.path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["decisions"]
    assert [row["trigger"] for row in rows] == [True, False]


def cells(table: str) -> list[list[str]]:
    """Return the rows of a printed table; a line without a first cell goes on the row before it."""
    rows: list[list[str]] = []
    for line in table.strip("\n").splitlines()[2:]:
        parts = [part.strip() for part in line.split("│")]
        if parts[3]:  # the fourth column never folds
            rows.append(parts)
        else:
            rows[-1] = [f"{before} {more}".strip() for before, more in zip(rows[-1], parts, strict=True)]
    return rows


def probed(true: dict[str, float | None] | None = None) -> Probed:
    return Probed(
        retrain_id="r1",
        time=NOON,
        student="s",
        window="2026-02-01..2026-03-01",
        pays=True,
        reason="they agree on less [now]",
        expected={"gain": 0.1, "tokens": 1000, "seconds": None},
        true=true,
    )


def test_what_came_true_of_a_probe_takes_its_place_beside_what_was_expected(
    book: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    book.record_probe(probed())
    assert book.probes() == [probed()]
    book.record_probe(probed({"gain": 0.08, "tokens": 1100, "seconds": 9.0}))
    (found,) = book.probes()
    assert found.expected["gain"] == 0.1
    assert found.true == {"gain": 0.08, "tokens": 1100, "seconds": 9.0}
    assert ledger_command.main([str(book.path)]) == 0
    (line,) = cells(capsys.readouterr().out.split("\n\n")[1])
    assert line[:5] == ["2026-03-01T12:00", "s", "2026-02-01..2026-03-01", "r1", "retrain"]
    assert line[5:] == [
        "they agree on less [now]",
        "+10.0 points of exact match, 1,000 teacher tokens",
        "+8.0 points of exact match, 1,100 teacher tokens, 9 s of training",
    ]
    assert ledger_command.main([str(book.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["probes"][0]["true"]["tokens"] == 1100


def test_the_command_names_a_file_that_is_not_there_and_makes_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ledger_command.main([str(tmp_path / "none.db")]) == 2
    assert "there is no such ledger" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def something_else(path: Path) -> Path:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE experiments (name TEXT)")
    database.close()
    return path


@pytest.mark.parametrize("made", [something_else, lambda path: path.write_text("no database " * 99) and path])
def test_a_file_of_something_else_is_neither_read_nor_written(
    tmp_path: Path, made: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = made(tmp_path / "mlflow.db")
    content = path.read_bytes()
    assert ledger_command.main([str(path)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "mlflow.db' is no decision ledger" in said or "mlflow.db' is damaged, or is none" in said
    for write in (lambda: ask(Ledger(path), seen()), lambda: Ledger(path).record_purchase("a", "probe", NOON, 1)):
        with pytest.raises(InputError, match=r"is no decision ledger|is damaged, or is none"):
            write()
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_reading_changes_nothing_and_needs_no_permission_to_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book = Ledger(tmp_path / "a #1 100%?mode=rwc" / "decisions.db")  # what an address would be misread by
    ask(book, seen())
    content = book.path.read_bytes()
    book.path.chmod(0o444)
    book.path.parent.chmod(0o555)
    try:
        assert ledger_command.main([str(book.path), "--json"]) == 0
        assert [len(book.decisions()), len(book.probes()), book.bought(NOON)] == [1, 0, 0]
    finally:
        book.path.parent.chmod(0o755)
    assert json.loads(capsys.readouterr().out)["decisions"][0]["trigger"]
    assert book.path.read_bytes() == content
    assert list(book.path.parent.iterdir()) == [book.path]
    with ledger_file.reading(book.path) as database, pytest.raises(sqlite3.OperationalError, match="readonly"):
        database.execute("DELETE FROM decisions")


def test_the_ledger_module_is_the_command(book: Ledger) -> None:
    ask(book, seen())
    done = subprocess.run(
        [sys.executable, "-m", "monitoring.ledger", str(book.path)], capture_output=True, text=True, check=True
    )
    assert "drift in x [far]" in done.stdout
    assert done.stderr == ""
