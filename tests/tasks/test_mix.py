"""From log and teacher to a mixture: where the rows come from, what becomes of them, and what it costs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from prefect import flow

from distill import mixture
from distill.errors import Failure, InputError
from distill.loaded import load
from distill.mixture_settings import AuditSettings, MixtureSettings
from distill.settings import StudentSettings, TrainingSettings
from distill.signals import SignalStore
from distill.teacher_settings import TeacherSettings
from monitoring import traffic
from monitoring.feature_settings import REFUSAL
from monitoring.judging_settings import JudgingSettings
from monitoring.settings import TrafficSettings
from tasks import learned, measured, mix, slices, targets, teach
from tasks.run import Champion, Request, Run
from tasks.teaching import Teaching

OLD, NEW = "2025-01-01..2025-01-02", "2025-01-02..2025-01-03"
WORDS = ["printer", "invoice", "laptop", "mail", "account", "password", "month", "telephone"]


def rows(day: int, count: int, region: str) -> pd.DataFrame:
    """Return a day's requests; every tenth prompt comes twice, and the log has no answers."""
    rng = np.random.default_rng(day)
    texts = [" ".join(rng.choice(WORDS, 5)) + f" {at // 10 if at % 10 == 0 else at}" for at in range(count)]
    texts = [texts[at - 1] if at % 10 == 1 else text for at, text in enumerate(texts)]
    frame = pd.DataFrame({"request_id": [f"d{day}-{at}" for at in range(count)], "prompt": texts})
    for name in ("response", "model_version", "reference"):
        frame[name] = pd.Series(pd.NA, frame.index, dtype="string")
    for name in ("mean_logprob", "latency_ms"):
        frame[name] = np.nan
    frame["timestamp"] = pd.Timestamp(f"2025-01-0{day}T12:00:00Z") + pd.to_timedelta(np.arange(count), "s")
    return frame.assign(meta_region=[region if at % 5 else f"{region} far" for at in range(count)])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, checkpoint_maker: Callable[..., Path]) -> Path:
    return checkpoint_maker(tmp_path_factory.mktemp("teacher") / "checkpoint", seed=1)


@pytest.fixture
def log(tmp_path: Path) -> str:
    traffic.append(str(tmp_path / "traffic"), rows(1, 200, "north"))
    traffic.append(str(tmp_path / "traffic"), rows(2, 100, "south"))
    return str(tmp_path / "traffic")


@pytest.fixture
def teaching(tmp_path: Path, teacher: Path) -> Teaching:
    return Teaching(
        StudentSettings(max_new_tokens=3, max_prompt_tokens=64),
        TeacherSettings(model=str(teacher), top_k=4, device="cpu"),
        TrainingSettings(replay_share=0.5),
        TrafficSettings(),
        str(tmp_path / "signals"),
        tmp_path / "decisions.db",
        MixtureSettings(error_share=0.5, sure_logprob=-50.0),
        AuditSettings(),
    )


@pytest.fixture
def run(tmp_path: Path, log: str, tiny_checkpoint: Path) -> Run:
    champion = Champion(
        version="1", checkpoint=str(tiny_checkpoint), digest="c", retrain_id="first", trained=[OLD], profiled=[OLD]
    )
    return open_run(tmp_path, log, "second", NEW, champion)


def open_run(folder: Path, log: str, name: str, window: str, champion: Champion | None) -> Run:
    frame = traffic.read_window(log, traffic.Window.parse(window))
    request = Request(
        retrain_id=name, student="s", window=window, profile_window=window, window_digest=name,
        window_rows=len(frame), force=False, teacher="t", settings={}, champion=champion,
    )  # fmt: skip
    (folder / "runs" / name).mkdir(parents=True)
    frame.to_parquet(folder / "runs" / name / "window.parquet")
    (folder / "runs" / name / "request.json").write_text(json.dumps(request.model_dump()))
    return Run(folder / "runs" / name, request)


def taught(run: Run, log: str, start: Path, settings: Teaching) -> tuple[dict[str, Any], pd.DataFrame]:
    """Do the stage inside a flow, and return its result and its table of rows."""
    result = flow(lambda: teach.teach(run, log, start, settings), name="teach")()
    return result, pd.read_parquet(run.stage("signals") / mix.ROWS_FILE)


@pytest.mark.integration
def test_every_row_is_trained_or_reported_and_the_table_says_from_where(
    run: Run, log: str, tiny_checkpoint: Path, teaching: Teaching
) -> None:
    result, table = taught(run, log, tiny_checkpoint, teaching)
    assert result["rows"] == len(table) == result["window_rows"] + result["replay_rows"]
    assert table["outcome"].value_counts().to_dict() == {name: n for name, n in result["outcomes"].items() if n}
    assert set(table.loc[~table["replay"], "window"]) == {NEW}
    assert set(table.loc[table["replay"], "window"]) == {OLD}
    assert set(table["segment"]) == {"north", "north far", "south", "south far"}
    assert (traffic.row_hash(table["request_id"]) < 60).all()
    trained = table[table["outcome"] == "trained"]
    saved = mixture.load(run.stage("signals") / mix.MIXTURE_FILE)
    assert saved.weights.tolist() == trained["weight"].tolist()
    duplicates = table[table["outcome"] == "duplicate_exact"]
    assert len(duplicates) > 2
    assert set(duplicates["learned_as"]) <= set(trained["request_id"])
    assert trained.loc[trained["champion_differs"], "weight"].min() > trained.loc[table["replay"], "weight"].min()

    errors = pd.read_parquet(run.stage("signals") / learned.ERRORS_FILE)
    held = table[table["outcome"] == "held_for_teacher_error"]
    assert errors["request_id"].tolist() == held["request_id"].tolist() != []
    assert (errors["teacher_response"] != errors["champion_response"]).all()
    prompts = traffic.read_window(log, traffic.span(log))["prompt"].tolist()
    for file in (mix.ROWS_FILE, learned.ERRORS_FILE):
        values = {
            str(value) for column in pd.read_parquet(run.stage("signals") / file).to_numpy().T for value in column
        }
        assert not values & set(prompts)

    part = slices.teacher_errors(run)
    assert part is not None
    assert part.rows["request_id"].tolist() == errors["request_id"].tolist()
    assert part.rows["target"].tolist() == errors["teacher_response"].tolist()
    (rows,), cost = targets.with_targets([part], tiny_checkpoint, teaching, run.asked("judge"))
    assert cost["bought_tokens"] == 0, "the teacher's answers to them are known"
    models = {"champion": load(tiny_checkpoint), "challenger": load(teaching.teacher.model)}
    seen = measured.measure(rows, models, JudgingSettings(), teaching, REFUSAL)
    shares = measured.means(seen)[part.name]["exact_match"]
    assert shares == {"rows": len(errors), "champion": 0.0, "challenger": 1.0}, "the challenger is the teacher itself"


@pytest.mark.integration
def test_a_teacher_error_set_stays_out_of_the_replay_of_the_next_retrain(
    run: Run, log: str, tmp_path: Path, tiny_checkpoint: Path, teaching: Teaching
) -> None:
    _, table = taught(run, log, tiny_checkpoint, teaching)
    held = set(table.loc[table["outcome"] == "held_for_teacher_error", "request_id"])
    next_champion = Champion(
        version="2",
        checkpoint=str(tiny_checkpoint),
        digest="d",
        retrain_id="second",
        trained=[OLD, NEW],
        profiled=[OLD],
    )
    traffic.append(log, rows(3, 100, "east"))
    known = traffic.read_window(log, traffic.Window.parse(NEW)).set_index("request_id")["prompt"]
    again = rows(4, 100, "east").assign(prompt=known[sorted(held)[0]])  # asked once more, under other names
    again["timestamp"] -= pd.Timedelta(1, "D")
    traffic.append(log, again)
    later = open_run(tmp_path, log, "third", "2025-01-03..2025-01-04", next_champion)
    all_of_it = replace(teaching, training=TrainingSettings(replay_share=0.9))
    assert learned.held_before(later) == held != set()
    rows_of_it = learned.learned_rows(later, log, all_of_it)
    replayed = rows_of_it[rows_of_it["replay"]]
    assert set(replayed["window"]) == {OLD, NEW}
    assert not held & set(replayed["request_id"])
    _, table = taught(later, log, tiny_checkpoint, teaching)
    asked_again = table["request_id"].isin(again["request_id"])
    assert asked_again.any()
    assert (table.loc[asked_again, "outcome"] == "held_before").all()
    _, overlapping = taught(open_run(tmp_path, log, "fourth", "2025-01-02..2025-01-04", next_champion), log,
                            tiny_checkpoint, teaching)  # fmt: skip
    assert (overlapping.set_index("request_id").loc[sorted(held), "outcome"] == "held_before").all()


@pytest.mark.integration
def test_labels_against_the_teacher_put_rows_in_quarantine_and_samples_are_bought_once_and_counted(
    tmp_path: Path, log: str, tiny_checkpoint: Path, teaching: Teaching
) -> None:
    labelled = rows(4, 60, "west").assign(reference=pd.Series(["no such answer"] * 30 + [None] * 30, dtype="string"))
    traffic.append(log, labelled)
    run = open_run(tmp_path, log, "first", "2025-01-04..2025-01-05", None)
    plain = replace(teaching, audit=AuditSettings(labels=False))
    free, _ = taught(open_run(tmp_path, log, "free", "2025-01-04..2025-01-05", None), log, tiny_checkpoint, plain)
    assert free["outcomes"]["quarantined_label"] == 0
    audit = AuditSettings(samples=2, sample_rows=5, temperature=5.0, agreement=1.0)
    result, table = taught(run, log, tiny_checkpoint, replace(teaching, audit=audit))
    against = table["label_agrees"].eq(False).fillna(False)
    assert (table.loc[against, "outcome"] == "quarantined_label").all()
    assert result["outcomes"]["quarantined_label"] == against.sum() > 5
    assert result["sampled_rows"] == 5
    assert 0 < result["outcomes"]["quarantined_samples"] <= 5, "a hot random teacher says something else each time"
    assert not table["champion_differs"].any(), "there is none"
    assert result["bought_tokens"] > 0, "the answers had been bought, the samples had not"
    assert len(SignalStore(tmp_path / "signals")) > 5
    again, table_again = taught(
        open_run(tmp_path, log, "again", "2025-01-04..2025-01-05", None),
        log,
        tiny_checkpoint,
        replace(teaching, audit=audit),
    )
    assert again["bought_tokens"] == 0
    assert table_again["outcome"].tolist() == table["outcome"].tolist()


@pytest.mark.integration
def test_a_teacher_that_all_labels_contradict_is_not_learned_from(
    tmp_path: Path, log: str, tiny_checkpoint: Path, teaching: Teaching
) -> None:
    traffic.append(log, rows(5, 60, "west").assign(reference=pd.Series(["no such answer"] * 60, dtype="string")))
    run = open_run(tmp_path, log, "first", "2025-01-05..2025-01-06", None)
    with pytest.raises(Failure, match=r"of 3\d rows none is left to learn from \(3\d quarantined_label\)"):
        taught(run, log, tiny_checkpoint, teaching)
    assert not run.stage("signals").exists()


def test_segments_are_a_column_or_columns_together_or_the_answer() -> None:
    frame = pd.DataFrame(
        {
            "reference": ["a", None, None, "b"] * 30,
            "response": ["x", "c", None, "x"] * 30,
            "meta_region": ["north", "south", None, "north"] * 30,
            "meta_channel": ["mail"] * 60 + ["chat"] * 60,
            "meta_customer": [str(number) for number in range(120)],
            "meta_constant": "k",
        }
    )
    assert set(learned.segments(frame, "")) == {
        f"{channel} / {region}" for channel in ("mail", "chat") for region in ("north", "south", "(missing)")
    }
    assert set(learned.segments(frame, "meta_channel")) == {"mail", "chat"}
    assert learned.segments(frame, "answer")[:4].tolist() == ["a", "c", "(missing)", "b"]
    assert set(learned.segments(frame, "meta_customer")) == {""}, "too many values are no segments"
    few = frame[["reference", "response", "meta_customer"]]
    assert learned.segments(few, "").tolist() == learned.segments(frame, "answer").tolist()
    with pytest.raises(InputError, match=r"mixture.segments = 'meta_rgion'.*it has meta_channel, meta_constant"):
        learned.segments(frame, "meta_rgion")
