"""The store of teacher signals: bought once, found again by content, read without copying what need not be.

A record's key is SHA-256 of (teacher digest, signal format, sampling, the prompt's token ids). Records lie in
immutable shards (distill/store/shards.py) of a local folder or an fsspec URL (distill/store/places.py); several
processes may write, compact and evict at once.

    python -m distill.signals stats|verify|compact|evict ROOT
"""

import hashlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import RLock
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from distill.errors import Failure
from distill.store import encodings, shards
from distill.store.encodings import Encoded
from distill.store.places import place_of
from distill.store.records import Bases, pack
from distill.store.shards import Damaged, Shard
from distill.store.soundness import Record, check
from distill.teachers.protocol import FILTERED, AnswerSignal, AnySignal

Keys: TypeAlias = NDArray[np.uint8]  # (N, 32)
Found = TypeVar("Found")

_LOCATED = np.dtype([*shards.INDEX.descr, ("shard", "<i4")])
_OPEN_SHARDS = 512  # each holds a file descriptor, of which a process usually has 1,024
_ATTEMPTS = 5  # to find records whose shards are rewritten meanwhile
_log = logging.getLogger(__name__)


def key(teacher_digest: str, signal_format: str, sampling: str, token_ids: NDArray[np.int32]) -> bytes:
    """Return the 32-byte key of the signal for a prompt's token ids."""
    asked = "\0".join((teacher_digest, signal_format, sampling, ""))
    return hashlib.sha256(asked.encode() + token_ids.astype("<i4").tobytes()).digest()


class SignalStore:
    """All records below `root`, a folder that need not exist yet or an fsspec URL.

    Raises Damaged (a Failure), naming the file, for a shard that is not what was written.
    """

    def __init__(self, root: str | Path) -> None:
        self.place = place_of(root)
        self.bases = Bases(self.place)
        self._names: list[str] = []  # of shards, by their number; those that are gone keep theirs
        self._shards: dict[int, Shard] = {}
        self._index: NDArray[Any] = np.empty(0, _LOCATED)  # sorted by key
        self._sorted: NDArray[np.bytes_] = np.empty(0, "S32")  # its keys: a search copies what has gaps
        self._open: dict[int, Encoded] = {}
        self._reading = RLock()  # validation reads while a thread makes batches
        self.refresh()

    def __len__(self) -> int:
        return len(self._index)

    def refresh(self) -> None:
        """Take in the shards that were published since the store was opened, and forget those that are gone."""
        names = self._listed()
        kept = {self._names[number] for number in self._shards}
        gone = [number for number in self._shards if self._names[number] not in names]
        if not gone and kept.issuperset(names):
            return
        try:
            found = {name: self._read_index(name) for name in sorted(names - kept)}
        except FileNotFoundError:  # rewritten or evicted since it was listed
            self.refresh()
            return
        parts = [self._index[~np.isin(self._index["shard"], gone)]]
        for number in gone:
            del self._shards[number]
            self._open.pop(number, None)
        for name, shard in found.items():
            located = np.empty(len(shard.table), _LOCATED)
            located[list(shards.INDEX.names or ())] = shard.table
            located["shard"] = len(self._names)
            self._shards[len(self._names)] = shard
            self._names.append(name)
            parts.append(located)
        merged = np.concatenate(parts)
        self._index = merged[np.argsort(merged["key"], kind="stable")]
        self._sorted = np.ascontiguousarray(self._index["key"])

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Return which of the keys have a record, (N,)."""
        return self._find(keys)[1]

    def tokens(self, keys: Keys) -> NDArray[np.int64]:
        """Return the tokens of prompt and answer together for each key, (N,); Failure for a missing one."""
        prompt_tokens, answer_tokens = self.lengths(keys)
        return prompt_tokens + answer_tokens

    def lengths(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (tokens of the prompt, tokens of the answer) for each key, (N,) each; Failure for a missing one."""
        rows = self._rows(keys)
        return rows["prompt_tokens"].astype(np.int64), rows["tokens"].astype(np.int64)

    def get(self, key: bytes) -> AnySignal:
        """Return one record, its log-probabilities as a view of the mapped file; Failure when there is none."""

        def read() -> AnySignal:
            row = self._rows(np.frombuffer(key, np.uint8)[None])[0]
            return self._decoded(int(row["shard"]), slice(int(row["start"]), int(row["start"] + row["tokens"])))

        return self._again_if_rewritten(read)

    def get_many(self, keys: Keys) -> tuple[NDArray[np.int64], AnySignal]:
        """Return (tokens of each answer (N,), all answers one after the other as one signal), in the keys' order.

        A shard's records are unpacked in one go. Raises Failure for a missing record, no keys, or several formats.
        """
        return self._again_if_rewritten(lambda: self._many(keys))

    def put(self, records: Sequence[Record]) -> int:
        """Publish the records that are not there yet as one shard and return how many those were.

        All have the same format. Raises Failure, with nothing written, for a signal that cannot be right or when
        there is no room.
        """
        check(records)
        self.refresh()
        unique = {record[0]: record for record in records}
        known = self.contains(joined(list(unique)))
        if not (new := [record for record, there in zip(unique.values(), known, strict=True) if not there]):
            return 0
        try:
            table, encoded = pack(new, self.bases)
            self.place.publish(lambda folder: shards.write(folder, table, encoded))
        except OSError as error:
            raise Failure(
                f"{len(new)} teacher signals could not be written to {self.place.root!r} ({error}): "
                "make room or set teacher.signals to another folder, and start again; what was stored before is kept"
            ) from error
        self.refresh()
        return len(new)

    def _listed(self) -> set[str]:
        """Return the names of all shards; listed until two agree: one may miss a shard and what replaced it."""
        names: set[str] | None = None
        while (found := set(self.place.names())) != names:
            names = found
        return found

    def _find(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return where in the index each key would be, and whether it is there."""
        wanted = strings(keys)
        if not len(self):
            return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
        at = np.minimum(np.searchsorted(self._sorted, wanted), len(self) - 1)
        return at, self._sorted[at] == wanted

    def _rows(self, keys: Keys) -> NDArray[Any]:
        at, found = self._find(keys)
        if not found.all():
            raise Failure(
                f"no signal {keys[~found][0].tobytes().hex()[:12]}... in {self.place.root!r}: it was removed or never "
                "bought; ask the teacher again, in a retrain with --again"
            )
        return self._index[at]

    def _many(self, keys: Keys) -> tuple[NDArray[np.int64], AnySignal]:
        rows = self._rows(keys)
        numbers = np.unique(rows["shard"])
        formats = {self._shards[int(number)].format for number in numbers}
        if len(formats) != 1:
            raise Failure(f"{len(keys)} signals of {len(formats)} formats {sorted(formats)}: read one format at a time")
        lengths, parts = rows["tokens"].astype(np.int64), []
        for number in numbers:
            own = rows[rows["shard"] == number]
            parts.append(self._decoded(int(number), encodings.ranges(own["start"], own["tokens"].astype(np.int64))))
        whole = encodings.merged(parts) if len(parts) > 1 else parts[0]
        order = np.argsort(rows["shard"], kind="stable")
        if (order == np.arange(len(order))).all():
            return lengths, whole
        starts = np.empty_like(lengths)
        starts[order] = np.cumsum(lengths[order]) - lengths[order]
        return lengths, encodings.picked(whole, encodings.ranges(starts, lengths))

    def _decoded(self, number: int, rows: encodings.Rows) -> AnySignal:
        encoded = self._data(number)
        named = encoded.parameters.get("basis")
        return encodings.decode(encoded, rows, self.bases.get(named) if named else None)

    def _data(self, number: int) -> Encoded:
        if number not in self._open:
            if len(self._open) >= _OPEN_SHARDS:
                del self._open[next(iter(self._open))]
            name, shard = self._names[number], self._shards[number]
            self._open[number] = self._mended(name, lambda: shards.open_data(self.place.folder(name, data=True), shard))
        return self._open[number]

    def _read_index(self, name: str) -> Shard:
        return self._mended(name, lambda: shards.read_index(self.place.folder(name, data=False)))

    def _mended(self, name: str, read: Callable[[], Found]) -> Found:
        """Return what `read` finds; a damaged cached copy is downloaded again once."""
        try:
            return read()
        except Damaged as damage:
            if not self.place.mend(name):
                raise
            _log.warning("the cached copy of %s is damaged, it is downloaded again: %s", self.place.where(name), damage)
            return read()

    def _again_if_rewritten(self, read: Callable[[], Found]) -> Found:
        """Return what `read` finds, in the shards that others may have rewritten meanwhile."""
        for _ in range(_ATTEMPTS):
            with self._reading:
                try:
                    return read()
                except FileNotFoundError:
                    self.refresh()
        raise Failure(
            f"signals of {self.place.root!r} vanish while they are read: end what compacts or evicts there all the time"
        )


def withheld(store: SignalStore, keys: Keys) -> NDArray[np.bool_]:
    """Return to which of the prompts the teacher gave no answer, (N,): filtered, refused or empty."""
    if not len(keys) or not isinstance(store.get(keys[0].tobytes()), AnswerSignal):
        return np.zeros(len(keys), np.bool_)
    lengths, found = store.get_many(keys)
    assert isinstance(found, AnswerSignal)  # they are of one format, or get_many says so
    ending: NDArray[np.uint8] = found.ending[np.cumsum(lengths) - lengths]
    return ending >= FILTERED


def joined(keys: Sequence[bytes]) -> Keys:
    """Return keys as one array, (N, 32)."""
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32)


def strings(keys: Keys) -> NDArray[np.bytes_]:
    """Return the keys as 32-byte strings, (N,), which NumPy can sort and search."""
    return np.ascontiguousarray(keys).reshape(-1).view("S32")


if __name__ == "__main__":
    from distill.store.command import main

    sys.exit(main())
