"""One shard of the signal store: a folder of two arrays, published by one rename.

index.npy   per record: key, tokens of the prompt, where its answer's tokens lie
topk.npy    per answer token: the token, tail mass, k ids and k log-probabilities, likeliest first
"""

import os
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distill.errors import Failure
from distill.teachers.protocol import Signal

Record: TypeAlias = tuple[bytes, int, Signal]  # key, tokens of the prompt, signal

INDEX = np.dtype([("key", "S32"), ("prompt_tokens", "<i4"), ("start", "<i8"), ("tokens", "<i4")])
_ROUNDING = 0.01  # of a sum of probabilities whose logarithms were rounded to float16
_ABANDONED = 24 * 3600  # seconds after which a partial shard has no writer any more


def publish(root: Path, records: Sequence[Record]) -> None:
    """Write checked records (one or more) as a new shard of `root`; an OSError leaves nothing behind."""
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    index, topk = _pack(records)
    unique = uuid.uuid4().hex
    partial = root / f".partial-{unique}"
    partial.mkdir()
    try:
        _write(partial / "topk.npy", topk)
        _write(partial / "index.npy", index)
        _sync_folder(partial)
        os.rename(partial, root / f"shard-{time.time_ns():020d}-{unique[:8]}")
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync_folder(root)


def read_index(shard: Path) -> NDArray[Any]:
    """Return a shard's index; raises Failure, naming the file, unless both files are whole."""
    index, topk = _mapped(shard / "index.npy"), read_topk(shard)
    if index.dtype != INDEX:
        raise Failure(_corrupt(shard / "index.npy", f"elements of {index.dtype}"))
    expected = int(index["tokens"].sum())
    if len(topk) != expected:
        raise Failure(_corrupt(shard / "topk.npy", f"{len(topk)} tokens where the index has {expected}"))
    return np.array(index)


def read_topk(shard: Path) -> NDArray[Any]:
    """Return a shard's answer tokens, mapped: fields answer, tail, ids (k,), logprobs (k,)."""
    return _mapped(shard / "topk.npy")


def check(records: Sequence[Record]) -> None:
    """Raise Failure, naming the first wrong record, unless all of them can be right."""
    if not records:
        return
    k = records[0][2].ids.shape[1]
    for key, _, signal in records:
        rows = len(signal.answer)
        got = [part.shape for part in (signal.answer, signal.ids, signal.logprobs, signal.tail)]
        if not rows or got != [(rows,), (rows, k), (rows, k), (rows,)]:
            _refuse(key, f"answer and tail (T,), ids and log-probabilities (T, {k}), T > 0", f"shapes {got}")
    record = np.repeat(np.arange(len(records)), [len(signal.answer) for _, _, signal in records])
    ids = np.concatenate([signal.ids for _, _, signal in records])
    logprobs = np.concatenate([signal.logprobs for _, _, signal in records]).astype(np.float32)
    tail = np.concatenate([signal.tail for _, _, signal in records])
    with np.errstate(over="ignore"):  # reported below
        mass = np.exp(logprobs).sum(1) + tail
    for wrong, expected, values in (
        (~np.isfinite(logprobs).all(1), "finite log-probabilities", logprobs.min(1)),
        ((logprobs > 0).any(1), "log-probabilities <= 0", logprobs.max(1)),
        (~(tail >= 0), "tail >= 0", tail),
        (~(np.abs(mass - 1) <= _ROUNDING), f"probabilities that add up to 1 within {_ROUNDING}", mass),
        ((ids < 0).any(1), "token ids >= 0", ids.min(1)),
    ):
        if wrong.any():
            at = int(wrong.argmax())
            _refuse(records[record[at]][0], expected, str(values[at]))


def _refuse(key: bytes, expected: str, got: str) -> None:
    raise Failure(
        f"teacher signal {key.hex()[:12]}...: expected {expected}, got {got}; nothing of this batch was "
        "stored: check the teacher's checkpoint and number format"
    )


def _pack(records: Sequence[Record]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the arrays of a shard's two files."""
    lengths = np.array([len(signal.answer) for _, _, signal in records])
    index = np.empty(len(records), INDEX)
    index["key"] = [key for key, _, _ in records]
    index["prompt_tokens"] = [prompt_tokens for _, prompt_tokens, _ in records]
    index["tokens"] = lengths
    index["start"] = np.cumsum(lengths) - lengths
    k = records[0][2].ids.shape[1]
    layout = [("answer", "<i4"), ("tail", "<f4"), ("ids", "<i4", (k,)), ("logprobs", "<f2", (k,))]
    topk = np.empty(int(lengths.sum()), np.dtype(layout))
    for field in ("answer", "tail", "ids", "logprobs"):
        topk[field] = np.concatenate([getattr(signal, field) for _, _, signal in records])
    return index, topk


def _mapped(path: Path) -> NDArray[Any]:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, FileNotFoundError) as error:
        raise Failure(_corrupt(path, str(error))) from error


def _corrupt(path: Path, reason: str) -> str:
    return (
        f"signal shard {str(path)!r} is not whole ({reason}): delete the folder {str(path.parent)!r}; "
        "what was in it is bought again when it is needed"
    )


def _sweep(root: Path) -> None:
    for partial in root.glob(".partial-*"):
        try:
            abandoned = time.time() - partial.stat().st_mtime > _ABANDONED
        except FileNotFoundError:  # another process published or swept it
            continue
        if abandoned:
            shutil.rmtree(partial, ignore_errors=True)


def _write(path: Path, array: NDArray[Any]) -> None:
    with path.open("xb") as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
