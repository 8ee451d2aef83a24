"""The store of teacher signals: bought once, found again by content, read without copying.

A record's key is SHA-256 of (teacher digest, signal format, sampling, the prompt's token ids). Records lie in
immutable shards (distill/shards.py), of which no reader ever sees half a one:

    ROOT/shard-<time>-<random>/    published
    ROOT/.partial-<random>/        being written, or left by a killed process (swept after a day)
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distill import shards
from distill.errors import Failure
from distill.shards import Record
from distill.teachers.protocol import Signal, Teacher

Keys: TypeAlias = NDArray[np.uint8]  # (N, 32)

_LOCATED = np.dtype([*shards.INDEX.descr, ("shard", "<i4")])
_OPEN_SHARDS = 512  # each holds a file descriptor, of which a process usually has 1,024


def key(teacher_digest: str, signal_format: str, sampling: str, token_ids: NDArray[np.int32]) -> bytes:
    """Return the 32-byte key of the signal for a prompt's token ids."""
    asked = "\0".join((teacher_digest, signal_format, sampling, ""))
    return hashlib.sha256(asked.encode() + token_ids.astype("<i4").tobytes()).digest()


class SignalStore:
    """All records below `root`, which need not exist yet; several processes may write at once.

    Raises Failure, naming the file, for a shard that is not whole.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._shards: list[Path] = []
        self._index: NDArray[Any] = np.empty(0, _LOCATED)  # sorted by key
        self._sorted: NDArray[np.bytes_] = np.empty(0, "S32")  # its keys: a search copies what has gaps
        self._open: dict[int, NDArray[Any]] = {}
        self.refresh()

    def __len__(self) -> int:
        return len(self._index)

    def refresh(self) -> None:
        """Take in the shards that were published since the store was opened."""
        known = {shard.name for shard in self._shards}
        names = sorted(path.name for path in self.root.glob("shard-*") if path.name not in known)
        if not names:
            return
        parts = [self._index]
        for name in names:
            index = shards.read_index(self.root / name)
            located = np.empty(len(index), _LOCATED)
            located[list(shards.INDEX.names or ())] = index
            located["shard"] = len(self._shards)
            self._shards.append(self.root / name)
            parts.append(located)
        merged = np.concatenate(parts)
        self._index = merged[np.argsort(merged["key"], kind="stable")]
        self._sorted = np.ascontiguousarray(self._index["key"])

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Return which of the keys have a record, (N,)."""
        return self._find(keys)[1]

    def tokens(self, keys: Keys) -> NDArray[np.int64]:
        """Return the tokens of prompt and answer together for each key, (N,); Failure for a missing one."""
        at, found = self._find(keys)
        if not found.all():
            raise Failure(self._missing(keys[~found][0].tobytes()))
        rows = self._index[at]
        total: NDArray[np.int64] = rows["prompt_tokens"].astype(np.int64) + rows["tokens"]
        return total

    def get(self, key: bytes) -> Signal:
        """Return a record as views of the mapped file; Failure when there is none."""
        at, found = self._find(np.frombuffer(key, np.uint8)[None])
        if not found[0]:
            raise Failure(self._missing(key))
        row = self._index[at[0]]
        part = self._topk(int(row["shard"]))[row["start"] : row["start"] + row["tokens"]]
        return Signal(part["answer"], part["ids"], part["logprobs"], part["tail"])

    def put(self, records: Sequence[Record]) -> int:
        """Publish the records that are not there yet as one shard and return how many those were.

        All have the same k. Raises Failure, with nothing written, for a signal that cannot be right or when
        there is no room.
        """
        shards.check(records)
        self.refresh()
        unique = {record[0]: record for record in records}
        known = self.contains(_keys(list(unique)))
        new = [record for record, there in zip(unique.values(), known, strict=True) if not there]
        if not new:
            return 0
        try:
            shards.publish(self.root, new)
        except OSError as error:
            raise Failure(
                f"{len(new)} teacher signals could not be written to {str(self.root)!r} ({error}): "
                "make room or set teacher.signals to another folder, and start again; what was stored before is kept"
            ) from error
        self.refresh()
        return len(new)

    def _find(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return where in the index each key would be, and whether it is there."""
        wanted = _strings(keys)
        if not len(self):
            return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
        at = np.minimum(np.searchsorted(self._sorted, wanted), len(self) - 1)
        return at, self._sorted[at] == wanted

    def _topk(self, shard: int) -> NDArray[Any]:
        if shard not in self._open:
            if len(self._open) >= _OPEN_SHARDS:
                del self._open[next(iter(self._open))]
            self._open[shard] = shards.read_topk(self._shards[shard])
        return self._open[shard]

    def _missing(self, key: bytes) -> str:
        return (
            f"no signal {key.hex()[:12]}... in {str(self.root)!r}: it was removed or never bought; "
            "ask the teacher again"
        )


@dataclass(frozen=True)
class Obtained:
    """What was found and bought for some prompts; a row's tokens are those of its prompt and its answer."""

    keys: Keys  # (N, 32) in the order of the prompts; all of them are in the store
    reused_rows: int
    bought_rows: int
    reused_tokens: int
    bought_tokens: int


def lacking(
    store: SignalStore, teacher: Teacher, prompts: Sequence[NDArray[np.int32]]
) -> tuple[Keys, NDArray[np.int64]]:
    """Return the prompts' keys, (N, 32), and which prompts would have to be bought, each different one once."""
    keys = _keys([key(teacher.digest, teacher.format, teacher.sampling, prompt) for prompt in prompts])
    store.refresh()
    first = np.sort(np.unique(_strings(keys), return_index=True)[1])
    return keys, first[~store.contains(keys[first])]


def obtain(
    store: SignalStore,
    teacher: Teacher,
    prompts: Sequence[NDArray[np.int32]],
    *,
    progress: Callable[[int, int], None] | None = None,
    flush_rows: int = 512,
    flush_seconds: float = 10.0,
) -> Obtained:
    """Ask the teacher for what the store lacks, each prompt once, and count what was reused and bought.

    Answers are stored after `flush_rows` of them or `flush_seconds`, whichever comes first: a killed job
    loses no more than that. Raises Failure when the teacher leaves prompts out or a signal cannot be right.
    """
    keys, asked = lacking(store, teacher, prompts)
    pending: list[Record] = []
    answered: set[int] = set()
    flushed = time.monotonic()
    try:
        for row, signal in teacher.ask([prompts[at] for at in asked], progress) if len(asked) else ():
            answered.add(row)
            pending.append((keys[asked[row]].tobytes(), len(prompts[asked[row]]), signal))
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
    return counted(store, keys, keys[asked])


def counted(store: SignalStore, keys: Keys, bought: Keys) -> Obtained:
    """Return what the records of `keys` cost when those among `bought` were bought, each once, and the rest reused."""
    first = np.unique(_strings(keys), return_index=True)[1]
    paid = keys[first[np.isin(_strings(keys[first]), _strings(bought))]]
    tokens, paid_tokens = int(store.tokens(keys).sum()), int(store.tokens(paid).sum())
    return Obtained(keys, len(keys) - len(paid), len(paid), tokens - paid_tokens, paid_tokens)


def _keys(keys: list[bytes]) -> Keys:
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32)


def _strings(keys: Keys) -> NDArray[np.bytes_]:
    """Return the keys as 32-byte strings, (N,), which NumPy can sort and search."""
    return np.ascontiguousarray(keys).reshape(-1).view("S32")
