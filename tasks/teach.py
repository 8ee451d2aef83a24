"""Asking the teacher: signals for the rows to learn from, and answers to held-out rows without a label."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from distill.buying import answers_to
from distill.errors import Failure
from distill.mixing import audit
from distill.obtained import Obtained, together
from distill.signals import SignalStore, withheld
from tasks import costs, crossing, mix, progress, purchases, teacher_metrics
from tasks.learned import learned_rows
from tasks.run import Run, run_stage
from tasks.teaching import Teaching, asked_with, spoken_to, teacher_of

if TYPE_CHECKING:
    from distill.teachers.protocol import Teacher
    from distill.teachers.spoken import Spoken


@dataclass(frozen=True)
class Asked:
    """What the teacher was asked, and what came of it."""

    prompts: list[NDArray[np.int32]]  # token ids, of asked_with
    truncated: int  # prompts that were too long and lost the beginning of their text
    spoken: "Spoken | None"  # the prompts as text, for a teacher that reads text
    obtained: Obtained


@task(name="teach", cache_policy=NO_CACHE)
def teach(run: Run, log: str, start: Path, settings: Teaching) -> dict[str, Any]:
    """Have the teacher's signals for window and replay, and mix what is to be learned; returns counts and cost."""

    def work(folder: Path) -> dict[str, Any]:
        rows = learned_rows(run, log, settings)
        file, texts = run.asked("signals"), rows["prompt"].tolist()
        tried = crossing.try_out(
            texts, start, settings, lambda some: ask(some, start, settings, file, "teacher: the first signals").obtained
        )
        asked = ask(texts, start, settings, file, "teacher: signals")
        told = mix.heard(run, rows, start, asked.obtained, settings)
        at = mix.to_sample(rows, told, mix.labelled(rows, told), settings)
        agreed, samples = sampled(asked, at, told, start, settings, file)
        chosen = mix.mix(run, rows, asked.prompts, told, agreed, settings)
        own = crossing.own_tokens(rows, asked.prompts, asked.obtained, chosen, start, settings)
        counts = mix.write(folder, rows, own.prompts, asked.obtained, told, chosen, own.alignment)
        slices = {**_slices(rows, asked.obtained), "audit samples": together(samples)}
        return {
            "window_rows": int((~rows["replay"]).sum()),
            "replay_rows": int(rows["replay"].sum()),
            "segments": int(rows["segment"].nunique()),
            "truncated_prompts": asked.truncated,
            "sampled_rows": len(at),
            **counts,
            **costs.report(together([tried, asked.obtained, *samples]), slices, settings.teacher),
            **own.told,
        }

    result = run_stage(
        run,
        "signals",
        work,
        inputs={
            "window": run.request.window_digest,
            "teacher": run.request.teacher,
            "champion": run.request.champion.digest if run.request.champion else None,
        },
        settings={
            **settings.teacher.model_dump(),
            "replay_share": settings.training.replay_share,
            "seed": settings.training.seed,
            "mixture": settings.mixture.model_dump(),
            "audit": settings.audit.model_dump(),
        },
    )
    purchases.record(run, "signals", settings.ledger)
    costs.show("signals", result)
    logger, outcomes, labels = get_run_logger(), result["outcomes"], result["labelled_rows"]
    logger.info("teacher signals: %d tokens bought, %d reused", result["bought_tokens"], result["reused_tokens"])
    if "answers" in result:
        logger.warning("not all answers of the teacher are whole: %s", result["answers"])
    if "alignment" in result:
        logger.info("%s", result["alignment"]["told"])
    logger.info("mixture: %d rows, of which %s", result["rows"], {name: n for name, n in outcomes.items() if n})
    if outcomes[audit.LABEL] > labels / 2:
        logger.warning(
            "labels speak against the teacher's answers on %d of %d labelled rows: it does not know this traffic, or "
            "the labels are no answers of its kind (then set audit.labels to false)", outcomes[audit.LABEL], labels
        )  # fmt: skip
    return result


def _slices(rows: pd.DataFrame, obtained: Obtained) -> dict[str, Obtained]:
    """Return the window's part of what was obtained, and that of each segment of the replay."""
    replay, segment = rows["replay"].to_numpy(dtype=bool), rows["segment"].to_numpy(str)
    parts = {"window": obtained.part(~replay)}
    for name in np.unique(segment[replay]):
        parts[f"replay {name}".strip()] = obtained.part(replay & (segment == name))
    return parts


def sampled(
    asked: Asked,
    at: NDArray[np.int64],
    told: mix.Heard,
    start: Path,
    settings: Teaching,
    file: Path,
) -> tuple[NDArray[np.float64], list[Obtained]]:
    """Return the share of each row's sampled answers that are its greedy one, NaN without any, and what they cost.

    at: the rows to ask about. Each sample is a signal of its own kind, so that it too is bought once.
    """
    from distill.generation import Sampling

    agreed, store = np.full(len(asked.prompts), np.nan), SignalStore(settings.signals)
    tokenizer, prompts = asked_with(start, settings), [asked.prompts[row] for row in at]
    bought, same, given = [], [], []
    for number in range(settings.audit.samples if len(at) else 0):
        drawn = Sampling(settings.audit.temperature, settings.training.seed + number)
        teacher = teacher_of(settings, drawn, asked.spoken)
        with progress.bar(f"teacher: sample {number + 1} of {settings.audit.samples}", "prompts") as shown:
            found = bought_of(store, teacher, prompts, settings, file, shown)
        texts = tokenizer.batch_decode([store.get(k.tobytes()).answer for k in found.keys], skip_special_tokens=True)
        bought.append(found)
        same.append(np.char.strip(np.array(texts, str)) == np.char.strip(told.texts[at]))
        given.append(~withheld(store, found.keys))
    if same:
        agreed[at] = audit.agreement(np.array(same), np.array(given))
    return agreed, bought


def ask(prompts: list[str], start: Path, settings: Teaching, file: Path, what: str) -> Asked:
    """Return the teacher's signals for some prompts, bought where not stored; `what` is shown to people.

    file: keeps what a stage bought although it is killed (Run.asked).
    """
    from distill.prompts import encode, load_tokenizer

    tokenizer = asked_with(start, settings)
    encoded = encode(tokenizer, prompts, settings.student.max_prompt_tokens)
    spoken = spoken_to(settings, tokenizer, prompts, encoded)
    teacher = teacher_of(settings, spoken=spoken)
    teacher.check(load_tokenizer(start), settings.teacher.top_k)
    with progress.bar(what, "prompts") as shown:
        obtained = bought_of(SignalStore(settings.signals), teacher, encoded.ids, settings, file, shown)
    return Asked(encoded.ids, encoded.truncated, spoken, obtained)


def bought_of(
    store: SignalStore,
    teacher: "Teacher",
    prompts: list[NDArray[np.int32]],
    settings: Teaching,
    file: Path,
    progress: Callable[[int, int], None],
) -> Obtained:
    """Return the signals of the prompts, bought where the store lacks them; what it took is among the metrics."""
    with teacher_metrics.counting(settings, teacher, lambda: purchases.paid(store, file), file) as ended:
        ended.append(purchases.buy(store, teacher, prompts, file, progress))
    return ended[0]


def answers(
    prompts: list[str], start: Path, settings: Teaching, file: Path, what: str
) -> tuple[list[str | None], Obtained]:
    """Return the teacher's answers as text, None where it withheld one, and what they cost; `what` names the rows."""
    obtained = ask(prompts, start, settings, file, f"teacher: {what}").obtained
    store, tokenizer = SignalStore(settings.signals), asked_with(start, settings)
    ids, missing = [store.get(key.tobytes()).answer for key in obtained.keys], withheld(store, obtained.keys)
    texts = [tokenizer.decode(answer, skip_special_tokens=True) for answer in ids]
    return [None if none else text for text, none in zip(texts, missing, strict=True)], obtained


def known_answers(prompts: list[str], start: Path, settings: Teaching) -> list[str | None]:
    """Return the teacher's answers that are stored already, None where there is none; nobody is asked."""
    from distill.prompts import encode

    tokenizer, store = asked_with(start, settings), SignalStore(settings.signals)
    encoded = encode(tokenizer, prompts, settings.student.max_prompt_tokens)
    keys = answers_to(teacher_of(settings, spoken=spoken_to(settings, tokenizer, prompts, encoded)), encoded.ids).keys
    there = store.contains(keys)
    there[there] = ~withheld(store, keys[there])
    return [
        tokenizer.decode(store.get(key.tobytes()).answer, skip_special_tokens=True) if known else None
        for key, known in zip(keys, there, strict=True)
    ]


def compared(
    rows: pd.DataFrame, start: Path, settings: Teaching, file: Path, what: str
) -> tuple[pd.DataFrame, Obtained]:
    """Return the rows with `teacher_response` and whether `response` says the same (`agree`), and what it cost.

    Rows to which the teacher gave no answer are not among them. Raises Failure when it gave none at all.
    """
    texts, obtained = answers(rows["prompt"].tolist(), start, settings, file, what)
    rows = rows.assign(teacher_response=pd.Series(texts, rows.index, dtype=object)).dropna(subset="teacher_response")
    if rows.empty:
        raise Failure(
            f"the teacher withheld its answers to all {len(texts)} rows of {what}: look at what its endpoint filters"
        )
    given = rows["response"].to_numpy(str), rows["teacher_response"].to_numpy(str)
    return rows.assign(agree=np.char.strip(given[0]) == np.char.strip(given[1])), obtained
