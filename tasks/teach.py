"""Asking the teacher: signals for the rows to learn from, and answers to held-out rows without a label."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from distill import mixture
from distill.errors import InputError
from distill.settings import StudentSettings, TeacherSettings, TrainingSettings
from distill.signals import Obtained, SignalStore
from monitoring import traffic
from monitoring.settings import TrafficSettings
from monitoring.traffic import Window
from tasks import progress, purchases
from tasks.plan import WINDOW_FILE
from tasks.run import Run, run_stage

if TYPE_CHECKING:
    from distill.teachers.local import LocalTeacher


@dataclass(frozen=True)
class Teaching:
    """The settings that the teacher is asked by, and the store of its signals."""

    student: StudentSettings
    teacher: TeacherSettings
    training: TrainingSettings
    traffic: TrafficSettings
    signals: str
    ledger: Path


@task(name="teach", cache_policy=NO_CACHE)
def teach(run: Run, log: str, start: Path, settings: Teaching) -> dict[str, Any]:
    """Mix window and replay, and have the teacher's signals for every row; returns what was reused and bought."""

    def work(folder: Path) -> dict[str, Any]:
        window, replay = learned_rows(run, log, settings)
        rows = pd.concat([window, replay], ignore_index=True)
        prompts, truncated, obtained = ask(
            rows["prompt"].tolist(), start, settings, run.asked("signals"), "teacher: signals"
        )
        mixture.save(folder / "mixture.safetensors", prompts, obtained.keys)
        rows[["request_id", "timestamp"]].assign(replay=np.arange(len(rows)) >= len(window)).to_parquet(
            folder / "rows.parquet", index=False
        )
        costs = {name: value for name, value in asdict(obtained).items() if name != "keys"}
        return {
            "window_rows": len(window),
            "replay_rows": len(replay),
            "truncated_prompts": truncated,
            **costs,
        }

    result = run_stage(
        run,
        "signals",
        work,
        inputs={"window": run.request.window_digest, "teacher": run.request.teacher},
        settings={**settings.teacher.model_dump(), "replay_share": settings.training.replay_share},
    )
    purchases.record(run, "signals", settings.ledger)
    get_run_logger().info(
        "teacher signals: %d tokens bought, %d reused", result["bought_tokens"], result["reused_tokens"]
    )
    return result


def learned_rows(run: Run, log: str, settings: Teaching) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return (rows of the window to learn from, rows of windows its champion learned from), none of them held out."""
    frame = pd.read_parquet(run.folder / WINDOW_FILE)
    window = _not_held_out(frame, settings.traffic)
    if window.empty:
        raise InputError(
            f"window {run.request.window} has {len(frame)} rows, all of them held out (traffic.held_out_from = "
            f"{settings.traffic.held_out_from}): there is nothing to learn from, choose a longer window"
        )
    before = run.request.champion.trained if run.request.champion else []
    earlier = [_not_held_out(traffic.read_window(log, Window.parse(text)), settings.traffic) for text in before]
    pool = pd.concat([window.head(0), *earlier]).drop_duplicates("request_id")
    pool = pool[~pool["request_id"].isin(frame["request_id"])]
    count = mixture.replay_count(len(window), settings.training.replay_share, len(pool))
    return window, pool.iloc[mixture.draw(len(pool), count, settings.training.seed)]


def ask(
    prompts: list[str], start: Path, settings: Teaching, asked: Path, what: str
) -> tuple[list[np.ndarray[Any, Any]], int, Obtained]:
    """Return (token ids of the prompts, how many were cut, the teacher's signals for them), bought where not stored.

    asked: the file that keeps what a stage bought although it is killed (Run.asked).
    """
    from distill.prompts import encode, load_tokenizer

    tokenizer = load_tokenizer(start)
    teacher = local_teacher(settings)
    teacher.check(tokenizer, settings.teacher.top_k)
    encoded = encode(tokenizer, prompts, settings.student.max_prompt_tokens)
    with progress.bar(what, "prompts") as shown:
        obtained = purchases.buy(SignalStore(settings.signals), teacher, encoded.ids, asked, shown)
    return encoded.ids, encoded.truncated, obtained


def local_teacher(settings: Teaching) -> "LocalTeacher":
    """Return the teacher that the settings name; its weights are loaded when it is asked."""
    from distill.teachers.local import LocalTeacher

    return LocalTeacher(
        settings.teacher.model,
        top_k=settings.teacher.top_k,
        max_new_tokens=settings.student.max_new_tokens,
        batch_size=settings.teacher.batch_size,
        device=settings.teacher.device,
        signals_format=settings.teacher.signals_format,
    )


def answers(prompts: list[str], start: Path, settings: Teaching, asked: Path, what: str) -> tuple[list[str], Obtained]:
    """Return the teacher's answers as text, with what they cost; `what` names the rows to people."""
    from distill.prompts import load_tokenizer

    _, _, obtained = ask(prompts, start, settings, asked, f"teacher: {what}")
    store, tokenizer = SignalStore(settings.signals), load_tokenizer(start)
    ids = [store.get(key.tobytes()).answer for key in obtained.keys]
    return [tokenizer.decode(answer, skip_special_tokens=True) for answer in ids], obtained


def compared(
    rows: pd.DataFrame, start: Path, settings: Teaching, asked: Path, what: str
) -> tuple[pd.DataFrame, Obtained]:
    """Return the rows with `teacher_response` and whether `response` says the same (`agree`), and what it cost."""
    texts, obtained = answers(rows["prompt"].tolist(), start, settings, asked, what)
    same = np.char.strip(rows["response"].to_numpy(str)) == np.char.strip(np.asarray(texts, str))
    return rows.assign(teacher_response=texts, agree=same), obtained


def _not_held_out(frame: pd.DataFrame, settings: TrafficSettings) -> pd.DataFrame:
    return frame[traffic.row_hash(frame["request_id"]) < settings.held_out_from]
