"""Records of one batch -> a shard's table and tokens, and the directions that their states are kept along."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.store import basis, encodings, shards
from distill.store.basis import Basis
from distill.store.encodings import Encoded
from distill.store.places import Place
from distill.store.soundness import Record
from distill.teachers.protocol import HiddenSignal


class Bases:
    """The directions that a store's shards name, each read once."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._known: dict[str, Basis] = {}

    def get(self, name: str) -> Basis:
        """Return directions by their name; Failure, naming the file, when they are damaged or gone."""
        if name not in self._known:
            try:
                content = self.place.read_basis(name)
            except FileNotFoundError:
                content = b""
            self._known[name] = basis.read(name, content, self.place.where(name))
        return self._known[name]

    def suitable(self, signal: HiddenSignal) -> Basis | None:
        """Return the directions to keep states along, found and published when none of the store's fits.

        None for a format without directions, and for too few tokens to find them from.
        """
        kind, directions = encodings.parse(signal.format)
        if kind != "svd":
            return None
        beginning = basis.prefix(directions, signal.states.shape[1])
        known = (self.get(name) for name in self.place.bases() if name.startswith(beginning))
        if fitting := basis.choose(signal.states, known):
            return fitting
        if not (found := basis.find(signal.states, directions)):
            return None
        self.place.publish_basis(found[0].name, found[1])
        return found[0]


def pack(records: Sequence[Record], bases: Bases) -> tuple[NDArray[Any], Encoded]:
    """Return the table (of shards.INDEX) and the tokens of a shard of checked records, one or more."""
    whole = encodings.merged([signal for _, _, signal in records])
    lengths = np.array([len(signal.answer) for _, _, signal in records])
    table = np.zeros(len(records), shards.INDEX)
    table["key"] = [key for key, _, _ in records]
    table["bought"] = time.time()
    table["prompt_tokens"] = [prompt_tokens for _, prompt_tokens, _ in records]
    table["tokens"], table["start"] = lengths, np.cumsum(lengths) - lengths
    if not isinstance(whole, HiddenSignal):
        return table, encodings.encode(whole)
    directions = bases.suitable(whole)
    encoded = encodings.encode(whole, directions)
    table["error"] = _errors(whole, encodings.decode(encoded, slice(None), directions), table["start"])
    return table, encoded


def _errors(whole: HiddenSignal, back: Any, starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each record's ||kept - given|| / ||given||, Frobenius norms."""
    missed = np.add.reduceat(np.square(back.states - whole.states, dtype=np.float64).sum(1), starts)
    size = np.add.reduceat(np.square(whole.states, dtype=np.float64).sum(1), starts)
    errors: NDArray[np.float64] = np.sqrt(missed / np.where(size > 0, size, 1))
    return errors
