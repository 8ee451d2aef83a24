"""The ledger: each question is decided once, whoever asks, however many at once, and is remembered with its reason."""

import json
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from monitoring import ledger
from monitoring.errors import Failure, InputError
from monitoring.history import Decision, History, Observation, Probed
from monitoring.ledger import Ledger
from monitoring.policy import settings_digest
from monitoring.settings import DriftSettings, PolicySettings

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)

# One process: asks about a drifted window, under a cooldown, and leaves a mark when it is made to decide.
ASKS = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from monitoring.drift import ColumnDrift, DriftReport
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


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "workspace" / "decisions.db")


def test_the_same_question_gets_the_stored_answer_and_adds_no_row(book: Ledger) -> None:
    asked: list[History] = []
    first = ask(book, seen(), asked)
    for source in ("monitor", "retrain"):
        other = seen(trigger=False, reason="cooling down", time=NOON + timedelta(days=1))
        assert ask(book, other, asked, source=source) == first
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


def test_purchases_count_once_a_retrain_and_in_their_month(book: Ledger) -> None:
    book.record_purchase("a", NOON, 100)
    book.record_purchase("a", NOON, 100)
    book.record_purchase("a", NOON + timedelta(days=40), 130)  # the judge has bought some more
    book.record_purchase("a", NOON, 100)
    book.record_purchase("b", datetime(2026, 3, 31, 23, 59, tzinfo=UTC), 7)
    book.record_purchase("c", datetime(2026, 4, 1, tzinfo=UTC), 1000)
    assert book.history("s", NOON).bought_tokens == 137
    assert book.history("s", NOON + timedelta(days=40)).bought_tokens == 1000
    assert book.history("s", NOON - timedelta(days=40)).bought_tokens == 0


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
    answers = [process.communicate(timeout=120)[0].strip() for process in started]
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
    with pytest.raises(InputError, match=r"decisions\.db' is damaged .*restore it from a backup, or move it away"):
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
    with pytest.raises(InputError, match=r"is of version 9, this redistill reads 2"):
        ask(book, seen(1))


def test_a_place_that_cannot_be_written_is_a_failure_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match=r"file/decisions\.db' cannot be used"):
        ask(Ledger(tmp_path / "file" / "decisions.db"), seen())


def test_the_command_prints_a_table_or_json(book: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    ask(book, seen())
    ask(book, seen(1, trigger=False, reason="held for a reason"))
    assert ledger.main([str(book.path)]) == 0
    table = " ".join(capsys.readouterr().out.split())
    for words in ("2026-02-01..2026-03-01", "trigger", "drift in x [far]", "hold", "held for a reason"):
        assert words in table
    assert ledger.main([str(book.path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["decisions"]
    assert [row["trigger"] for row in rows] == [True, False]


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
    assert ledger.main([str(book.path)]) == 0
    table = " ".join(capsys.readouterr().out.split())
    assert "[now]" in table
    assert ledger.main([str(book.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["probes"][0]["true"]["tokens"] == 1100


def test_a_ledger_from_before_there_were_probes_keeps_its_decisions(book: Ledger) -> None:
    ask(book, seen())
    with sqlite3.connect(book.path) as database:
        database.execute("DROP TABLE probes")
        database.execute("PRAGMA user_version = 1")
    database.close()
    assert book.probes() == []
    assert len(book.decisions()) == 1


def test_purchases_count_in_their_month_alone(book: Ledger) -> None:
    book.record_purchase("r1", NOON, 10)
    book.record_purchase("r2", NOON + timedelta(days=31), 5)
    assert (book.bought(NOON), book.bought(NOON + timedelta(days=31))) == (10, 5)


def test_the_command_names_a_file_that_is_not_there_and_makes_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ledger.main([str(tmp_path / "none.db")]) == 2
    assert "there is no such ledger" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
