"""What a retrain buys from the teacher: counted although it was killed in between, and written into the ledger."""

import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distill import buying
from distill.obtained import Obtained
from distill.signals import Keys, SignalStore
from monitoring.ledger import Ledger
from tasks.run import Run, read_json

if TYPE_CHECKING:
    from distill.teachers.protocol import Teacher


def buy(
    store: SignalStore,
    teacher: "Teacher",
    prompts: Sequence[NDArray[np.int32]],
    asked: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Obtained:
    """Return the teacher's answers to the prompts, bought where the store lacks them; as of `fetch`."""
    return fetch(store, buying.answers_to(teacher, prompts), asked, progress)


def fetch(
    store: SignalStore, wanted: buying.Wanted, asked: Path, progress: Callable[[int, int], None] | None = None
) -> Obtained:
    """Return the signals that are wanted, bought where the store lacks them.

    What is about to be asked for is written to the file `asked` first. A stage that was killed and asks again finds
    there what it has bought before, which counts as bought and not as reused.
    """

    def before() -> Keys:
        return np.load(asked) if asked.is_file() else np.empty((0, 32), np.uint8)

    def keep(keys: Keys) -> None:
        _keep(asked, np.unique(np.concatenate([before(), keys]), axis=0))

    obtained = buying.fetch(store, wanted, progress=progress, buying=keep)
    return buying.counted(store, obtained.keys, before(), obtained.effort)


def paid(store: SignalStore, asked: Path) -> tuple[int, int, int]:
    """Return rows, tokens of prompts and tokens of answers that a stage has bought so far; `asked` as in `buy`."""
    if not asked.is_file():
        return 0, 0, 0
    store.refresh()
    keys: Keys = np.load(asked)
    prompt_tokens, answer_tokens = store.lengths(keys := keys[store.contains(keys)])
    return len(keys), int(prompt_tokens.sum()), int(answer_tokens.sum())


def record(run: Run, stage: str, ledger: Path) -> None:
    """Write into the ledger what a finished stage has bought, for the budget of the month in which it ended."""
    manifest = read_json(run.stage(stage) / "manifest.json")
    Ledger(ledger).record_purchase(
        run.request.retrain_id, stage, datetime.fromisoformat(manifest["end"]), manifest["result"]["bought_tokens"]
    )


def _keep(path: Path, keys: Keys) -> None:
    """Write keys so that a reader sees the old file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        np.lib.format.write_array(file, keys, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
