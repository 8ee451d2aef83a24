"""An alignment among the tensors of a mixture's file."""

from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from distill.alignment.alignment import NONE, Alignment
from distill.errors import InputError

_PREFIX = "alignment."
_KINDS = {"answers": "i", "offsets": "i", "theirs": "i", "matched": "b", "token_map": "i"}


def parts(alignment: Alignment) -> dict[str, NDArray[np.generic]]:
    """Return the tensors to be saved, by name."""
    return {_PREFIX + each.name: np.ascontiguousarray(getattr(alignment, each.name)) for each in fields(alignment)}


def taken(tensors: dict[str, NDArray[np.generic]]) -> Alignment | None:
    """Take the tensors of an alignment out of those of a file; None where it has none, KeyError where some lack."""
    found = {name: tensors.pop(name) for name in list(tensors) if name.startswith(_PREFIX)}
    return Alignment(**{name: found[_PREFIX + name] for name in _KINDS}) if found else None  # type: ignore[arg-type]


def check(alignment: Alignment, rows: int, name: str) -> None:
    """Raise InputError, naming the file, for an alignment that is not of so many rows, or could not be learned from."""
    tokens, offsets = alignment.answers.size, alignment.offsets
    shapes = {each: getattr(alignment, each).shape for each in _KINDS}
    expected = {"answers": (tokens,), "offsets": (rows + 1,), "theirs": (tokens,), "matched": (tokens,)}
    wrong = {**expected, "token_map": (alignment.token_map.size,)} != shapes
    wrong |= any(getattr(alignment, each).dtype.kind != kind for each, kind in _KINDS.items())
    if wrong or offsets[0] != 0 or offsets[-1] != tokens or (np.diff(offsets) <= 0).any():
        raise InputError(
            f"{name}: its alignment is not one of {rows} answers, {shapes}: make the mixture again, or mend what wrote "
            "it"
        )
    least = min(alignment.theirs.min(initial=0) - NONE, alignment.answers.min(initial=0), alignment.token_map.min() + 1)
    if least < 0:
        raise InputError(f"{name}: its alignment has token ids below 0: make the mixture again, or mend what wrote it")
