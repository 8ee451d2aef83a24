"""Asking the teacher: signals for the rows to learn from, and answers to held-out rows without a label."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from distill.mixing import audit
from distill.signals import Obtained, SignalStore
from tasks import crossing, mix, progress, purchases
from tasks.learned import learned_rows
from tasks.run import Run, run_stage
from tasks.teaching import Teaching, asked_with, teacher_of


@task(name="teach", cache_policy=NO_CACHE)
def teach(run: Run, log: str, start: Path, settings: Teaching) -> dict[str, Any]:
    """Have the teacher's signals for window and replay, and mix what is to be learned; returns counts and cost."""

    def work(folder: Path) -> dict[str, Any]:
        rows = learned_rows(run, log, settings)
        asked = run.asked("signals")
        texts = rows["prompt"].tolist()
        crossing.try_out(
            texts, start, settings, lambda some: ask(some, start, settings, asked, "teacher: the first signals")[2]
        )
        prompts, truncated, obtained = ask(texts, start, settings, asked, "teacher: signals")
        told = mix.heard(run, rows, start, obtained, settings)
        at = mix.to_sample(rows, told, mix.labelled(rows, told.texts), settings)
        agreed, samples = sampled(prompts, at, told, start, settings, asked)
        chosen = mix.mix(run, rows, prompts, told, agreed, settings)
        own = crossing.own_tokens(rows, prompts, obtained, chosen, start, settings)
        counts = mix.write(folder, rows, own.prompts, obtained, told, chosen, own.alignment)
        costs = asdict(mix.with_samples(obtained, samples))
        del costs["keys"]
        return {
            "window_rows": int((~rows["replay"]).sum()),
            "replay_rows": int(rows["replay"].sum()),
            "segments": int(rows["segment"].nunique()),
            "truncated_prompts": truncated,
            "sampled_rows": len(at),
            **counts,
            **costs,
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
    logger, outcomes, labels = get_run_logger(), result["outcomes"], result["labelled_rows"]
    logger.info("teacher signals: %d tokens bought, %d reused", result["bought_tokens"], result["reused_tokens"])
    if "alignment" in result:
        logger.info("%s", result["alignment"]["told"])
    logger.info("mixture: %d rows, of which %s", result["rows"], {name: n for name, n in outcomes.items() if n})
    if outcomes[audit.LABEL] > labels / 2:
        logger.warning(
            "labels speak against the teacher's answers on %d of %d labelled rows: it does not know this traffic, or "
            "the labels are no answers of its kind (then set audit.labels to false)", outcomes[audit.LABEL], labels
        )  # fmt: skip
    return result


def sampled(
    prompts: list[NDArray[np.int32]],
    at: NDArray[np.int64],
    told: mix.Heard,
    start: Path,
    settings: Teaching,
    asked: Path,
) -> tuple[NDArray[np.float64], list[Obtained]]:
    """Return the share of each row's sampled answers that are its greedy one, NaN without any, and what they cost.

    at: the rows to ask about. Each sample is a signal of its own kind, so that it too is bought once.
    """
    from distill.generation import Sampling

    agreed, store, tokenizer = np.full(len(prompts), np.nan), SignalStore(settings.signals), asked_with(start, settings)
    bought, same = [], []
    for number in range(settings.audit.samples if len(at) else 0):
        drawn = Sampling(settings.audit.temperature, settings.training.seed + number)
        with progress.bar(f"teacher: sample {number + 1} of {settings.audit.samples}", "prompts") as shown:
            found = purchases.buy(store, teacher_of(settings, drawn), [prompts[row] for row in at], asked, shown)
        texts = tokenizer.batch_decode([store.get(k.tobytes()).answer for k in found.keys], skip_special_tokens=True)
        bought.append(found)
        same.append(np.array(texts, str) == told.texts[at])
    if same:
        agreed[at] = audit.agreement(np.array(same))
    return agreed, bought


def ask(
    prompts: list[str], start: Path, settings: Teaching, asked: Path, what: str
) -> tuple[list[np.ndarray[Any, Any]], int, Obtained]:
    """Return (token ids of the prompts, how many were cut, the teacher's signals for them), bought where not stored.

    asked: the file that keeps what a stage bought although it is killed (Run.asked). The ids are of asked_with.
    """
    from distill.prompts import encode, load_tokenizer

    teacher = teacher_of(settings)
    teacher.check(load_tokenizer(start), settings.teacher.top_k)
    encoded = encode(asked_with(start, settings), prompts, settings.student.max_prompt_tokens)
    with progress.bar(what, "prompts") as shown:
        obtained = purchases.buy(SignalStore(settings.signals), teacher, encoded.ids, asked, shown)
    return encoded.ids, encoded.truncated, obtained


def answers(prompts: list[str], start: Path, settings: Teaching, asked: Path, what: str) -> tuple[list[str], Obtained]:
    """Return the teacher's answers as text, with what they cost; `what` names the rows to people."""
    _, _, obtained = ask(prompts, start, settings, asked, f"teacher: {what}")
    store, tokenizer = SignalStore(settings.signals), asked_with(start, settings)
    ids = [store.get(key.tobytes()).answer for key in obtained.keys]
    return [tokenizer.decode(answer, skip_special_tokens=True) for answer in ids], obtained


def compared(
    rows: pd.DataFrame, start: Path, settings: Teaching, asked: Path, what: str
) -> tuple[pd.DataFrame, Obtained]:
    """Return the rows with `teacher_response` and whether `response` says the same (`agree`), and what it cost."""
    texts, obtained = answers(rows["prompt"].tolist(), start, settings, asked, what)
    same = np.char.strip(rows["response"].to_numpy(str)) == np.char.strip(np.asarray(texts, str))
    return rows.assign(teacher_response=texts, agree=same), obtained
