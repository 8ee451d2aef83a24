"""What is wanted of a teacher and not in the store yet: it is asked for once, and counted as bought or found again."""

import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import Failure
from distill.obtained import Obtained
from distill.signals import Keys, SignalStore, joined, key, strings
from distill.store.claims import claimed
from distill.store.soundness import Record
from distill.teachers.protocol import AnySignal, Teacher
from distill.teachers.spent import Effort, Remote

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """N signals that are wanted, and who makes them."""

    keys: Keys  # (N, 32)
    prompt_tokens: Sequence[int]  # (N,) of which each signal's answer follows
    # (numbers of those to make, progress) -> (place in these numbers, signal), in any order
    make: Callable[[NDArray[np.int64], Callable[[int, int], None] | None], Iterable[tuple[int, AnySignal]]]
    maker: object  # whoever is asked by `make`; what asking took is counted where that is over the network


def answers_to(teacher: Teacher, prompts: Sequence[NDArray[np.int32]]) -> Wanted:
    """Return that the teacher's answers to these prompts are wanted."""
    keys = [key(teacher.digest, teacher.format, teacher.sampling, prompt) for prompt in prompts]

    def make(rows: NDArray[np.int64], progress: Callable[[int, int], None] | None) -> Iterable[tuple[int, AnySignal]]:
        return teacher.ask([prompts[at] for at in rows], progress)

    return Wanted(joined(keys), [len(prompt) for prompt in prompts], make, teacher)


def lacking(
    store: SignalStore, teacher: Teacher, prompts: Sequence[NDArray[np.int32]]
) -> tuple[Keys, NDArray[np.int64]]:
    """Return the prompts' keys, (N, 32), and which prompts would have to be bought, each different one once."""
    keys = answers_to(teacher, prompts).keys
    return keys, absent(store, keys)


def absent(store: SignalStore, keys: Keys) -> NDArray[np.int64]:
    """Return which of the keys the store lacks, each different one once."""
    store.refresh()
    first = np.sort(np.unique(strings(keys), return_index=True)[1])
    return first[~store.contains(keys[first])]


def obtain(store: SignalStore, teacher: Teacher, prompts: Sequence[NDArray[np.int32]], **options: Any) -> Obtained:
    """Ask the teacher for the answers that the store lacks, each prompt once; options and errors as of `fetch`."""
    return fetch(store, answers_to(teacher, prompts), **options)


def fetch(
    store: SignalStore,
    wanted: Wanted,
    *,
    progress: Callable[[int, int], None] | None = None,
    buying: Callable[[Keys], None] | None = None,
    flush_rows: int = 512,
    flush_seconds: float = 10.0,
) -> Obtained:
    """Have made what the store lacks, each signal once, and count what was reused and bought.

    What another job is buying at the same time is waited for (distill/store/claims.py). `buying` is told the keys
    that are about to be asked for. Answers are stored after `flush_rows` of them or `flush_seconds`, whichever comes
    first: a killed job loses no more than that. Raises Failure when the teacher leaves prompts out or a signal cannot
    be right.
    """
    bought: list[Keys] = []
    keys, effort = wanted.keys, Effort()
    while len(asked := absent(store, keys)):
        with claimed(store.place, keys[asked]) as own:
            store.refresh()  # who had claimed some before may have stored them by now
            own &= ~store.contains(keys[asked])
            if own.any():
                mine = asked[own]
                if buying:
                    buying(keys[mine])
                began = time.monotonic()
                _buy(store, wanted, mine, progress, flush_rows, flush_seconds)
                effort = effort.plus(_effort(store, wanted.maker, keys[mine], time.monotonic() - began))
                bought.append(keys[mine])
        if not own.any():
            _log.info("%d teacher signals are being bought by another job: waiting for them", len(asked))
            time.sleep(random.uniform(0.5, 1.5))  # noqa: S311
    return counted(store, keys, np.concatenate(bought) if bought else keys[:0], effort)


def _buy(
    store: SignalStore,
    wanted: Wanted,
    asked: NDArray[np.int64],
    progress: Callable[[int, int], None] | None,
    flush_rows: int,
    flush_seconds: float,
) -> None:
    """Ask for some of the prompts and store the answers as they come."""
    pending: list[Record] = []
    answered: set[int] = set()
    flushed = time.monotonic()
    try:
        for row, signal in wanted.make(asked, progress):
            answered.add(row)
            at = int(asked[row])
            pending.append((wanted.keys[at].tobytes(), wanted.prompt_tokens[at], signal))
            if len(pending) >= flush_rows or time.monotonic() - flushed >= flush_seconds:
                full, pending = pending, []
                store.put(full)
                flushed = time.monotonic()
    finally:
        store.put(pending)
    if len(answered) < len(asked):
        raise Failure(
            f"the teacher answered {len(answered)} of {len(asked)} prompts; those are stored: start again for the rest"
        )


def _effort(store: SignalStore, maker: object, keys: Keys, seconds: float) -> Effort:
    prompt_tokens, answer_tokens = store.lengths(keys)
    spent = replace(maker.spent) if isinstance(maker, Remote) else None
    return Effort(seconds, int(prompt_tokens.sum()), int(answer_tokens.sum()), spent)


def counted(store: SignalStore, keys: Keys, bought: Keys, effort: Effort) -> Obtained:
    """Return what the records of `keys` cost when those among `bought` were bought, each once, and the rest reused."""
    first = np.unique(strings(keys), return_index=True)[1]
    paid = np.zeros(len(keys), np.bool_)
    paid[first] = np.isin(strings(keys[first]), strings(bought))
    return Obtained(keys, paid, *store.lengths(keys), effort)
