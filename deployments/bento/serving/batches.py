"""Continuous batching: prompts join the rows that are being answered, and finished rows leave them, every few steps.

Prompts of similar length are read together, and rows of similar length are answered together (length buckets), so that
a short one pays little for the padding of a long one. Orca (Yu et al. 2022) calls it iteration-level scheduling.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .engines import Engine, Ints, Past

PROMPT_BUCKET = 2  # prompts whose lengths lie within one power of this are read together
GROUP_BUCKET = 4  # rows whose lengths lie within one power of this are answered together; a group costs a pass
SHORTEST = 64  # what is shorter is in one bucket [tokens]
JOIN_EVERY = 4  # rows join and leave at every so many steps, since it copies what the engine remembers [steps]
MOST_AT_ONCE = 8192  # read in one pass, padding included, unless one prompt alone is longer [tokens]

log = logging.getLogger("bentoml.student")


class Overloaded(Exception):
    """More prompts wait than may wait."""


@dataclass(eq=False)
class Row:
    """A prompt and its answer so far; `told` is called by the decoder's thread whenever the answer has grown."""

    prompt: list[int]
    limit: int  # new tokens at most
    told: Callable[["Row"], None]  # never again once it is finished
    answer: list[int] = field(default_factory=list)  # stop token included
    logprobs: list[float] = field(default_factory=list)  # of the answer's tokens [nats]
    finished: bool = False
    failed: Exception | None = None
    given_up: bool = False  # by who asked: nobody waits for it any more, and its place is free
    since: float = field(default_factory=time.monotonic)

    @property
    def active(self) -> bool:
        """Return whether anything is still to be done for it."""
        return not (self.finished or self.given_up)


class Observer(Protocol):
    """Is told what happens, to count it."""

    def waiting(self, prompts: int, running: int) -> None:
        """So many prompts wait, so many are being answered."""

    def waited(self, seconds: float) -> None:
        """A prompt's answer begins after so long."""

    def stepped(self, rows: int) -> None:
        """So many rows of one group got a token."""


class Decoder:
    """One thread that answers rows greedily, at most `max_batch_size` at a time."""

    def __init__(
        self, engine: Engine, *, stops: frozenset[int], pad: int, max_batch_size: int, max_waiting: int, seen: Observer
    ) -> None:
        self.engine, self.stops, self.pad, self.seen = engine, stops, pad, seen
        self.max_batch_size, self.max_waiting = max_batch_size, max_waiting
        self.groups: dict[int, _Group] = {}
        self.progress = time.monotonic()
        self._waiting: deque[Row] = deque()
        self._changed = threading.Condition()
        self._ended = self._busy = False
        self.thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self.thread.start()

    def submit(self, rows: Sequence[Row]) -> None:
        """Let rows wait for their turn; raises Overloaded, and takes none, when too many would wait."""
        with self._changed:
            self._forget()
            if len(self._waiting) + len(rows) > self.max_waiting and (self._waiting or self.running):
                raise Overloaded(f"{len(self._waiting)} prompts wait already")
            self._waiting.extend(rows)
            self._changed.notify()

    def _forget(self) -> None:
        """Let nobody wait for whom nobody waits; to be called with the lock."""
        if any(row.given_up for row in self._waiting):
            self._waiting = deque(row for row in self._waiting if not row.given_up)

    @property
    def running(self) -> int:
        """Return how many rows are being answered."""
        return sum(row.active for group in list(self.groups.values()) for row in group.rows)

    def healthy(self, patience: float) -> bool:
        """Return whether the thread lives, and has nothing to do or did some of it in the last `patience` seconds."""
        return self.thread.is_alive() and (not self._busy or time.monotonic() - self.progress < patience)

    def end(self) -> None:
        """Answer no more."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self.thread.join()

    def _run(self) -> None:
        turn = 0
        while not self._ended:
            with self._changed:
                self._busy = bool(self._waiting or self.running)
                while not (self._busy or self._ended):
                    self._changed.wait()
                    self._busy, self.progress = bool(self._waiting), time.monotonic()
            if turn % JOIN_EVERY == 0 or not self.running:
                turn = 0
                self._rearrange()
            for bucket, group in list(self.groups.items()):
                self.seen.stepped(len(group.rows))
                self._guarded(group.rows, group.step)
                if not any(row.active for row in group.rows):
                    del self.groups[bucket]
            turn += 1
            with self._changed:
                self._forget()
                self.seen.waiting(len(self._waiting), self.running)

    def _rearrange(self) -> None:
        """Let those who wait join the rows of their bucket, and those leave for whom nothing is left to be done."""
        together = {bucket: [group] for bucket, group in self.groups.items()}
        for rows in self._admitted():
            new = _Group(self.engine, self.stops)
            self._guarded(rows, partial(new.read, rows, self.pad))
            together.setdefault(self._group_of(rows[0]), []).append(new)
        for bucket, groups in together.items():
            self._guarded([row for group in groups for row in group.rows], partial(self._merge, bucket, groups))

    def _merge(self, bucket: int, groups: list["_Group"]) -> None:
        self.groups.pop(bucket, None)
        merged = _merged(self.engine, self.stops, groups)
        if merged.rows:
            self.groups[bucket] = merged

    def _admitted(self) -> list[list[Row]]:
        """Return the rows that now get a place, oldest first, those to be read together in one list."""
        with self._changed:
            self._forget()
            free = max(self.max_batch_size - self.running, 0)
            chosen = [self._waiting.popleft() for _ in range(min(free, len(self._waiting)))]
        batches: list[list[Row]] = []
        open_batch: dict[tuple[int, int], list[Row]] = {}
        for row in chosen:
            self.seen.waited(time.monotonic() - row.since)
            length = _bucket(len(row.prompt), PROMPT_BUCKET)
            key = (self._group_of(row), length)
            if key not in open_batch or (len(open_batch[key]) + 1) * length > MOST_AT_ONCE:
                batches.append([])
                open_batch[key] = batches[-1]
            open_batch[key].append(row)
        return batches

    def _group_of(self, row: Row) -> int:
        return _bucket(len(row.prompt) + row.limit, GROUP_BUCKET)

    def _guarded(self, rows: list[Row], work: Callable[[], None]) -> None:
        """Work on rows and tell them; what goes wrong fails those that are not finished yet, and no others."""
        rows = [row for row in rows if row.active]
        try:
            work()
        except Exception as error:  # out of memory, say: whoever asked is told, and others are answered
            log.exception("%d rows failed", len(rows))
            for row in rows:
                row.failed, row.finished = error, True
        self.progress = time.monotonic()
        for row in rows:
            row.told(row)


class _Group:
    """Rows whose newest tokens stand in one column."""

    def __init__(self, engine: Engine, stops: frozenset[int]) -> None:
        self.engine, self.stops = engine, stops
        self.rows: list[Row] = []
        self.mask: Ints
        self.past: Past = None

    def read(self, rows: list[Row], pad: int) -> None:
        """Read prompts, and give each the first token of its answer."""
        length = max(len(row.prompt) for row in rows)
        tokens = np.full((len(rows), length), pad, np.int64)
        self.rows, self.mask = list(rows), np.zeros((len(rows), length), np.int64)
        for at, row in enumerate(rows):
            tokens[at, length - len(row.prompt) :] = row.prompt
            self.mask[at, length - len(row.prompt) :] = 1
        best, logprobs, self.past = self.engine.forward(tokens, self.mask, None)
        self._take(best, logprobs)

    def step(self) -> None:
        """Give each row one more token."""
        newest = np.array([[row.answer[-1]] for row in self.rows], np.int64)
        self.mask = np.pad(self.mask, ((0, 0), (0, 1)), constant_values=1)
        best, logprobs, self.past = self.engine.forward(newest, self.mask, self.past)
        self._take(best, logprobs)

    def _take(self, best: Ints, logprobs: NDArray[np.float32]) -> None:
        for row, token, logprob in zip(self.rows, best.tolist(), logprobs.tolist(), strict=True):
            if not row.active:
                continue  # it leaves when rows are rearranged
            if not math.isfinite(logprob):
                row.failed, row.finished = ArithmeticError("the model computed something that is no number"), True
                continue
            row.answer.append(token)
            row.logprobs.append(logprob)
            row.finished = token in self.stops or len(row.answer) >= row.limit


def _merged(engine: Engine, stops: frozenset[int], groups: list[_Group]) -> _Group:
    """Return one group of the active rows of some, without columns that are padding to all of them."""
    stay = [[at for at, row in enumerate(group.rows) if row.active] for group in groups]
    if len(groups) == 1 and len(stay[0]) in (0, len(groups[0].rows)):
        groups[0].rows = groups[0].rows if stay[0] else []
        return groups[0]
    merged = _Group(engine, stops)
    parts = [(group, rows) for group, rows in zip(groups, stay, strict=True) if rows]
    if parts:
        cuts = [int(group.mask[rows].argmax(1).min()) for group, rows in parts]
        masks = [group.mask[rows, cut:] for (group, rows), cut in zip(parts, cuts, strict=True)]
        width = max(mask.shape[1] for mask in masks)
        merged.mask = np.concatenate([np.pad(mask, ((0, 0), (width - mask.shape[1], 0))) for mask in masks])
        merged.past = engine.merge([(group.past, rows) for group, rows in parts], width)
        merged.rows = [group.rows[at] for group, rows in parts for at in rows]
    return merged


def _bucket(length: int, factor: int) -> int:
    """Return the least of SHORTEST, SHORTEST * factor, SHORTEST * factor^2 ... that is not less than a length."""
    bucket = SHORTEST
    while bucket < length:
        bucket *= factor
    return bucket
