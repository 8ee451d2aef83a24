"""Whether teacher signals can be right at all; what cannot is refused before anything is stored."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from distill.errors import Failure
from distill.store.encodings import merged
from distill.teachers.protocol import ENDINGS, AnswerSignal, AnySignal, HiddenSignal, Signal

Record: TypeAlias = tuple[bytes, int, AnySignal]  # key, tokens of the prompt, signal
_Test: TypeAlias = tuple[NDArray[np.bool_], str, NDArray[Any]]  # which tokens are wrong, what was expected, values

_ROUNDING = 0.01  # of a sum of probabilities whose logarithms were rounded to float16
_LARGEST = 3.38e38  # that bfloat16 can hold


def check(records: Sequence[Record]) -> None:
    """Raise Failure, naming the first wrong record, unless all of them can be right and are of one format."""
    if not records:
        return
    expected, width = _kind(records[0][2]), _width(records[0][2])
    for key, _, signal in records:
        if (found := _kind(signal)) != expected:
            _refuse(key, f"format {expected}, as the batch's first", found)
        _check_shapes(key, signal, width)
    whole = merged([signal for _, _, signal in records])
    owner = np.repeat(np.arange(len(records)), [len(signal.answer) for _, _, signal in records])
    tests = _tests(whole)
    for wrong, required, values in [*tests, (whole.answer < 0, "answer tokens >= 0", whole.answer)]:
        if wrong.any():
            at = int(wrong.argmax())
            _refuse(records[owner[at]][0], required, str(values[at]))


def _kind(signal: AnySignal) -> str:
    if isinstance(signal, AnswerSignal):
        return "answer"
    return signal.format if isinstance(signal, HiddenSignal) else "topk"


def _width(signal: AnySignal) -> int:
    if isinstance(signal, AnswerSignal):
        return 1
    wide = signal.states if isinstance(signal, HiddenSignal) else signal.ids
    return int(wide.shape[-1]) if wide.ndim else 0


def _check_shapes(key: bytes, signal: AnySignal, width: int) -> None:
    rows = len(signal.answer)
    shapes: list[tuple[int, ...]]
    got: list[tuple[int, ...]]
    if isinstance(signal, AnswerSignal):
        got = [signal.answer.shape, signal.ending.shape]
        required, shapes = "answer and ending (T,), T > 0", [(rows,), (rows,)]
    elif isinstance(signal, HiddenSignal):
        got = [signal.answer.shape, signal.states.shape, signal.logprobs.shape]
        required = f"answer and log-probabilities (T,), states (T, {width}), T > 0"
        shapes = [(rows,), (rows, width), (rows,)]
    else:
        got = [part.shape for part in (signal.answer, signal.ids, signal.logprobs, signal.tail)]
        required = f"answer and tail (T,), ids and log-probabilities (T, {width}), T > 0"
        shapes = [(rows,), (rows, width), (rows, width), (rows,)]
    if not rows or not width or got != shapes:
        _refuse(key, required, f"shapes {got}")


def _tests(signal: AnySignal) -> list[_Test]:
    if isinstance(signal, AnswerSignal):
        return [(signal.ending >= len(ENDINGS), f"an ending below {len(ENDINGS)}", signal.ending)]
    return _hidden_tests(signal) if isinstance(signal, HiddenSignal) else _topk_tests(signal)


def _topk_tests(signal: Signal) -> list[_Test]:
    logprobs, tail = signal.logprobs.astype(np.float32), signal.tail
    with np.errstate(over="ignore"):  # reported below
        mass = np.exp(logprobs).sum(1) + tail
    return [
        (~np.isfinite(logprobs).all(1), "finite log-probabilities", logprobs.min(1)),
        ((logprobs > 0).any(1), "log-probabilities <= 0", logprobs.max(1)),
        (~(tail >= 0), "tail >= 0", tail),
        (~(np.abs(mass - 1) <= _ROUNDING), f"probabilities that add up to 1 within {_ROUNDING}", mass),
        ((signal.ids < 0).any(1), "token ids >= 0", signal.ids.min(1)),
    ]


def _hidden_tests(signal: HiddenSignal) -> list[_Test]:
    largest = np.abs(signal.states).max(1)
    return [
        (~(largest <= _LARGEST), f"finite states, at most {_LARGEST}", largest),
        (~np.isfinite(signal.logprobs), "finite log-probabilities", signal.logprobs),
        (signal.logprobs > 0, "log-probabilities <= 0", signal.logprobs),
    ]


def _refuse(key: bytes, expected: str, got: str) -> None:
    raise Failure(
        f"teacher signal {key.hex()[:12]}...: expected {expected}, got {got}; nothing of this batch was "
        "stored: check the teacher's checkpoint and number format"
    )
