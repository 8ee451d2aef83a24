"""The rows that a student learns from: tokenised prompts, the keys of their teacher signals, and what each counts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.alignment import file as alignment_file
from distill.alignment.alignment import Alignment
from distill.errors import InputError


@dataclass(frozen=True)
class Mixture:
    """Training rows: tokenised prompts, the keys of their teacher signals, and their weights."""

    tokens: NDArray[np.int32]  # all prompts, one after the other
    offsets: NDArray[np.int64]  # (rows + 1,) where each begins
    keys: NDArray[np.uint8]  # (rows, 32)
    weights: NDArray[np.float32]  # (rows,) what each of a row's tokens counts, 1 on average
    alignment: Alignment | None = None  # the answers in the student's tokens, where the teacher's are others
    own: NDArray[np.bool_] | None = None  # (rows,) the answer is the student's own, not the teacher's; None: of no row
    held: NDArray[np.bool_] | None = None  # (rows,) for validation alone; None: the training draws them

    def __len__(self) -> int:
        return len(self.keys)

    def prompt(self, row: int) -> NDArray[np.int32]:
        """Return the token ids of one prompt, (length,)."""
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]


def replay_count(window_rows: int, replay_share: float, available: int) -> int:
    """Return how many rows of earlier windows make up `replay_share` of the mixture, at most all there are."""
    return min(round(window_rows * replay_share / (1 - replay_share)), available)


def draw(available: int, count: int, seed: int) -> NDArray[np.int64]:
    """Return `count` of `available` row numbers, drawn without replacement and sorted."""
    return np.sort(np.random.default_rng(seed).choice(available, size=count, replace=False))


def save(
    path: Path,
    prompts: list[NDArray[np.int32]],
    keys: NDArray[np.uint8],
    weights: NDArray[np.float32] | None = None,
    *,
    alignment: Alignment | None = None,
    own: NDArray[np.bool_] | None = None,
    held: NDArray[np.bool_] | None = None,
) -> None:
    """Write the rows of a mixture as one safetensors file; without weights all rows count the same.

    alignment: of these rows, where the teacher has another tokenizer; prompts are in the student's tokens. own, held:
    as of Mixture; what is not given is not in the file. Raises InputError when the parts are not of as many rows, or
    the weights are not positive with mean 1.
    """
    from safetensors.numpy import save_file

    weights = np.ones(len(prompts), np.float32) if weights is None else weights.astype(np.float32)
    if not len(prompts) == len(keys) == len(weights):
        raise InputError(
            f"{len(prompts)} prompts, {len(keys)} signals and {len(weights)} weights: each row needs one of each"
        )
    if len(weights) and not (weights.min() > 0 and abs(weights.mean(dtype=np.float64) - 1) < 1e-4):
        raise InputError(
            f"weights from {weights.min()} on with mean {weights.mean()}: they must be above 0 and have mean 1"
        )
    offsets = np.zeros(len(prompts) + 1, np.int64)
    np.cumsum([len(prompt) for prompt in prompts], out=offsets[1:])
    tokens = np.concatenate(prompts).astype(np.int32) if prompts else np.zeros(0, np.int32)
    parts = {"tokens": tokens, "offsets": offsets, "keys": keys, "weights": weights, "own": own, "held": held}
    parts |= alignment_file.parts(alignment) if alignment else {}
    save_file({name: np.ascontiguousarray(part) for name, part in parts.items() if part is not None}, str(path))


def load(path: Path) -> Mixture:
    """Read the rows that `save` wrote; in a file of an earlier version all count the same.

    Raises InputError for a file that is missing, damaged or something else, and for rows that cannot be learned from.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        parts = load_file(str(path))
        parts.setdefault("weights", np.ones(len(parts["keys"]), np.float32))
        alignment = alignment_file.taken(parts)
        rows = Mixture(**parts, alignment=alignment)
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise InputError(
            f"mixture {str(path)!r} cannot be read ({type(error).__name__}: {error}): name the file that goes with the "
            "request, or make it again"
        ) from error
    _check(rows, f"mixture {str(path)!r}")
    if rows.alignment:
        alignment_file.check(rows.alignment, len(rows), f"mixture {str(path)!r}")
    return rows


def _check(rows: Mixture, name: str) -> None:
    """Raise InputError, naming the file, for what `save` would not have written."""
    remedy = "make the mixture again, or mend what wrote it"
    offsets, weights, tokens = rows.offsets, rows.weights, rows.tokens
    expected = {"keys": (len(weights), 32), "offsets": (len(weights) + 1,), "weights": (weights.size,)}
    expected |= {name: (len(weights),) for name in ("own", "held") if getattr(rows, name) is not None}
    got = {part: getattr(rows, part).shape for part in expected}
    if got != expected or tokens.ndim != 1:
        raise InputError(
            f"{name}: rows of another shape, {got}, tokens {tokens.shape}; expected keys (rows, 32), offsets "
            f"(rows + 1,), weights (rows,) and tokens one after the other: {remedy}"
        )
    flags = [part.dtype for part in (rows.own, rows.held) if part is not None]
    if any(dtype != np.bool_ for dtype in flags):
        raise InputError(f"{name}: own and held are to be true or false for each row: {remedy}")
    if not (offsets.dtype.kind == tokens.dtype.kind == "i" and rows.keys.dtype == np.uint8):
        raise InputError(f"{name}: tokens and offsets are to be signed whole numbers, and keys bytes: {remedy}")
    if offsets[0] != 0 or offsets[-1] != len(tokens) or (np.diff(offsets) < 0).any():
        raise InputError(f"{name}: its offsets do not divide its {len(tokens)} tokens into prompts: {remedy}")
    if (wrong := ~(np.isfinite(weights) & (weights > 0))).any():
        row = int(wrong.argmax())
        raise InputError(f"{name}: row {row} has the weight {weights[row]}; weights are finite and above 0: {remedy}")
    if (tokens < 0).any():
        at = int((tokens < 0).argmax())
        row = int(np.searchsorted(offsets, at, side="right")) - 1
        raise InputError(f"{name}: row {row} has the token id {tokens[at]}; ids are from 0 on: {remedy}")
