"""The leading singular directions of a teacher's states: found once, kept in the store by content, used until worn out.

A basis fits records when their relative error ||H - H B'B|| / ||H|| is at most SLACK times the one that it was found
with. Where none fits, a new one is found from the records, if they have enough tokens to tell directions from chance.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from distill.errors import Failure

SLACK = 1.5
TOKENS_PER_DIRECTION = 4  # with fewer, directions fit the noise of the very tokens they were found from
_FLOOR = 1e-3  # of the error: where the states have R directions at all, what remains is rounding
_HEAD = np.dtype([("magic", "S8"), ("directions", "<i4"), ("width", "<i4"), ("error", "<f8")])
_MAGIC = b"RDBASIS1"


@dataclass(frozen=True)
class Basis:
    """R orthonormal directions of width D."""

    name: str  # file in the store: "basis-RxD-<SHA-256 of its content>"
    directions: NDArray[np.float32]  # (R, D), the strongest first
    error: float  # relative, of the states it was found from


def prefix(directions: int, width: int) -> str:
    """Return how the names of bases of this shape begin."""
    return f"basis-{directions}x{width}-"


def relative_error(states: NDArray[np.float32], basis: Basis) -> float:
    """Return ||H - H B'B|| / ||H||, Frobenius norms; 0 for states that are all zero."""
    whole = float(np.square(states, dtype=np.float64).sum())
    residual = states - (states @ basis.directions.T) @ basis.directions
    return float(np.sqrt(np.square(residual, dtype=np.float64).sum() / whole)) if whole else 0.0


def choose(states: NDArray[np.float32], known: Iterable[Basis]) -> Basis | None:
    """Return the known basis that fits the states best; None when none fits."""
    rated = [(relative_error(states, basis), basis) for basis in known]
    fitting = [(error, basis) for error, basis in rated if error <= SLACK * basis.error + _FLOOR]
    return min(fitting, key=lambda each: each[0])[1] if fitting else None


def find(states: NDArray[np.float32], directions: int) -> tuple[Basis, bytes] | None:
    """Return the states' own leading directions and the content of their file; None for too few tokens.

    From the smaller Gram matrix, in float64. Raises Failure unless there are fewer directions than the width.
    """
    tokens, width = states.shape
    if directions >= width:
        raise Failure(
            f"hidden:svd{directions}, but the teacher's states have width {width}: use fewer directions, or hidden:bf16"
        )
    if tokens < TOKENS_PER_DIRECTION * directions:
        return None
    exact = states.astype(np.float64)
    if tokens < width:
        _, left = np.linalg.eigh(exact @ exact.T)
        spanned, _ = np.linalg.qr(exact.T @ left[:, ::-1][:, :directions])
        found = spanned.T
    else:
        found = np.linalg.eigh(exact.T @ exact)[1].T[::-1][:directions]
    found = np.ascontiguousarray(found, np.float32)
    error = relative_error(states, Basis("", found, 0))
    head = np.array([(_MAGIC, directions, width, error)], _HEAD)
    content = head.tobytes() + found.tobytes()
    name = prefix(directions, width) + hashlib.sha256(content).hexdigest()
    return Basis(name, found, error), content


def is_whole(name: str, content: bytes) -> bool:
    """Return whether this is the content that a basis file's name says."""
    return hashlib.sha256(content).hexdigest() == name.rsplit("-", 1)[-1]


def read(name: str, content: bytes, where: str) -> Basis:
    """Return the basis of a file's content; raises Failure, naming the file, unless it is what its name says."""
    if not is_whole(name, content):
        raise Failure(
            f"basis {where!r} of the signal store is damaged: its content is not what its name says; delete it and "
            "the shards that need it (python -m distill.signals verify names them): they are bought again"
        )
    head = np.frombuffer(content, _HEAD, 1)[0]
    directions = np.frombuffer(content, "<f4", offset=_HEAD.itemsize).reshape(head["directions"], head["width"])
    return Basis(name, directions, float(head["error"]))
